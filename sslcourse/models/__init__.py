"""Networks that are kept in small files: which encoder, its weights, and what a reader has to know to use it."""

from sslcourse.models.encoders import (  # noqa: F401
    AlexNet,
    Encoder,
    Residual,
    ResNet,
    ResNet9,
    alexnet,
    conv_block,
    count_parameters,
    resnet9,
    resnet18,
    resnet50,
    to_channels_last,
)
from sslcourse.models.methods import (  # noqa: F401
    BYOL,
    BarlowTwins,
    Classifier,
    Method,
    PredictionHead,
    ProjectionHead,
    Rotation,
    SimCLR,
    TwoViewMethod,
    ema_tau,
    four_rotations,
)
from sslcourse.models.saved import (  # noqa: F401
    FOLDER,
    FORMAT,
    KIND,
    MAKERS,
    Network,
    fill_networks,
    load_network,
    network_file_name,
    read_networks,
    reference_networks,
    save_network,
)
from sslcourse.models.semi_supervised import FixMatch, PseudoLabeling  # noqa: F401
