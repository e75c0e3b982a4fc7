"""How good is an encoder or a classifier? Predictions, kNN, linear probe, fine-tuning, retrieval, calibration and comparisons."""

from sslcourse.evaluation.calibration import Calibration, calibration, fit_temperature  # noqa: F401
from sslcourse.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt  # noqa: F401
from sslcourse.evaluation.features import FeatureSet, evaluation_view, feature_set, features, knn_scores, neighbours, predict  # noqa: F401
from sslcourse.evaluation.protocols import (  # noqa: F401
    FineTuned,
    Result,
    Retrieval,
    evaluate,
    fine_tune,
    knn_accuracy,
    linear_probe,
    pca,
    retrieve,
    top_k,
    tsne,
)
from sslcourse.evaluation.uncertainty import (  # noqa: F401
    McNemar,
    PairedRuns,
    holm,
    mcnemar,
    mean_and_error,
    paired_difference,
    paired_runs,
    standard_error,
    t_interval,
    wilson_interval,
)
