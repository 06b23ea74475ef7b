"""The exceptions that a user can cause (leaf: imports nothing of ours)."""


class UserError(ValueError):
    """A mistake the user can mend: one line that names the thing, its value and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def reason_of(error: Exception) -> str:
    """Why one clip of many failed; in a line with the kind of error where it is none that was foreseen."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class Interrupted(Exception):
    """Work was stopped from outside after what was done had been saved; one line says how to go on.

    `code` is the exit code: 128 and the signal's number.
    """

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.code = code
