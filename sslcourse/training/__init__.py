"""Training: classifiers, every method of pretraining, and learning from labelled and unlabelled images together."""

from sslcourse.devices import PRECISIONS, evaluation_mode  # noqa: F401
from sslcourse.training.callbacks import Callback, FasterThreads, Stopped, StopWhenAsked, unfinished  # noqa: F401
from sslcourse.training.checkpoints import History  # noqa: F401
from sslcourse.training.loop import Options  # noqa: F401
from sslcourse.training.optimizers import LARS, decayed_and_not, make_optimizer  # noqa: F401
from sslcourse.training.tasks import epochs_for, fit_classifier, fit_semi_supervised, pretrain  # noqa: F401
