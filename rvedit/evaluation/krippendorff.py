"""Krippendorff's alpha: how well several raters agree, some of whose ratings may be missing.

Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011). 1 is perfect agreement, 0 that of chance.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rvedit.evaluation.aggregate import Values
from rvedit.evaluation.bootstrap import Statistic

Metric = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: Values, metric: Metric = "ordinal") -> float:
    """Return alpha of ratings (items, raters), NaN where missing; NaN if nothing varies or is paired."""
    return float(alpha_statistic(ratings, metric)(np.ones((1, len(ratings))))[0, 0])


def alpha_statistic(ratings: Values, metric: Metric = "ordinal") -> Statistic:
    """Return alpha of ratings (items, raters) as a function of the items' weights, (n, items) -> (n, 1)."""
    levels = np.unique(ratings[~np.isnan(ratings)])
    coincidences = item_coincidences(ratings, levels).reshape(len(ratings), -1)

    def alpha(weights: Values) -> Values:
        pairs = (weights @ coincidences).reshape(-1, len(levels), len(levels))
        return alpha_of_coincidences(pairs, levels, metric)[:, None]

    return alpha


def item_coincidences(ratings: Values, levels: Values) -> Values:
    """Return how often each two levels meet in an item, (items, levels, levels), for ratings (items, raters).

    An item of m ratings has m (m - 1) ordered pairs, each of weight 1 / (m - 1).
    """
    counts = (ratings[:, :, None] == levels).sum(axis=1).astype(float)
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(len(levels))
    pairs[:, diagonal, diagonal] -= counts
    return np.asarray(pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None])


def alpha_of_coincidences(pairs: Values, levels: Values, metric: Metric) -> Values:
    """Return alpha of coincidences (n, levels, levels): 1 - observed / expected disagreement, (n,)."""
    counts = pairs.sum(axis=2)
    total = counts.sum(axis=1)
    if metric == "nominal":
        distances = 1 - np.eye(len(levels))[None]
    else:
        # Between two levels of an ordinal scale lie the ratings that rank between them.
        ranks = np.cumsum(counts, axis=1) - counts / 2
        places = ranks if metric == "ordinal" else levels[None]
        distances = np.square(places[:, :, None] - places[:, None, :])
    observed = (pairs * distances).sum(axis=(1, 2))
    expected = (counts[:, :, None] * counts[:, None, :] * distances).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan))
