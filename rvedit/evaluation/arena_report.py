"""`arena.html`: a self-contained page with strengths, wins and every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvedit.evaluation.arena_judges import Comparison
from rvedit.io.pages import write_page


def write_arena_report(
    path: Path,
    summary: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    instructions: Mapping[str, str],
) -> None:
    """Write the page; `instructions` are those of the items by id."""
    names = ("item", "category", "left", "right", "score", "answers", "dropped", "replies", "rater")
    rows = [{name: getattr(comparison, name) for name in names} for comparison in comparisons]
    data = {"summary": summary, "comparisons": rows, "instructions": instructions}
    write_page(path, "rvedit.evaluation", "arena.html", data)
