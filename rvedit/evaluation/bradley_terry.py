"""Strengths of editors from pairwise comparisons with ties: the Bradley-Terry model, as Davidson extends it.

Davidson, "On Extending the Bradley-Terry Model to Accommodate Ties in Paired Comparison Experiments" (1970).
With d the difference of two log strengths, and v >= 0 the inclination to ties,

    P(win) = e^(d/2) / z,   P(tie) = v / z,   P(loss) = e^(-d/2) / z,   z = e^(d/2) + e^(-d/2) + v.

A tie counts as half a win for each side: wins plus half the ties are what the strengths depend on. The model
is exact for a judge that follows Bradley and Terry, prefers the first edit it sees by a constant b on its
logit scale, and is asked in both orders, with disagreement as a tie: then v = 2 cosh(b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvedit.evaluation.aggregate import Values
from rvedit.evaluation.bootstrap import Statistic

PRIOR_PRECISION = 0.01
"""Of the log strengths and of log v, so that an editor that wins always has a finite strength."""
MAX_STEPS, TOLERANCE, LONGEST_STEP = 60, 1e-8, 2.0


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison of two editors on an item."""

    item: int
    left: int
    right: int
    score: float
    """1 if left wins, 0.5 for a tie, 0 if right wins."""


@dataclass(frozen=True)
class Strengths:
    """Fitted log strengths, with mean 0, and log v."""

    log_strength: Values
    """(n, editors)."""
    log_tie: Values
    """(n,)."""


def count_outcomes(outcomes: Sequence[Outcome], items: int, editors: int) -> tuple[Values, Values]:
    """Return wins [item, i, j] of i over j, and ties, which are symmetric; (items, editors, editors)."""
    wins, ties = np.zeros((2, items, editors, editors))
    for o in outcomes:
        if o.score == 0.5:
            ties[o.item, o.left, o.right] += 1
            ties[o.item, o.right, o.left] += 1
        else:
            first, second = (o.left, o.right) if o.score == 1 else (o.right, o.left)
            wins[o.item, first, second] += 1
    return wins, ties


def probabilities(difference: Values, log_tie: Values) -> tuple[Values, Values, Values]:
    """Return the probabilities that the first wins, ties and loses, for differences of log strength."""
    logits = np.stack(np.broadcast_arrays(difference / 2, log_tie, -difference / 2))
    weights = np.exp(logits - logits.max(axis=0))
    win, tie, loss = weights / weights.sum(axis=0)
    return win, tie, loss


def information(difference: Values, log_tie: Values) -> Values:
    """Return the Fisher information of one comparison about the difference: the variance of its score."""
    win, _, loss = probabilities(difference, log_tie)
    return np.asarray((win + loss - (win - loss) ** 2) / 4)


def fit_strengths(wins: Values, ties: Values, start: Strengths | None = None) -> Strengths:
    """Return the strengths of the greatest posterior, by Newton's method.

    Args:
        wins, ties: weighted counts (n, editors, editors), of n data sets at once.
        start: where to start, with n = 1.
    """
    n, editors, _ = wins.shape
    played = wins + wins.transpose(0, 2, 1) + ties
    won, tied = (wins + ties / 2).sum(axis=2), ties.sum(axis=(1, 2)) / 2
    values = np.zeros((n, editors + 1))
    if start:
        values[:] = np.append(start.log_strength[0], start.log_tie[0])
    diagonal = np.arange(editors)
    for _ in range(MAX_STEPS):
        theta, log_tie = values[:, :-1], values[:, -1, None, None]
        win, tie, loss = probabilities(theta[:, :, None] - theta[:, None, :], log_tie)
        gradient = np.empty_like(values)
        gradient[:, :-1] = won - (played * (win + tie / 2)).sum(axis=2)
        gradient[:, -1] = tied - (played * tie).sum(axis=(1, 2)) / 2
        gradient -= PRIOR_PRECISION * values
        precision = np.zeros((n, editors + 1, editors + 1))
        curvature = played * (win + loss - (win - loss) ** 2) / 4
        precision[:, :-1, :-1] = -curvature
        precision[:, diagonal, diagonal] += curvature.sum(axis=2)
        with_tie = -(played * tie * (win - loss) / 2).sum(axis=2)
        precision[:, :-1, -1] = precision[:, -1, :-1] = with_tie
        precision[:, -1, -1] = (played * tie * (1 - tie)).sum(axis=(1, 2)) / 2
        precision += PRIOR_PRECISION * np.eye(editors + 1)
        step = np.linalg.solve(precision, gradient[..., None])[..., 0]
        step *= np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))
        values = values + step
        if np.abs(step).max() < TOLERANCE:
            break
    theta = values[:, :-1]
    return Strengths(theta - theta.mean(axis=1, keepdims=True), values[:, -1])


def strength_statistic(wins: Values, ties: Values) -> Statistic:
    """Return log strengths and all differences i < j of them as a function of the items' weights.

    `wins` and `ties` are those of `count_outcomes`; the result is (n, editors + pairs).
    """
    items, editors, _ = wins.shape
    fitted = fit_strengths(wins.sum(axis=0)[None], ties.sum(axis=0)[None])
    first, second = pairs_of(editors)

    def strengths(weights: Values) -> Values:
        counts = [(weights @ x.reshape(items, -1)).reshape(-1, editors, editors) for x in (wins, ties)]
        theta = fit_strengths(counts[0], counts[1], fitted).log_strength
        return np.concatenate([theta, theta[:, first] - theta[:, second]], axis=1)

    return strengths


def pairs_of(editors: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices (i, j) of all pairs i < j of editors."""
    return np.triu_indices(editors, 1)


def reachable(arrows: Values) -> NDArray[np.bool_]:
    """Return the mask [i, j] of whether arrows (editors, editors) lead from i to j.

    Strengths are finite only if the results "won or tied" lead from each editor to each other: Ford,
    "Solution of a Ranking Problem from Binary Comparisons" (1957).
    """
    return np.asarray(np.linalg.matrix_power((arrows > 0) + np.eye(len(arrows)), len(arrows)) > 0)
