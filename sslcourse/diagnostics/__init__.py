"""Is it learning, and is every number finite? Chance levels, meters of collapse and memory, `find_nonfinite`, and a guard for training."""

from sslcourse.diagnostics.guard import NonFiniteError, NonFiniteGuard, load_bad_batch  # noqa: F401
from sslcourse.diagnostics.meters import LargestTensor, SavedForBackward, collapse, graph_size  # noqa: F401
from sslcourse.diagnostics.search import find_nonfinite  # noqa: F401
from sslcourse.losses import chance_loss  # noqa: F401
