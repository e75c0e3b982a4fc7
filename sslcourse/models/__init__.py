"""Encoders, the methods that train them, and files that keep them."""

from sslcourse.models.encoders import (  # noqa: F401
    Residual,
    alexnet,
    count_parameters,
    encoder_from_recipe,
    resnet9,
    resnet18,
    resnet50,
    to_channels_last,
)
from sslcourse.models.methods import (  # noqa: F401
    BYOL,
    BarlowTwins,
    Classifier,
    PredictionHead,
    ProjectionHead,
    Rotation,
    SimCLR,
    ema_tau,
    four_rotations,
)
from sslcourse.models.saved import (  # noqa: F401
    COMMITTED,
    NETWORKS_FOLDER,
    THIS_RUN,
    Network,
    fill_networks,
    load_network,
    network_file_name,
    read_networks,
    reference_networks,
    save_network,
)
from sslcourse.models.semi_supervised import FixMatch, PseudoLabeling  # noqa: F401
