"""The paper's numbers, read from the recipes, and notes on their inconsistencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rvedit.evaluation.aggregate import overall_of_cells
from rvedit.evaluation.scores import AXES
from rvedit.io.errors import UserError
from rvedit.io.records import CATEGORY_TITLES
from rvedit.training.recipe import load_recipe

FULL = "RVEDiT"
CATEGORIES = ("change", "remove", "add", "style")
TABLES = ("1", "2", "3")
Cells = dict[tuple[str, str], float]
"""(category, axis) -> score; axis "score" is a category's score, ("overall", "score") the overall score."""

_NOTES = {
    "1": (
        "Overall is the mean of the twelve cells. The paper's text averages over the two judges (as judge "
        "mean does), its table lists each judge.",
        "In the paper, Lucy-Edit's twelve cells and ICVE's Global Style cells are the same for both judges; "
        "OmniVideo is named as a baseline but has no row.",
        "The text calls RVEDiT strongest on Local Add and Local Change; in its table Kiwi-Edit leads Local "
        "Change for both judges.",
    ),
    "2": (
        "The text has 34 blocks and L_s = 17 and 25; the released backbone has 30 blocks, and Table 3 has "
        "L_s = 15 and 22 with the same scores: 8, 15, 22 of 30 are about as deep as 8, 17, 25 of 34.",
        "w/o GRTC is Eq. 3 with L_s = L: every block attends to X_e alone; w/o both is taken as L_s = 0 and "
        "lambda = 0: every block attends to all tokens.",
        "lambda is 0.75 in the tables and 0.1 in Appendix D.1. In the table, lambda = 0 scores higher than "
        "0.25, 0.50 and 1.00.",
    ),
    "3": (
        "Overall is the mean of the categories' scores (D.3), not the mean over samples and axes that the "
        "caption describes.",
        "The text mentions ten configurations; there are nine. Its ranges (IC 72.59 to 73.38, CF and VQ "
        "within 3 points) differ from its table (69.12 to 73.76; 5.81 and 5.18).",
    ),
}
MEAN = "mean"
"""The mean over all judges, in place of a judge's name."""
ROUNDING = 0.005 + 1e-9
_DEPTH_ALIASES = {"L_s = 22": ("L_s = 25",), "L_s = 25": ("L_s = 22",)}
_FULL_ALIASES = ("lambda = 0.75", "L_s = 15 (full)", "L_s = 17 (ours)")


@dataclass(frozen=True)
class PaperEntry:
    """A row of a table of the paper."""

    label: str
    cells: dict[str, Cells]
    """By judge."""
    aliases: tuple[str, ...] = ()
    """Other names of the same configuration."""


def read_paper(recipes: Path, table: str) -> list[PaperEntry]:
    """Return the rows of a table; in Tables 2 and 3 the full model is first and duplicates are merged.

    Raises UserError if the folder has no such recipes.
    """
    if not recipes.is_dir():
        raise UserError(f"`recipes` {recipes}: no such folder: name this project's recipes folder")
    entries = _table1(recipes / "table1.yaml") if table == "1" else _ablations(recipes, table)
    if not entries:
        raise UserError(f"`recipes` {recipes}: no recipe has the paper's scores for table {table}")
    return entries


def row_names(paper: Sequence[PaperEntry]) -> dict[str, str]:
    """Return a dict from each other name of a configuration to its label."""
    return {name: entry.label for entry in paper for name in entry.aliases}


def notes(table: str, recipes: Path) -> list[str]:
    """Return notes on a table: inconsistencies within the paper, computed from its numbers where possible."""
    lines = list(_NOTES[table])
    if table == "1":
        return lines
    entries, other_table = read_paper(recipes, table), read_paper(recipes, "3" if table == "2" else "2")
    others = {name: entry.cells["qwen"] for entry in other_table for name in (entry.label, *entry.aliases)}
    differing: list[str] = []
    compared = 0
    for entry in entries:
        if entry.label not in others:
            continue
        compared += len(CATEGORIES)
        pair = entry.cells["qwen"], others[entry.label]
        cells2, cells3 = pair if table == "2" else pair[::-1]
        for name in (*CATEGORIES, "overall"):
            score2, score3 = cells2[name, "score"], cells3[name, "score"]
            if abs(score2 - score3) <= ROUNDING:
                continue
            if name != "overall":
                differing.append(f"{entry.label}, {CATEGORY_TITLES[name]}: {score2:.2f} and {score3:.2f}")
            else:
                lines.append(
                    f"{entry.label}: Overall is {score2:.2f} in Table 2, and {score3:.2f} by Table 3's cells."
                )
    lines.append(
        f"Of {compared} category scores that Tables 2 and 3 both give, {len(differing)} differ by more than "
        "rounding" + (f" ({'; '.join(differing)})." if differing else ".")
    )
    return lines


def _ablations(recipes: Path, table: str) -> list[PaperEntry]:
    entries: dict[str, PaperEntry] = {}
    for path in sorted(recipes.glob("*.yaml")):
        if "paper" not in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}):
            continue
        row = load_recipe(path).paper
        assert row is not None
        cells: Cells | None = None
        if table == "2" and row.table2:
            names = (*CATEGORIES, "overall")
            cells = {(name, "score"): row.table2[name] for name in names if name in row.table2}
        elif table == "3" and row.table3:
            cells = _cells_of([[getattr(row.table3[name], axis) for axis in AXES] for name in CATEGORIES])
        if cells:
            entries[row.label] = PaperEntry(row.label, {"qwen": cells}, _DEPTH_ALIASES.get(row.label, ()))
    if FULL not in entries:
        return []
    full = entries.pop(FULL)
    same = [entry.label for entry in entries.values() if entry.cells == full.cells]
    others = [entry for entry in entries.values() if entry.label not in same]
    full = replace(full, aliases=tuple(dict.fromkeys((*same, *_FULL_ALIASES))))
    return [full, *sorted(others, key=lambda entry: _row_order(entry.label))]


def _table1(path: Path) -> list[PaperEntry]:
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"]
    entries = []
    for row in rows:
        cells = {}
        for judge in ("gemini", "qwen"):
            cells[judge] = _cells_of(np.array(row[judge], float).reshape(-1, len(AXES)).tolist())
        both = tuple(cells.values())
        cells[MEAN] = {key: sum(each[key] for each in both) / len(both) for key in both[0]}
        entries.append(PaperEntry(row["label"], cells))
    return entries


def _cells_of(triples: Sequence[Sequence[float]]) -> Cells:
    """Return the cells of each category's scores on the axes, with its score and the overall score added."""
    cells: Cells = {}
    for name, triple in zip(CATEGORIES, triples, strict=True):
        cells |= {(name, axis): score for axis, score in zip(AXES, triple, strict=True)}
        cells[name, "score"] = overall_of_cells([triple])
    cells["overall", "score"] = overall_of_cells(triples)
    return cells


def _row_order(label: str) -> tuple[int, str]:
    """Return the sort key of a row: components, routing depths, alignment weights, as in the paper."""
    prefixes = ("w/o both", "w/o GRTC", "w/o RAAA", "L_s", "lambda")
    group = next((i for i, prefix in enumerate(prefixes) if label.startswith(prefix)), len(prefixes))
    return group, label.partition("= ")[2].zfill(4)
