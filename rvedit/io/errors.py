"""Exceptions that users can cause or see (imports nothing from rvedit)."""

import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """Return a text with control characters, such as a line break in a file name, as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(ValueError):
    """An error that the user can fix: one line that names the thing, its value and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def check_choice(label: str, value: str | None, choices: Iterable[str]) -> None:
    """Raise UserError for a value that is none of the choices; None, for the default, is accepted."""
    choices = tuple(choices)
    if value is not None and value not in choices:
        raise UserError(f"{label} {value}: choose one of {', '.join(choices)}")


def reason_of(error: Exception) -> str:
    """Return one line on why a clip failed; unforeseen errors are prefixed with their type."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class Interrupted(Exception):
    """A signal stopped the run after its progress was saved; the message says how to resume.

    `code` is the exit code: 128 plus the signal number.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
