"""One module a lesson: its exercises, each with a reference and a check that names the likely mistake."""
