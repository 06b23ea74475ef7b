"""Two variants against each other on the items that both have, and judges against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvedit.evaluation.aggregate import (
    CategoryScores,
    Estimate,
    Values,
    estimate_of,
    item_means,
    resampled_means,
)
from rvedit.evaluation.scores import AXES
from rvedit.io.errors import UserError

PERMUTATIONS = 9999
Counts = tuple[int, int, int]
"""Items that both have, that A alone has, that B alone has."""


@dataclass(frozen=True)
class Difference:
    """B minus A."""

    items: int
    """That both have."""
    only_a: int
    only_b: int
    mean: Estimate
    p_value: float
    """Two-sided: signs of the items' differences, permuted."""


@dataclass(frozen=True)
class Agreement:
    """Of two judges on an axis, over the items that both scored."""

    items: int
    spearman: float | None
    kendall: float | None
    mean_difference: float
    """Of the second minus the first."""
    mean_absolute_difference: float


def compare(a: CategoryScores, b: CategoryScores, seed: int = 0) -> dict[str, dict[str, Difference]]:
    """Per category, and overall; per axis, and of their mean ("score"). Only items that both have count.

    Overall is the mean of the categories, as in the tables; its items are flipped within their categories.
    """
    paired: dict[str, Values] = {}
    counts: dict[str, Counts] = {}
    for name in sorted(a.keys() | b.keys()):
        left, right = a.get(name, {}), b.get(name, {})
        both = sorted(left.keys() & right.keys())
        counts[name] = (len(both), len(left) - len(both), len(right) - len(both))
        if both:
            ours, theirs = (item_means({item: side[item] for item in both}) for side in (left, right))
            difference = theirs - ours
            paired[name] = np.column_stack([difference, difference.mean(axis=1)])
    columns = (*AXES, "score")
    results = {
        name: {column: _difference([rows[:, i]], counts[name], seed) for i, column in enumerate(columns)}
        for name, rows in paired.items()
    }
    if paired:
        both_all, only_a, only_b = (sum(column) for column in zip(*counts.values(), strict=True))
        total = (both_all, only_a, only_b)
        results["overall"] = {
            column: _difference([rows[:, i] for rows in paired.values()], total, seed)
            for i, column in enumerate(columns)
        }
    return results


def _difference(groups: list[Values], counts: Counts, seed: int) -> Difference:
    """Of the mean over categories (`groups`) of their items' mean difference."""
    permutation_test = _stats().permutation_test
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(rows), 1 / len(rows) / len(groups)) for rows in groups])
    mean = float(values @ weights)
    if len(values) < 2 or not values.any():
        return Difference(*counts, mean=Estimate(mean, mean, mean), p_value=1.0)
    rng = np.random.default_rng(seed)
    resamples = np.mean([resampled_means(rows[:, None], rng)[:, 0] for rows in groups], axis=0)
    test = permutation_test(
        (values,),
        lambda x, axis: (x * weights).sum(axis=axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=rng,
    )
    return Difference(*counts, mean=estimate_of(mean, resamples), p_value=float(test.pvalue))


def agreement(a: CategoryScores, b: CategoryScores) -> dict[str, Agreement]:
    """Of two judges, per axis; repeats of an item are averaged first."""
    first, second = _by_item(a), _by_item(b)
    both = sorted(first.keys() & second.keys())
    if not both:
        return {}
    x, y = (np.array([side[item] for item in both]) for side in (first, second))
    results = {}
    for index, axis in enumerate(AXES):
        left, right = x[:, index], y[:, index]
        ranked = len(both) > 1 and np.ptp(left) > 0 and np.ptp(right) > 0
        results[axis] = Agreement(
            len(both),
            float(_stats().spearmanr(left, right).statistic) if ranked else None,
            float(_stats().kendalltau(left, right).statistic) if ranked else None,
            float((right - left).mean()),
            float(np.abs(right - left).mean()),
        )
    return results


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise UserError("statistics of judges need scipy: pip install 'rvedit[judge]'") from None
    return stats


def _by_item(scores: CategoryScores) -> Mapping[tuple[str, str], Values]:
    return {
        (name, item): values
        for name, items in scores.items()
        for item, values in zip(items, item_means(items), strict=True)
    }
