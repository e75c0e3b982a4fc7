"""What `python -m sslcourse` can be asked to do, one file a command."""
