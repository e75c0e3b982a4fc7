"""How good is an encoder or a classifier? Predictions, kNN, linear probe, fine-tuning, retrieval, confusion and comparisons."""

from sslcourse.evaluation.calibration import TEMPERATURES, Calibration, calibration, fit_temperature  # noqa: F401
from sslcourse.evaluation.corruptions import CHUNK, KINDS, SEVERITIES, Corruption, corrupt  # noqa: F401
from sslcourse.evaluation.features import FeatureSet, evaluation_view, feature_set, features, knn_scores, neighbours, predict  # noqa: F401
from sslcourse.evaluation.protocols import (  # noqa: F401
    PENALTIES,
    SMALL_PROBE,
    FineTuned,
    Result,
    Retrieval,
    evaluate,
    fine_tune,
    knn_accuracy,
    linear_probe,
    paired_difference,
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
    paired_runs,
    standard_error,
    t_interval,
    wilson_interval,
)
