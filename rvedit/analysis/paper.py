"""The paper's numbers, as the recipes have them, and where they disagree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rvedit.evaluation.aggregate import overall_of_cells
from rvedit.evaluation.scores import AXES
from rvedit.io.errors import UserError
from rvedit.io.records import CATEGORY_TITLES
from rvedit.training.recipe import AxisScores, load_recipe

FULL = "RVEDiT"
CATEGORIES = ("change", "remove", "add", "style")
TABLES = ("1", "2", "3")
Cells = dict[tuple[str, str], float]
"""(category, axis) -> score; the axis "score" is a category's score, the category "overall" that over all."""

_NOTES = {
    "1": (
        "Overall is the mean of the twelve cells. The text averages over the two judges (--judge mean), the "
        "table has each alone.",
        "Lucy-Edit's twelve cells, and ICVE's of Global Style, are the same under both judges in the paper; "
        "OmniVideo is named as a baseline and has no row.",
        "The text calls RVEDiT strongest on Local Add and Local Change; by its table Kiwi-Edit leads Local "
        "Change under both judges.",
    ),
    "2": (
        "The text has 34 blocks, L_s = 17 and 25; the released backbone has 30, and Table 3 has L_s = 15 and "
        "22 with the same scores: 8, 15, 22 of 30 are what 8, 17, 25 are of 34.",
        "w/o GRTC is Eq. 3 with L_s = L, every block reading X_e alone; w/o both is read as L_s = 0 and "
        "lambda = 0, an undifferentiated stream.",
        "lambda is 0.75 in the tables and 0.1 in Appendix D.1. By the table lambda = 0 beats 0.25, 0.50 and "
        "1.00.",
    ),
    "3": (
        "Overall is the mean of the categories' scores (D.3), not the caption's mean over samples and axes.",
        "The text speaks of ten configurations; there are nine. Its ranges (IC 72.59 to 73.38, CF and VQ "
        "within 3 points) are not those of its table (69.12 to 73.76; 5.81 and 5.18).",
    ),
}
MEAN = "mean"
"""Instead of a judge's name: all judges together."""
ROUNDING = 0.005 + 1e-9
_SAME_DEPTH = {"L_s = 22": ("L_s = 25",), "L_s = 25": ("L_s = 22",)}
_FULL_TOO = ("lambda = 0.75", "L_s = 15 (full)", "L_s = 17 (ours)")


@dataclass(frozen=True)
class PaperEntry:
    """A row of a table of the paper."""

    label: str
    cells: dict[str, Cells]
    """By judge."""
    aliases: tuple[str, ...] = ()
    """Other names of the same configuration."""


def read_paper(recipes: Path, table: str) -> list[PaperEntry]:
    """The rows of a table; of Tables 2 and 3 the full model first. Several names of one are one row.

    Raises UserError where the folder holds no such recipes.
    """
    if not recipes.is_dir():
        raise UserError(f"{recipes}: no folder of recipes: name the project's with --recipes")
    entries = _table1(recipes / "table1.yaml") if table == "1" else _ablations(recipes, table)
    if not entries:
        raise UserError(f"{recipes}: none of its recipes has the paper's figures for table {table}")
    return entries


def row_names(paper: Sequence[PaperEntry]) -> dict[str, str]:
    """The label of a configuration, by each of its other names."""
    return {name: entry.label for entry in paper for name in entry.aliases}


def notes(table: str, recipes: Path) -> list[str]:
    """Where the paper disagrees with itself about a table; what can be computed, is."""
    found = list(_NOTES[table])
    if table == "1":
        return found
    here, there = read_paper(recipes, table), read_paper(recipes, "3" if table == "2" else "2")
    other = {name: entry.cells["qwen"] for entry in there for name in (entry.label, *entry.aliases)}
    apart: list[str] = []
    compared = 0
    for entry in here:
        ours, theirs = entry.cells["qwen"], other.get(entry.label)
        if theirs is None:
            continue
        for name in (*CATEGORIES, "overall"):
            pair = (ours[name, "score"], theirs[name, "score"])
            of_two, by_three = pair if table == "2" else pair[::-1]
            difference = abs(of_two - by_three)
            if name == "overall" and difference > ROUNDING:
                found.append(
                    f"{entry.label}: Overall is {of_two:.2f} in Table 2, and {by_three:.2f} by Table 3's "
                    "cells."
                )
            elif name != "overall":
                compared += 1
                if difference > ROUNDING:
                    apart.append(f"{entry.label}, {CATEGORY_TITLES[name]}: {of_two:.2f} and {by_three:.2f}")
    found.append(
        f"Of {compared} category scores that Tables 2 and 3 both give, {len(apart)} differ by more than "
        "rounding" + (f" ({'; '.join(apart)})." if apart else ".")
    )
    return found


def _ablations(recipes: Path, table: str) -> list[PaperEntry]:
    entries: dict[str, PaperEntry] = {}
    for path in sorted(recipes.glob("*.yaml")):
        if "paper" not in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}):
            continue
        row = load_recipe(path).paper
        assert row is not None
        cells: Cells | None = None
        if table == "2" and row.table2:
            cells = {
                (name, "score"): value
                for name, value in sorted(row.table2.items(), key=lambda pair: _place(pair[0]))
            }
        elif table == "3" and row.table3:
            cells = _cells_of(row.table3)
        if cells:
            entries[row.label] = PaperEntry(row.label, {"qwen": cells})
    if FULL not in entries:
        return []
    full = entries.pop(FULL)
    same = tuple(entry.label for entry in entries.values() if entry.cells == full.cells)
    others = [
        PaperEntry(entry.label, entry.cells, _SAME_DEPTH.get(entry.label, ()))
        for entry in entries.values()
        if entry.label not in same
    ]
    # Its other names stand in some of the tables only.
    full = PaperEntry(FULL, full.cells, tuple(dict.fromkeys((*same, *_FULL_TOO))))
    return [full, *sorted(others, key=lambda entry: _group(entry.label))]


def _table1(path: Path) -> list[PaperEntry]:
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"]
    entries = []
    for row in rows:
        cells = {}
        for judge in ("gemini", "qwen"):
            triples = [row[judge][n : n + len(AXES)] for n in range(0, len(row[judge]), len(AXES))]
            scores = {
                name: AxisScores(**dict(zip(AXES, triple, strict=True)))
                for name, triple in zip(CATEGORIES, triples, strict=True)
            }
            cells[judge] = _cells_of(scores)
        both = tuple(cells.values())
        cells[MEAN] = {key: sum(each[key] for each in both) / len(both) for key in both[0]}
        entries.append(PaperEntry(row["label"], cells))
    return entries


def _cells_of(scores: dict[str, AxisScores]) -> Cells:
    """With the categories' scores and the overall one."""
    cells: Cells = {}
    for name in CATEGORIES:
        axes = {axis: getattr(scores[name], axis) for axis in AXES}
        cells |= {(name, axis): value for axis, value in axes.items()}
        cells[name, "score"] = overall_of_cells([tuple(axes.values())])
    cells["overall", "score"] = overall_of_cells(
        [[cells[name, axis] for axis in AXES] for name in CATEGORIES]
    )
    return cells


def _place(category: str) -> int:
    return CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)


def _group(label: str) -> tuple[int, str]:
    """Components, routing depths, alignment weights, as in the paper's tables."""
    groups: Sequence[str] = ("w/o both", "w/o GRTC", "w/o RAAA", "L_s", "lambda")
    number = next((i for i, start in enumerate(groups) if label.startswith(start)), len(groups))
    depth = label.partition("= ")[2]
    return number, depth.zfill(4)
