"""How figures and tables call what they compare: NAME=PLACE on the command line."""

from __future__ import annotations

from pathlib import Path


def split_name(text: str) -> tuple[str | None, str]:
    """`NAME=PLACE` -> (NAME, PLACE); a place without a name, or one that is there, -> (None, place).

    The name may have `=` in it, the place may not: `L_s = 8=runs/ls8`.
    """
    name, separator, place = text.rpartition("=")
    return (name, place) if separator and name and not Path(text).exists() else (None, text)
