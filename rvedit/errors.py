"""The exceptions that a user can cause (leaf: imports nothing of ours)."""


class UserError(ValueError):
    """A mistake the user can mend: one line that names the thing, its value and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Work was stopped from outside after what was done had been saved; one line says how to go on.

    `code` is the exit code: 128 and the signal's number.
    """

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.code = code
