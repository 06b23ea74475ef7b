"""Tables 1 to 3: ours beside the paper's, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rvedit.analysis.paper import CATEGORIES, Cells, PaperEntry
from rvedit.judge.aggregate import CategoryScores, Estimate, table_of
from rvedit.judge.scores import AXES, Scores
from rvedit.judge.statistics import compare

NOISE = 0.05
"""A difference whose p-value, corrected for the number of rows, is above this is not told from noise."""


@dataclass(frozen=True)
class Contrast:
    """A row less the full model, overall, on the items that both have."""

    mean: Estimate
    by_seed: tuple[float, ...]
    """Of each training seed, where the two have as many; else empty."""
    p_value: float
    """Paired permutation test over items, corrected over the rows by Benjamini and Hochberg."""
    paper: float | None
    """The same difference in the paper."""

    @property
    def told(self) -> bool:
        """Whether items and seeds tell the two apart."""
        signs = {np.sign(value) for value in self.by_seed} or {np.sign(self.mean.value)}
        return self.p_value < NOISE and len(signs) == 1

    @property
    def verdict(self) -> str:
        """Whether the paper's sign holds."""
        if self.paper is None:
            return "not in the paper"
        if not self.told:
            return "not told apart"
        return "holds" if np.sign(self.mean.value) == np.sign(self.paper) else "the other way round"


@dataclass(frozen=True)
class ResultRow:
    """A configuration: ours and the paper's."""

    label: str
    runs: int
    """Judged folders, such as one for each training seed."""
    items: int
    ours: dict[tuple[str, str], Estimate]
    """As `Cells`; empty where nothing was judged."""
    paper: Cells
    contrast: Contrast | None
    """None for the full model, and where one of the two was not judged."""


def pooled(runs: Sequence[CategoryScores]) -> CategoryScores:
    """Several runs' scores, as repeats of the same items: they are averaged by item, seeds count equally."""
    merged: dict[str, dict[str, list[Scores]]] = {}
    for run in runs:
        for category, items in run.items():
            for item, repeats in items.items():
                merged.setdefault(category, {}).setdefault(item, []).extend(repeats)
    return merged


def result_rows(
    paper: Sequence[PaperEntry], judged: Mapping[str, Sequence[CategoryScores]], judge: str, full: str
) -> list[ResultRow]:
    """The paper's rows in their order, then those that it does not have; `judged` is by label.

    `full` is the row that others are compared with. Intervals and tests are over items; the differences of
    single seeds stand beside, since items do not tell how much another training would change.
    """
    labels = [entry.label for entry in paper] + [
        label for label in judged if label not in {e.label for e in paper}
    ]
    cells = {entry.label: entry.cells.get(judge, entry.cells.get("qwen", {})) for entry in paper}
    contrasts = {
        label: _contrast(judged[full], judged[label], cells.get(full, {}), cells.get(label, {}))
        for label in labels
        if label in judged and full in judged and label != full
    }
    corrected = _corrected({label: contrast.p_value for label, contrast in contrasts.items()})
    rows = []
    for label in labels:
        ours, items = _ours(judged.get(label, ()))
        contrast = contrasts.get(label)
        if contrast is not None:
            contrast = Contrast(contrast.mean, contrast.by_seed, corrected[label], contrast.paper)
        rows.append(ResultRow(label, len(judged.get(label, ())), items, ours, cells.get(label, {}), contrast))
    return rows


def _ours(runs: Sequence[CategoryScores]) -> tuple[dict[tuple[str, str], Estimate], int]:
    table = table_of(pooled(runs))
    if table is None:
        return {}, 0
    cells = {("overall", "score"): table.overall}
    for name in CATEGORIES:
        if row := table.categories.get(name):
            cells |= {(name, axis): row.axes[axis] for axis in AXES}
            cells[name, "score"] = row.score
    return cells, sum(row.items for row in table.categories.values())


def _contrast(
    full: Sequence[CategoryScores], other: Sequence[CategoryScores], paper_full: Cells, paper: Cells
) -> Contrast:
    difference = compare(pooled(full), pooled(other))["overall"]["score"]
    by_seed = []
    if len(full) == len(other) > 1:
        by_seed = [compare(a, b)["overall"]["score"].mean.value for a, b in zip(full, other, strict=True)]
    key = ("overall", "score")
    printed = paper[key] - paper_full[key] if key in paper and key in paper_full else None
    return Contrast(difference.mean, tuple(by_seed), difference.p_value, printed)


def _corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    if not p_values:
        return {}
    from scipy.stats import false_discovery_control

    return dict(zip(p_values, map(float, false_discovery_control(list(p_values.values()))), strict=True))
