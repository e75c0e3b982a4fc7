"""Is it learning, and is every number finite? Chance levels, meters of collapse and memory, `find_nonfinite`, and a guard for training."""

from sslcourse.diagnostics.collapse_meters import collapse  # noqa: F401
from sslcourse.diagnostics.guard import NonFiniteError, NonFiniteGuard, load_bad_batch  # noqa: F401
from sslcourse.diagnostics.memory_meters import LargestTensor, SavedForBackward, graph_size  # noqa: F401
from sslcourse.diagnostics.search import find_nonfinite  # noqa: F401
from sslcourse.losses import chance_loss  # noqa: F401
