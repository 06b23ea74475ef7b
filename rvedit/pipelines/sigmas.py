"""Checks of the noise levels that a user chooses (imports no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rvedit.io.errors import UserError


def check_sigmas(sigmas: Sequence[float]) -> list[float]:
    """Return the sigmas that the steps start at; a final 0, where the last step ends, is left out.

    Raises UserError unless they fall from at most 1 and stay above 0.
    """
    starts = list(sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas)
    if not starts or not starts[0] <= 1 or not all(a > b for a, b in pairwise([*starts, 0.0])):
        text = ",".join(f"{sigma:g}" for sigma in sigmas)
        raise UserError(f"`sigmas` {text}: give falling numbers from 1 to above 0, such as 1,0.75,0.5,0.25")
    return starts


def check_shift(shift: float) -> None:
    """Raise UserError if the shift of the timesteps is not a positive number."""
    if not 0 < shift < math.inf:
        raise UserError(f"`shift` {shift:g}: give a number above 0; 1 shifts nothing")


def read_sigmas(text: str) -> list[float]:
    """Parse `1,0.75,0.5,0.25`. Raises UserError."""
    try:
        return check_sigmas([float(part) for part in text.split(",")])
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`sigmas` {text}: give numbers between commas, such as 1,0.75,0.5,0.25") from None
