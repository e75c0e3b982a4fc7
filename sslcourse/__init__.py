"""Self- and semi-supervised image learning: models, losses, augmentations and loaders that live on the device, each short enough to read.

The lessons in `notebooks/` are built on this package and point into it; it can equally be used on its own.
The machinery of the course itself (lessons, exercises, headless runs) is in `sslcourse.course`, which nothing here imports.
"""

__version__ = "0.1.0"
