"""One file per command: the Python API of what the command line does."""
