"""Training: classifiers, every method of pretraining, and learning from labelled and unlabelled images together."""

from sslcourse.devices import PRECISIONS, autocast, choose_precision, evaluation_mode, seeded  # noqa: F401
from sslcourse.training.checkpoints import CHECKPOINT_FORMAT, History, load_checkpoint, previous, save_checkpoint  # noqa: F401
from sslcourse.training.fit import LOOK_IMAGES, WEIGHT_DECAY, fit_classifier, fit_semi_supervised, pretrain  # noqa: F401
from sslcourse.training.loop import Hooks, Stopped, check_budget, epochs_for, run_loop  # noqa: F401
from sslcourse.training.optimizers import LARS, OPTIMIZERS, decayed_and_not, make_optimizer, one_cycle  # noqa: F401
