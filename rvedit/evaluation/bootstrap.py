"""Bias-corrected and accelerated (BCa) bootstrap intervals over items (Efron, 1987), expanded for few items.

A statistic is a function of how often each item is drawn: weights (n, items) -> values (n, k), NaN where it
is undefined. Plain percentiles cover less often for coefficients that are bounded and skewed, such as
Krippendorff's alpha (benchmarks/rater_agreement.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rvedit.evaluation.aggregate import CONFIDENCE, RESAMPLES, Estimate, Values, draw_counts
from rvedit.evaluation.statistics import scipy_stats

Statistic = Callable[[Values], Values]
MIN_DEFINED = 0.9
"""Share of the resamples in which a statistic has to be defined for an estimate."""
BATCH = 250
"""Number of resamples that are computed at once."""


def bootstrap(
    statistic: Statistic, items: int, seed: int = 0, resamples: int = RESAMPLES
) -> list[Estimate | None]:
    """Return the k values of a statistic with their intervals.

    None for a value that is undefined, of all items or in more than a tenth of the resamples, and if there
    is one item alone.
    """
    values, drawn, left_out = resample(statistic, items, seed, resamples)
    return [bca_estimate(float(value), drawn[:, i], left_out[:, i]) for i, value in enumerate(values)]


def resample(
    statistic: Statistic, items: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Values, Values, Values]:
    """Return a statistic of all items (k,), of resamples (resamples, k), and without each item (items, k)."""
    counts = draw_counts(items, np.random.default_rng(seed), resamples).astype(float)
    drawn, left_out = (
        np.concatenate([statistic(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)])
        for rows in (counts, 1 - np.eye(items))
    )
    return statistic(np.ones((1, items)))[0], drawn, left_out


def bca_estimate(value: float, resamples: Values, left_out: Values) -> Estimate | None:
    """Return a value with its interval, or None as `bootstrap` does.

    Args:
        value: the statistic of all items.
        resamples: its bootstrap resamples, (n,).
        left_out: its values without each of the items, (items,).
    """
    resamples, total, items = resamples[~np.isnan(resamples)], len(resamples), len(left_out)
    if np.isnan(value) or items < 2 or len(resamples) < MIN_DEFINED * total:
        return None
    normal = scipy_stats().norm
    below = np.mean(resamples < value) + np.mean(resamples == value) / 2
    bias = normal.ppf(np.clip(below, 1 / total, 1 - 1 / total))
    influence = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    squares = float(np.square(influence).sum())
    acceleration = float((influence**3).sum()) / (6 * squares**1.5) if squares > 1e-24 else 0.0
    # Resamples vary by a factor of sqrt(1 - 1 / n) too little, and few items need Student's quantile
    # (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
    quantile = scipy_stats().t.ppf((1 + CONFIDENCE) / 2, items - 1) * (items / (items - 1)) ** 0.5
    shifted = bias + np.array([-quantile, quantile])
    low, high = np.quantile(resamples, normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    return Estimate(value, float(low), float(high))
