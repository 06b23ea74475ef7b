"""Tables 1 to 3: ours beside the paper's, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rvedit.analysis.paper import CATEGORIES, Cells, PaperEntry, row_names
from rvedit.evaluation.aggregate import CategoryScores, Estimate, pooled, table_of
from rvedit.evaluation.scores import AXES
from rvedit.evaluation.statistics import Difference, compare

NOISE = 0.05
"""Above this p-value a difference is not told from noise."""
OVERALL = ("overall", "score")


@dataclass(frozen=True)
class Contrast:
    """A row less the full model, on the items that both have."""

    cells: dict[tuple[str, str], Difference]
    """By category and axis."""
    p_value: float
    """Of overall: paired permutation over items, corrected over the rows by Benjamini and Hochberg."""
    by_seed: tuple[float, ...]
    """Overall, of each training seed: the n-th runs of both; empty unless both have as many, and several."""
    paper: float | None
    """The same difference in the paper."""
    trainings: tuple[int, int] = (1, 1)
    """Of the full model and of this row."""

    @property
    def overall(self) -> Difference:
        """Mean over categories and axes."""
        return self.cells[OVERALL]

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """95%, by t, of the mean over training seeds; none for a single one."""
        if len(self.by_seed) < 2:
            return None
        from scipy.stats import t

        mean, error = np.mean(self.by_seed), np.std(self.by_seed, ddof=1) / np.sqrt(len(self.by_seed))
        half = float(t.ppf(0.975, len(self.by_seed) - 1) * error)
        return float(mean) - half, float(mean) + half

    @property
    def verdict(self) -> str:
        """Whether the paper's sign holds. Items and, where there are several, trainings must tell it."""
        if self.paper is None:
            return "not in the paper"
        interval = self.seed_interval
        across_zero = interval is not None and interval[0] <= 0 <= interval[1]
        if self.p_value >= NOISE or across_zero:
            return "not told apart"
        word = "holds" if np.sign(self.overall.mean.value) == np.sign(self.paper) else "the other way round"
        if interval:
            return word
        return f"{word} ({'one training' if self.trainings == (1, 1) else 'unpaired trainings'})"


@dataclass(frozen=True)
class ResultRow:
    """A configuration: ours and the paper's."""

    label: str
    runs: int
    """Judged folders, such as one for each training seed."""
    items: int
    """That all of them have."""
    ours: dict[tuple[str, str], Estimate]
    """As `Cells`; empty where nothing was judged, and without overall where a category is missing."""
    paper: Cells
    contrast: Contrast | None
    """None for the full model, and where one of the two has no overall score."""


def result_rows(
    paper: Sequence[PaperEntry], judged: Mapping[str, Sequence[CategoryScores]], judge: str, full: str
) -> list[ResultRow]:
    """The paper's rows in their order, then those that it does not have; `judged` is by label.

    `full` is the row that others are compared with. Intervals and p-values are over items; how much another
    training would change is told by the seeds alone.
    """
    names = row_names(paper)
    full = names.get(full, full)
    runs: dict[str, list[CategoryScores]] = {}
    for label, scores in judged.items():
        runs.setdefault(names.get(label, label), []).extend(scores)
    labels = dict.fromkeys((*(entry.label for entry in paper), *runs))
    cells = {entry.label: entry.cells.get(judge, entry.cells["qwen"]) for entry in paper}
    scores_of = {label: pooled(scores) for label, scores in runs.items()}
    contrasts: dict[str, Contrast] = {}
    for label in labels:
        if label != full and label in runs and full in runs:
            contrast = _contrast(runs[full], runs[label])
            if contrast:
                printed = [cells.get(name, {}).get(OVERALL) for name in (label, full)]
                both = printed[0] is not None and printed[1] is not None
                contrasts[label] = replace(contrast, paper=printed[0] - printed[1] if both else None)  # type: ignore[operator]
    corrected = _corrected({label: contrast.p_value for label, contrast in contrasts.items()})
    rows = []
    for label in labels:
        ours, items = _ours(scores_of.get(label, {}))
        contrast = contrasts.get(label)
        if contrast is not None:
            contrast = replace(contrast, p_value=corrected[label])
        rows.append(ResultRow(label, len(runs.get(label, ())), items, ours, cells.get(label, {}), contrast))
    return rows


def _ours(scores: CategoryScores) -> tuple[dict[tuple[str, str], Estimate], int]:
    table = table_of({name: scores[name] for name in CATEGORIES if name in scores})
    if table is None:
        return {}, 0
    cells: dict[tuple[str, str], Estimate] = {}
    for name in CATEGORIES:
        if row := table.categories.get(name):
            cells |= {(name, axis): row.axes[axis] for axis in AXES}
            cells[name, "score"] = row.score
    if len(table.categories) == len(CATEGORIES):
        cells[OVERALL] = table.overall
    return cells, sum(row.items for row in table.categories.values())


def _contrast(full: Sequence[CategoryScores], other: Sequence[CategoryScores]) -> Contrast | None:
    """None where the two do not share items of all categories."""
    found = _differences(pooled(full), pooled(other))
    if OVERALL not in found:
        return None
    by_seed: list[float] = []
    if len(full) == len(other) > 1:
        pairs = [_differences(a, b) for a, b in zip(full, other, strict=True)]
        by_seed = [pair[OVERALL].mean.value for pair in pairs if OVERALL in pair]
    return Contrast(found, found[OVERALL].p_value, tuple(by_seed), None, (len(full), len(other)))


def _differences(a: CategoryScores, b: CategoryScores) -> dict[tuple[str, str], Difference]:
    left, right = ({name: side[name] for name in CATEGORIES if name in side} for side in (a, b))
    results = compare(left, right)
    if not set(CATEGORIES) <= set(results):
        results.pop("overall", None)
    return {(name, axis): difference for name, axes in results.items() for axis, difference in axes.items()}


def _corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    if not p_values:
        return {}
    from scipy.stats import false_discovery_control

    return dict(zip(p_values, map(float, false_discovery_control(list(p_values.values()))), strict=True))
