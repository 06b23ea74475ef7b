"""`python -m rvedit_cli`, for launchers such as torchrun that start a module."""

from rvedit_cli.main import main

main()
