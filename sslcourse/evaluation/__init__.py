"""How good is an encoder or a classifier? Predictions, kNN, linear probe, fine-tuning, retrieval, calibration and comparisons."""
# ruff: noqa: F401, I001

from sslcourse.evaluation.calibration import calibration, fit_temperature
from sslcourse.evaluation.corruptions import CORRUPTIONS, corrupt
from sslcourse.evaluation.features import FeatureSet, evaluation_view, feature_set, features, in_views, knn_scores, neighbours, predict
from sslcourse.evaluation.protocols import (
    Result, best_block, evaluate, fine_tune, knn_accuracy, linear_probe, mlp_probe, pca, probe_blocks, retrieve, tsne,
)  # fmt: skip
from sslcourse.evaluation.uncertainty import (
    holm, mcnemar, mean_and_error, paired_difference, paired_runs, standard_error, t_interval, wilson_interval,
)  # fmt: skip
