"""Rows of Tables 1 to 3: our scores and the paper's, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rvedit.analysis.paper import CATEGORIES, Cells, PaperEntry, row_names
from rvedit.evaluation.aggregate import CategoryScores, Estimate, pooled, table_of
from rvedit.evaluation.statistics import Difference, compare

SIGNIFICANCE = 0.05
"""A difference with a p-value below this is significant."""
OVERALL = ("overall", "score")


@dataclass(frozen=True)
class Contrast:
    """A row minus the full model, on the items that both have."""

    cells: dict[tuple[str, str], Difference]
    """By category and axis."""
    p_value: float
    """Of overall: paired permutation test over items, Benjamini-Hochberg corrected over the rows."""
    by_seed: tuple[float, ...]
    """Overall of the n-th run minus the full model's n-th; empty unless both have the same number > 1."""
    paper: float | None
    """The same difference in the paper."""
    trainings: tuple[int, int] = (1, 1)
    """Number of runs of the full model and of this row."""

    @property
    def overall(self) -> Difference:
        """Difference of the overall scores."""
        return self.cells[OVERALL]

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """95% t interval of the mean over training seeds; None for fewer than two."""
        if len(self.by_seed) < 2:
            return None
        from scipy.stats import t

        mean, error = np.mean(self.by_seed), np.std(self.by_seed, ddof=1) / np.sqrt(len(self.by_seed))
        half = float(t.ppf(0.975, len(self.by_seed) - 1) * error)
        return float(mean) - half, float(mean) + half

    @property
    def verdict(self) -> str:
        """Whether the paper's sign holds, if significant over items and, if several, over trainings."""
        if self.paper is None:
            return "not in the paper"
        interval = self.seed_interval
        if self.p_value >= SIGNIFICANCE or (interval and interval[0] <= 0 <= interval[1]):
            return "not significant"
        sign = "holds" if np.sign(self.overall.mean.value) == np.sign(self.paper) else "opposite sign"
        if interval:
            return sign
        return f"{sign} ({'one training' if self.trainings == (1, 1) else 'unpaired trainings'})"


@dataclass(frozen=True)
class ResultRow:
    """Our scores and the paper's of a configuration."""

    label: str
    runs: int
    """Number of judged folders, such as one per training seed."""
    items: int
    """Number of items in all of them."""
    ours: dict[tuple[str, str], Estimate]
    """Keys as in `Cells`; empty if nothing was judged, and without overall if a category is missing."""
    paper: Cells
    contrast: Contrast | None
    """None for the full model, and if one of the two has no overall score."""


def result_rows(
    paper: Sequence[PaperEntry], judged: Mapping[str, Sequence[CategoryScores]], judge: str, full: str
) -> list[ResultRow]:
    """Return the paper's rows in order, then the other rows of `judged`, which has each label's runs.

    `full` is the label of the row that others are compared with. Intervals and p-values are over items; only
    several seeds show the variation between trainings.
    """
    names = row_names(paper)
    full = names.get(full, full)
    runs: dict[str, list[CategoryScores]] = {}
    for label, scores in judged.items():
        known = [{name: run[name] for name in CATEGORIES if name in run} for run in scores]
        runs.setdefault(names.get(label, label), []).extend(known)
    labels = dict.fromkeys((*(entry.label for entry in paper), *runs))
    published = {entry.label: entry.cells.get(judge, entry.cells["qwen"]) for entry in paper}
    full_score = published.get(full, {}).get(OVERALL)
    contrasts: dict[str, Contrast] = {}
    for label in labels:
        if label != full and label in runs and full in runs:
            score = published.get(label, {}).get(OVERALL)
            difference = None if score is None or full_score is None else score - full_score
            if contrast := _contrast(runs[full], runs[label], difference):
                contrasts[label] = contrast
    if contrasts:
        from scipy.stats import false_discovery_control

        corrected = false_discovery_control([contrast.p_value for contrast in contrasts.values()])
        for (label, contrast), p_value in zip(contrasts.items(), corrected, strict=True):
            contrasts[label] = replace(contrast, p_value=float(p_value))
    rows = []
    for label in labels:
        folders = runs.get(label, [])
        ours, items = _our_cells(pooled(folders))
        paper_cells = published.get(label, {})
        rows.append(ResultRow(label, len(folders), items, ours, paper_cells, contrasts.get(label)))
    return rows


def _our_cells(scores: CategoryScores) -> tuple[dict[tuple[str, str], Estimate], int]:
    table = table_of(scores)
    if table is None:
        return {}, 0
    cells: dict[tuple[str, str], Estimate] = {}
    for name, row in table.categories.items():
        cells |= {(name, axis): estimate for axis, estimate in row.axes.items()}
        cells[name, "score"] = row.score
    if len(table.categories) == len(CATEGORIES):
        cells[OVERALL] = table.overall
    return cells, sum(row.items for row in table.categories.values())


def _contrast(
    full: Sequence[CategoryScores], runs: Sequence[CategoryScores], paper: float | None
) -> Contrast | None:
    """Return the contrast of a row's runs, or None if it does not share items of all categories."""
    cells = _differences(pooled(full), pooled(runs))
    if OVERALL not in cells:
        return None
    by_seed: list[float] = []
    if len(full) == len(runs) > 1:
        pairs = [_differences(a, b) for a, b in zip(full, runs, strict=True)]
        by_seed = [pair[OVERALL].mean.value for pair in pairs if OVERALL in pair]
    return Contrast(cells, cells[OVERALL].p_value, tuple(by_seed), paper, (len(full), len(runs)))


def _differences(a: CategoryScores, b: CategoryScores) -> dict[tuple[str, str], Difference]:
    results = compare(a, b)
    if not set(CATEGORIES) <= set(results):
        results.pop("overall", None)
    return {(name, axis): difference for name, axes in results.items() for axis, difference in axes.items()}
