"""Copies of the lessons for a class: for students, for teachers, for nbgrader."""
