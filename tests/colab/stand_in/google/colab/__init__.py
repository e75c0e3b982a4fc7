"""Stands in for Colab's own package: the lessons only ask whether it has been imported."""
