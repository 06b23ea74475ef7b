"""Labels by people: scores of edits, or preferences between two edits of one item.

The header decides which of four layouts a table (CSV, JSON or parquet) has:

- `item, rater, axis, score`: ours, as `rvedit judge label` saves it.
- `item, left, right, preferred` and optionally `rater, axis`: ours for pairs; left and right are editors.
- `IF, RQ, EE` and `edited_video` or `item`, and optionally `annotator` or `rater`: the axes of VEFX-Bench.
- `key, left_model, right_model, vote_type`: EditReward-Data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvedit.evaluation.scores import AXES
from rvedit.io.errors import UserError
from rvedit.io.tables import BadRow, WrongColumns, read_table

MEAN = "mean"
AXIS_NAMES: Mapping[str, str] = {
    **{axis: axis for axis in (*AXES, MEAN)},
    "if": "ic",
    "ee": "cf",
    "rq": "vq",
    "overall": MEAN,
}
"""Our axis for each name in a table, in lower case. VEFX-Bench's are the nearest in meaning, not the same."""
PREFERENCES: Mapping[str, float] = {
    "left": 1.0,
    "leftvote": 1.0,
    "right": -1.0,
    "rightvote": -1.0,
    "tie": 0.0,
}
VEFX_SCALE = (1, 4)

Key = tuple[str, ...]
"""(item,) of a score; (item, left editor, right editor) of a preference."""


@dataclass
class HumanLabels:
    """The labels of a table."""

    kind: Literal["scores", "preferences"]
    file: Path
    by_axis: dict[str, dict[Key, dict[str, float]]] = field(default_factory=dict)
    """Axis -> key -> rater -> score, or preference: 1 for left, 0 for a tie, -1 for right."""

    def add(self, axis: str, key: Key, rater: str, value: float, row: int) -> None:
        """Add a label. Raises UserError if the rater has labeled the same before."""
        raters = self.by_axis.setdefault(axis, {}).setdefault(key, {})
        if rater in raters:
            who = f"rater {rater}" if rater else "the table, which has no raters,"
            raise UserError(
                f"{self.file}, row {row}: {who} labels {', '.join(key)} twice on {axis}: keep one of the rows"
            )
        raters[rater] = value


Row = dict[str, str]


def read_labels(file: Path) -> HumanLabels:
    """Read a table of labels in any of the layouts. Raises UserError with the row and the remedy."""
    if not file.is_file():
        raise UserError(f"{file}: no such file: give a table of labels by people")
    for kind, columns, optional, add in _LAYOUTS:
        try:
            rows = read_table(file, columns, optional)
        except WrongColumns:
            continue
        labels = HumanLabels(kind, file)
        for row in rows:
            if isinstance(row, BadRow):
                raise UserError(f"{file}, row {row.number}: {row.reason}")
            number, texts = row
            texts = {name: text.strip() for name, text in texts.items()}
            if empty := [name for name in columns if not texts[name]]:
                raise UserError(f"{file}, row {number}: {empty[0]} is empty: remove the row or fill it in")
            add(labels, number, texts)
        if not labels.by_axis:
            raise UserError(f"{file}: has no labels below its header")
        _add_means(labels)
        return labels
    layouts = "; ".join(", ".join(columns) for _, columns, _, _ in _LAYOUTS)
    raise UserError(f"{file}: not a table of labels: needs the columns of one layout: {layouts}")


def _add_score(labels: HumanLabels, number: int, row: Row) -> None:
    value = _number(labels.file, number, "score", row["score"])
    labels.add(_axis(labels.file, number, row["axis"]), (row["item"],), row["rater"], value, number)


def _add_preference(labels: HumanLabels, number: int, row: Row) -> None:
    axis = _axis(labels.file, number, row["axis"] or MEAN)
    _prefer(labels, number, (row["item"], row["left"], row["right"]), (axis, row["rater"]), row["preferred"])


def _add_vote(labels: HumanLabels, number: int, row: Row) -> None:
    key = (row["key"], row["left_model"], row["right_model"])
    _prefer(labels, number, key, (MEAN, row["annotator"]), row["vote_type"])


def _prefer(labels: HumanLabels, number: int, key: Key, who: tuple[str, str], text: str) -> None:
    """Add a preference, with the two editors in alphabetical order."""
    item, left, right = key
    if text.lower() not in PREFERENCES:
        raise UserError(f"{labels.file}, row {number}: preference is {text!r}: write left, right or tie")
    if left == right:
        raise UserError(f"{labels.file}, row {number}: compares {left} with itself: remove the row")
    value = PREFERENCES[text.lower()]
    if left > right:
        left, right, value = right, left, -value
    labels.add(who[0], (item, left, right), who[1], value, number)


def _add_vefx(labels: HumanLabels, number: int, row: Row) -> None:
    item, rater = (row.get("edited_video") or row["item"],), row["annotator"] or row["rater"]
    for name in ("IF", "RQ", "EE"):
        value = _number(labels.file, number, name, row[name])
        low, high = VEFX_SCALE
        if not low <= value <= high:
            raise UserError(f"{labels.file}, row {number}: {name} is {value:g}, outside {low} to {high}")
        labels.add(AXIS_NAMES[name.lower()], item, rater, value, number)


def _add_means(labels: HumanLabels) -> None:
    """Add the mean of the three axes of each rater who gave all of them, unless the table has its own."""
    if MEAN in labels.by_axis or labels.kind == "preferences" or not all(a in labels.by_axis for a in AXES):
        return
    means: dict[Key, dict[str, float]] = {}
    for key, raters in labels.by_axis[AXES[0]].items():
        for rater in raters:
            values = [labels.by_axis[axis].get(key, {}).get(rater) for axis in AXES]
            given = [value for value in values if value is not None]
            if len(given) == len(AXES):
                means.setdefault(key, {})[rater] = math.fsum(given) / len(AXES)
    if means:
        labels.by_axis[MEAN] = means


def _axis(file: Path, number: int, text: str) -> str:
    if text.lower() not in AXIS_NAMES:
        raise UserError(f"{file}, row {number}: axis is {text!r}: write one of {', '.join((*AXES, MEAN))}")
    return AXIS_NAMES[text.lower()]


def _number(file: Path, number: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file}, row {number}: {name} is {text!r}, not a number")
    return value


_VEFX_RATERS = ("annotator", "rater")
_LAYOUTS: tuple[
    tuple[
        Literal["scores", "preferences"],
        tuple[str, ...],
        tuple[str, ...],
        Callable[[HumanLabels, int, Row], None],
    ],
    ...,
] = (
    ("scores", ("item", "rater", "axis", "score"), (), _add_score),
    ("preferences", ("item", "left", "right", "preferred"), ("rater", "axis"), _add_preference),
    ("preferences", ("key", "left_model", "right_model", "vote_type"), ("annotator",), _add_vote),
    ("scores", ("edited_video", "IF", "RQ", "EE"), _VEFX_RATERS, _add_vefx),
    ("scores", ("item", "IF", "RQ", "EE"), _VEFX_RATERS, _add_vefx),
)
"""Kind, required and optional columns, and reader of a row; the first whose columns are there counts."""
