"""Encoders, the methods that train them, and files that keep them."""
# ruff: noqa: F401, I001

from sslcourse.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, pretrained_backbone
from sslcourse.models.distillation import DINO, DINOHead
from sslcourse.models.encoders import Residual, alexnet, count_parameters, encoder_from_recipe, resnet9, resnet18, resnet50
from sslcourse.models.masked import MAE
from sslcourse.models.methods import (
    BYOL, BarlowTwins, Classifier, PredictionHead, ProjectionHead, Rotation, SimCLR, ema_tau, four_rotations,
)  # fmt: skip
from sslcourse.models.saved import (
    SHIPPED, NETWORKS_FOLDER, Network, load_network, pretrained_encoders, read_networks, reference_networks, save_network,
)  # fmt: skip
from sslcourse.models.semi_supervised import FixMatch, PseudoLabeling
from sslcourse.models.transformers import TransformerBlock, VisionTransformer, sine_cosine_positions, vit
