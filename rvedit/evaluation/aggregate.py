"""From verdicts to the tables of the paper (Appendix D.3): categories, axes, overall; with intervals.

A category's cell on an axis is the mean over its items; its score is the mean of the three axes; Overall is
the mean of the categories, so that none weighs more for having more items. Several repeats of an item are
averaged first. Dropped items are left out, never imputed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvedit.evaluation.scores import AXES, Scores

Values = NDArray[np.float64]
CategoryScores = Mapping[str, Mapping[str, Sequence[Scores]]]
"""category -> item -> its repeats' scores."""
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CategoryRow:
    """A category of one judge's table."""

    items: int
    axes: dict[str, Estimate]
    score: Estimate
    """Mean of the axes."""


@dataclass(frozen=True)
class Table:
    """One judge's."""

    categories: dict[str, CategoryRow]
    axes: dict[str, Estimate]
    """Mean over categories."""
    overall: Estimate
    """Mean over categories of their scores."""


def overall_of_cells(cells: Iterable[Sequence[float]]) -> float:
    """Overall from printed cells: three axes for each category, as in Table 1."""
    return float(np.mean([np.mean(axes) for axes in cells]))


def table_of(scores: CategoryScores, seed: int = 0) -> Table | None:
    """The table of one judge's scores; none where nothing was scored.

    Intervals are percentiles of a bootstrap over items, stratified by category, the axes of an item kept
    together.
    """
    names = sorted(scores, key=_place)
    values = {name: item_means(scores[name]) for name in names if scores[name]}
    if not values:
        return None
    rng = np.random.default_rng(seed)
    means = {name: rows.mean(axis=0) for name, rows in values.items()}
    drawn = {name: resampled_means(rows, rng) for name, rows in values.items()}

    def estimate(of: Callable[[Values], Values], name: str | None = None) -> Estimate:
        """Of a category, or of the mean over all; `of` works on (..., axes)."""
        value, resamples = (
            np.mean(list(x.values()), axis=0) if name is None else x[name] for x in (means, drawn)
        )
        return estimate_of(float(of(value)), of(resamples))

    def of_axis(index: int) -> Callable[[Values], Values]:
        return lambda x: x[..., index]

    def mean(x: Values) -> Values:
        return np.asarray(x.mean(axis=-1))

    def by_axis(name: str | None = None) -> dict[str, Estimate]:
        return {axis: estimate(of_axis(index), name) for index, axis in enumerate(AXES)}

    rows = {name: CategoryRow(len(values[name]), by_axis(name), estimate(mean, name)) for name in values}
    return Table(rows, by_axis(), estimate(mean))


def item_means(items: Mapping[str, Sequence[Scores]]) -> Values:
    """(items, axes): the mean over each item's repeats."""
    return np.array([mean_of(repeats).values for repeats in items.values()])


def mean_of(repeats: Sequence[Scores]) -> Scores:
    """Of several verdicts on one item."""
    return Scores(*np.mean([s.values for s in repeats], axis=0).tolist())


def estimate_of(value: float, resamples: Values) -> Estimate:
    """A value with the percentiles of its bootstrap."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resamples, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def group(scored: Iterable[tuple[str, str, Scores]]) -> dict[str, dict[str, list[Scores]]]:
    """(category, item, scores) -> category -> item -> scores."""
    grouped: dict[str, dict[str, list[Scores]]] = defaultdict(lambda: defaultdict(list))
    for category, item, scores in scored:
        grouped[category][item].append(scores)
    return {name: dict(items) for name, items in grouped.items()}


def _place(category: str) -> int:
    """As in the paper's tables."""
    order = ("change", "remove", "add", "style")
    return order.index(category) if category in order else len(order)


def resampled_means(rows: Values, rng: np.random.Generator) -> Values:
    """(items, columns) -> (resamples, columns): means of items drawn with replacement."""
    # Counts instead of indices: resamples x items numbers, and one matrix product.
    counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
    return np.asarray(counts @ rows / len(rows))


def pooled(runs: Sequence[CategoryScores]) -> CategoryScores:
    """Several runs' scores as repeats of the same items, each run's own repeats averaged first: runs count
    equally, and only items count that all of them have.
    """
    merged: dict[str, dict[str, list[Scores]]] = {}
    for category in runs[0] if runs else ():
        shared = set.intersection(*(set(run.get(category, {})) for run in runs))
        items = {item: [mean_of(run[category][item]) for run in runs] for item in sorted(shared)}
        if items:
            merged[category] = items
    return merged
