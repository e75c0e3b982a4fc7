"""Result records, small JSON files that say what was measured and how, and the tables made from them."""
# ruff: noqa: F401, I001

from sslcourse.results.records import (
    SUMMARY_PREFIX, device_name, file_name, fill, measured_costs, original_projects, over_runs, read, read_one,
    record, record_costs, reference, write,
)  # fmt: skip
from sslcourse.results.tables import Table, overview, percent, table
