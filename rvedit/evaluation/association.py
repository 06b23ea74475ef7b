"""Rank agreement of two series: Spearman's rho, Kendall's tau-b and pairwise accuracy, with weighted rows.

With whole-number weights they are those of the series in which each row is repeated so often; rows of equal
origin are then tied, and pairs of them do not count.
"""

from __future__ import annotations

import numpy as np

from rvedit.evaluation.aggregate import Values
from rvedit.evaluation.bootstrap import Statistic

NAMES = ("spearman", "kendall", "accuracy")


def score_association(judge: Values, human: Values) -> Statistic:
    """Return the three coefficients of scores (rows,) as a function of weights, (n, rows) -> (n, 3).

    Pairwise accuracy is the share of the pairs that people rank differently which the judge ranks as they do;
    a tie of the judge counts half. It is Harrell's C: 0.5 is chance.
    """
    order_judge, order_human = (np.sign(x[:, None] - x) for x in (judge, human))
    decided, decided_judge = np.abs(order_human), np.abs(order_judge)
    concordance = order_judge * order_human
    below_judge, below_human = ((1 + order).T / 2 for order in (order_judge, order_human))

    def coefficients(weights: Values) -> Values:
        spearman = _pearson(weights @ below_judge, weights @ below_human, weights)
        concordant, pairs, pairs_judge = (
            ((weights @ matrix) * weights).sum(axis=1) for matrix in (concordance, decided, decided_judge)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            kendall = concordant / np.sqrt(pairs * pairs_judge)
            accuracy = (concordant + pairs) / (2 * pairs)
        return np.stack([spearman, kendall, accuracy], axis=1)

    return coefficients


def preference_association(judge: Values, human: Values) -> Statistic:
    """Return the three coefficients of signed preferences (rows,), which compare two edits each.

    Which edit comes first is arbitrary: the rank correlations are those of all rows in both orders. Accuracy
    is the share of the rows in which people prefer one that the judge prefers, too; its ties count half.
    """
    mirrored = score_association(*(np.concatenate([x, -x]) for x in (judge, human)))
    decided = np.abs(np.sign(human))
    right = (np.sign(judge) * np.sign(human) + decided) / 2

    def coefficients(weights: Values) -> Values:
        correlations = mirrored(np.concatenate([weights, weights], axis=1))[:, :2]
        with np.errstate(divide="ignore", invalid="ignore"):
            accuracy = (weights @ right) / (weights @ decided)
        return np.column_stack([correlations, accuracy])

    return coefficients


def _pearson(x: Values, y: Values, weights: Values) -> Values:
    """Return the weighted correlation of each row of x and y, (n, rows)."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (v - (v * weights).sum(axis=1, keepdims=True) / total for v in (x, y))
    covariance, var_x, var_y = ((weights * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    scale = np.sqrt(var_x * var_y)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(scale > 1e-9, covariance / scale, np.nan))
