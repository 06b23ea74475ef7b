"""Aggregate scores into the tables of the paper (Appendix D.3), with bootstrap intervals.

A category's cell on an axis is the mean over its items; its score is the mean of the three axes; Overall is
the mean of the categories, so every category has the same weight however many items it has. Repeats of an
item are averaged first. Dropped items are left out, never imputed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvedit.evaluation.scores import AXES, Scores
from rvedit.io.records import Category

Values = NDArray[np.float64]
CategoryScores = Mapping[str, Mapping[str, Sequence[Scores]]]
"""category -> item -> scores of its repeats."""
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its bootstrap confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CategoryRow:
    """One category in a judge's table."""

    items: int
    axes: dict[str, Estimate]
    score: Estimate
    """Mean of the axes."""


@dataclass(frozen=True)
class Table:
    """One judge's scores by category and axis."""

    categories: dict[str, CategoryRow]
    axes: dict[str, Estimate]
    """Mean over categories."""
    overall: Estimate
    """Mean over the categories' scores."""


def overall_of_cells(cells: Iterable[Sequence[float]]) -> float:
    """Return Overall from printed cells: the three axes of each category, as in Table 1."""
    return float(np.mean([np.mean(axes) for axes in cells]))


def table_of(scores: CategoryScores, seed: int = 0) -> Table | None:
    """Return the table of one judge's scores in the paper's order, or None if nothing was scored.

    Intervals are percentiles of a bootstrap over items, stratified by category; an item's axes are resampled
    together.
    """
    names = dict.fromkeys([*(category.value for category in Category), *scores])
    rows = {name: item_means(scores[name]) for name in names if scores.get(name)}
    if not rows:
        return None
    rng = np.random.default_rng(seed)
    means = {name: values.mean(axis=0) for name, values in rows.items()}
    resamples = {name: resampled_means(values, rng) for name, values in rows.items()}
    categories = {
        name: CategoryRow(len(values), *_axis_estimates(means[name], resamples[name]))
        for name, values in rows.items()
    }
    over_categories = [np.mean(list(x.values()), axis=0) for x in (means, resamples)]
    return Table(categories, *_axis_estimates(*over_categories))


def _axis_estimates(means: Values, resamples: Values) -> tuple[dict[str, Estimate], Estimate]:
    """Return the estimate of each axis and of their mean; means (axes,), resamples (resamples, axes)."""
    axes = {axis: estimate_of(float(means[i]), resamples[:, i]) for i, axis in enumerate(AXES)}
    return axes, estimate_of(float(means.mean()), resamples.mean(axis=-1))


def item_means(items: Mapping[str, Sequence[Scores]]) -> Values:
    """Return the mean over each item's repeats, (items, axes)."""
    return np.array([mean_of(repeats).values for repeats in items.values()])


def mean_of(repeats: Sequence[Scores]) -> Scores:
    """Return the mean of several scores of one item."""
    return Scores(*np.mean([s.values for s in repeats], axis=0).tolist())


def estimate_of(value: float, resamples: Values) -> Estimate:
    """Return a value with the percentile interval of its bootstrap resamples."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resamples, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def group(scored: Iterable[tuple[str, str, Scores]]) -> dict[str, dict[str, list[Scores]]]:
    """Group (category, item, scores) as category -> item -> list of scores."""
    grouped: dict[str, dict[str, list[Scores]]] = {}
    for category, item, scores in scored:
        grouped.setdefault(category, {}).setdefault(item, []).append(scores)
    return grouped


def resampled_means(rows: Values, rng: np.random.Generator) -> Values:
    """Return bootstrap means, (resamples, columns), of items (items, columns) drawn with replacement."""
    # How often each item is drawn, instead of indices: needs one matrix product.
    return np.asarray(draw_counts(len(rows), rng) @ rows / len(rows))


def draw_counts(items: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Return how often each item is drawn with replacement, (resamples, items)."""
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples)


def pooled(runs: Sequence[CategoryScores]) -> CategoryScores:
    """Return the scores of several runs as repeats of the same items, keeping the items that all runs have.

    Each run's own repeats are averaged first, so that runs have equal weight.
    """
    merged: dict[str, dict[str, list[Scores]]] = {}
    for category in runs[0] if runs else ():
        shared = set.intersection(*(set(run.get(category, {})) for run in runs))
        items = {item: [mean_of(run[category][item]) for run in runs] for item in sorted(shared)}
        if items:
            merged[category] = items
    return merged
