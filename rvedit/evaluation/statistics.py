"""Paired comparison of two models' scores, and agreement of two judges."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Difference:
    """The difference B minus A."""

    items: int
    """Number of items in both."""
    only_a: int
    only_b: int
    mean: Estimate
    p_value: float
    """Of a two-sided paired permutation test, which flips the signs of the items' differences."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on an axis, over the items that both scored."""

    items: int
    spearman: float | None
    kendall: float | None
    mean_difference: float
    """Mean of the second judge minus the first."""
    mean_absolute_difference: float


def compare(a: CategoryScores, b: CategoryScores, seed: int = 0) -> dict[str, dict[str, Difference]]:
    """Return B minus A over the items in both: category or "overall" -> axis or "score" (mean of the axes).

    Overall is the mean of the categories, as in the tables; its test flips items within their categories.
    """
    paired = {name: right - left for name, (left, right) in _shared_items(a, b).items()}
    paired = {name: np.column_stack([rows, rows.mean(axis=1)]) for name, rows in paired.items()}
    results = {}
    for name in (*paired, "overall") if paired else ():
        groups = [rows for category, rows in paired.items() if name in (category, "overall")]
        num_shared = sum(len(rows) for rows in groups)
        num_a, num_b = (
            sum(len(items) for category, items in side.items() if name in (category, "overall"))
            for side in (a, b)
        )
        counts = (num_shared, num_a - num_shared, num_b - num_shared)
        results[name] = {
            column: _difference([rows[:, i] for rows in groups], counts, seed)
            for i, column in enumerate((*AXES, "score"))
        }
    return results


def _difference(groups: list[Values], counts: tuple[int, int, int], seed: int) -> Difference:
    """Return the mean over categories of their items' mean difference; `groups` has an array per category.

    `counts` are the items in both, only in A and only in B.
    """
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(rows), 1 / len(rows) / len(groups)) for rows in groups])
    mean = float(values @ weights)
    if len(values) < 2 or not values.any():
        return Difference(*counts, mean=Estimate(mean, mean, mean), p_value=1.0)
    rng = np.random.default_rng(seed)
    resamples = np.mean([resampled_means(rows[:, None], rng)[:, 0] for rows in groups], axis=0)
    test = scipy_stats().permutation_test(
        (values,),
        lambda x, axis: (x * weights).sum(axis=axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=rng,
    )
    return Difference(*counts, mean=estimate_of(mean, resamples), p_value=float(test.pvalue))


def agreement(a: CategoryScores, b: CategoryScores) -> dict[str, Agreement]:
    """Return the agreement of two judges by axis; empty if they share no item. Repeats are averaged first."""
    shared = _shared_items(a, b)
    if not shared:
        return {}
    x, y = (np.concatenate(side) for side in zip(*shared.values(), strict=True))
    results = {}
    for index, axis in enumerate(AXES):
        left, right = x[:, index], y[:, index]
        can_rank = np.ptp(left) > 0 and np.ptp(right) > 0
        results[axis] = Agreement(
            len(left),
            float(scipy_stats().spearmanr(left, right).statistic) if can_rank else None,
            float(scipy_stats().kendalltau(left, right).statistic) if can_rank else None,
            float((right - left).mean()),
            float(np.abs(right - left).mean()),
        )
    return results


def scipy_stats() -> Any:
    """Return scipy.stats. Raises UserError if it is not installed."""
    try:
        from scipy import stats
    except ImportError:
        raise UserError("the statistics of judges need scipy: pip install 'rvedit[judge]'") from None
    return stats


def _shared_items(a: CategoryScores, b: CategoryScores) -> dict[str, tuple[Values, Values]]:
    """Return the means of the items in both, (items, axes) for each side, by category."""
    pairs = {}
    for name in sorted(a.keys() & b.keys()):
        if shared := sorted(a[name].keys() & b[name].keys()):
            left, right = (item_means({item: side[name][item] for item in shared}) for side in (a, b))
            pairs[name] = (left, right)
    return pairs
