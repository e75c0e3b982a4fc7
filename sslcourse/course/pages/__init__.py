"""The lessons as pages to browse and as slides."""
