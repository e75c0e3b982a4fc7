"""Starts a kernel as Colab's module of this name does: google.colab has been imported before the first cell runs."""

import google.colab  # noqa: F401
from ipykernel import kernelapp

if __name__ == "__main__":
    kernelapp.launch_new_instance()
