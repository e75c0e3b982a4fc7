"""Result records, small JSON files that say what was measured and how, and the tables made from them."""

from sslcourse.results.metrics import UNITS, finite, is_finite_number, metric, over_runs, wrong_with  # noqa: F401
from sslcourse.results.records import (  # noqa: F401
    KIND,
    SCHEMA,
    SUMMARY_PREFIX,
    device_name,
    file_name,
    fill,
    git_commit,
    measured_costs,
    original_projects,
    read,
    read_one,
    record,
    record_costs,
    reference,
    select,
    versions,
    write,
)
from sslcourse.results.tables import SOURCES, Table, overview, percent, readme_table, table  # noqa: F401
