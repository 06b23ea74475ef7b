"""`python -m rvedit_cli`, for launchers such as torchrun that run a module."""

from rvedit_cli.main import main

main()
