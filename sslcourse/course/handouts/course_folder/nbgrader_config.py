"""Settings of nbgrader for this course. nbgrader reads them when it is run in this folder; change them as you like."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
course = Path(__file__).resolve().parent

c.CourseDirectory.course_id = "sslcourse"
c.CourseDirectory.root = str(course)
# What a lesson leaves beside itself, data sets and results, is neither collected nor graded.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "data", "results"]

# What stands in place of a solution. The course takes a function that holds only `...` for one that was not attempted.
c.ClearSolutions.code_stub = {"python": "...  # your code"}

# A cell that takes longer, in seconds, is stopped, and grading goes on with the next one.
c.Execute.timeout = 300

# Kernels that are started from here, to grade, train as little as possible whatever the student chose. No grade depends on training.
# One thread for each submission, so that several can be graded side by side.
grading = {"SSLCOURSE_GRADING_TIER": "smoke", "SSLCOURSE_GRADING_DATASET": "toybox", "SSLCOURSE_HEADLESS": "1"}
grading |= {"SSLCOURSE_DATA_DIR": str(course / "grading" / "data"), "SSLCOURSE_RESULTS_DIR": str(course / "grading" / "results")}
os.environ.update(grading | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"} | os.environ)
