"""A guard for training loops: it stops at the first step that is not finite, before the optimizer spreads it, and keeps the evidence."""

from sslcourse.diagnostics.collapse import (  # noqa: F401
    Collapse,
    LargestTensor,
    SavedForBackward,
    alignment,
    chance_loss,
    collapse,
    graph_size,
    uniformity,
)
from sslcourse.diagnostics.guard import BAD_BATCH_FORMAT, PATIENCE, BadBatch, NonFiniteError, NonFiniteGuard, all_finite, load_bad_batch  # noqa: F401
from sslcourse.diagnostics.nonfinite import Finding, find_nonfinite, stored_nonfinite  # noqa: F401
