"""The one exception that a user can cause (leaf: imports nothing of ours)."""


class UserError(ValueError):
    """A mistake the user can mend: one line that names the thing, its value and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
