"""Editors' strengths with intervals, the matrix of wins, and how many more comparisons tell two apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rvedit.evaluation.aggregate import CONFIDENCE, Estimate, Values
from rvedit.evaluation.bootstrap import bootstrap
from rvedit.evaluation.bradley_terry import (
    fit_strengths,
    information,
    pairs_of,
    reachable,
    strength_statistic,
)
from rvedit.evaluation.statistics import scipy_stats

POWER = 0.8
MOST_NEEDED = 100_000
MIN_ITEMS = 5
"""Number of items from which on there are intervals."""


@dataclass(frozen=True)
class EditorRow:
    """An editor's results."""

    name: str
    wins: int
    ties: int
    losses: int
    strength: Estimate | None
    """Log strength, mean 0 over the editors; None if comparisons do not link all editors, or are few."""
    unbounded: bool
    """Whether its strength has no bound, as some editors, or a group of them, won against all others."""


@dataclass(frozen=True)
class PairRow:
    """Two editors against each other."""

    left: str
    right: str
    wins: int
    ties: int
    losses: int
    difference: Estimate | None
    """Of the log strengths, left minus right."""
    unbounded: bool
    """Whether the difference has no bound, as in `EditorRow`."""
    apart: bool
    """Whether the interval of the difference excludes 0."""
    needed: int | None
    """More comparisons of the two that tell them apart; None if unknown or above MOST_NEEDED."""


@dataclass(frozen=True)
class ArenaTable:
    """The results of all comparisons of a category, or of all."""

    items: int
    comparisons: int
    editors: tuple[EditorRow, ...]
    """The strongest first."""
    pairs: tuple[PairRow, ...]
    tie_rate: float


def arena_table(editors: Sequence[str], wins: Values, ties: Values, seed: int = 0) -> ArenaTable:
    """Return the results of wins and ties, as `count_outcomes` returns them; intervals are over items."""
    items = len(wins)
    won, tied = wins.sum(axis=0), ties.sum(axis=0)
    played = won + won.T + tied
    first, second = pairs_of(len(editors))
    estimates: list[Estimate | None] = [None] * (len(editors) + len(first))
    log_tie = np.zeros(1)
    if items >= MIN_ITEMS and reachable(played).all():
        estimates = bootstrap(strength_statistic(wins, ties), items, seed)
        log_tie = fit_strengths(won[None], tied[None]).log_tie
    reached = reachable(won + tied)
    bounded = reached & reached.T
    rows = []
    for i, name in enumerate(editors):
        w, t, lost = (int(x) for x in (won[i].sum(), tied[i].sum(), won[:, i].sum()))
        rows.append(EditorRow(name, w, t, lost, estimates[i], not bounded[i].all()))
    rows.sort(key=lambda row: -row.strength.value if row.strength else -row.wins)
    pairs = []
    for number, (i, j) in enumerate(zip(first, second, strict=True)):
        difference = estimates[len(editors) + number]
        apart = difference is not None and difference.low * difference.high > 0
        needed = None if difference is None else 0 if apart else comparisons_needed(difference, log_tie)
        w, t, lost = (int(x) for x in (won[i, j], tied[i, j], won[j, i]))
        unbounded = not bounded[i, j]
        pairs.append(PairRow(editors[i], editors[j], w, t, lost, difference, unbounded, apart, needed))
    total = float(played.sum() / 2)
    return ArenaTable(
        items, round(total), tuple(rows), tuple(pairs), float(tied.sum() / 2 / total) if total else 0.0
    )


def comparisons_needed(difference: Estimate, log_tie: Values) -> int | None:
    """Return how many more comparisons of two editors tell them apart with a power of 80%.

    A two-sided test at 5% of a true difference as large as the estimate needs a standard error of
    |difference| / (1.96 + 0.84). Each comparison adds its Fisher information to the inverse variance, at
    first that of the interval.
    """
    normal = scipy_stats().norm
    quantile = float(normal.ppf((1 + CONFIDENCE) / 2))
    error = (difference.high - difference.low) / (2 * quantile)
    if difference.value == 0 or error == 0:
        return None
    goal = ((quantile + float(normal.ppf(POWER))) / difference.value) ** 2
    gain = float(information(np.array([difference.value]), log_tie)[0])
    needed = math.ceil(max(0.0, goal - 1 / error**2) / gain)
    return needed if needed <= MOST_NEEDED else None
