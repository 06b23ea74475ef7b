"""Which comparison to make next: any, in a random order, or one that helps to tell two editors apart.

Every choice is a function of the results so far, so that an interrupted run chooses the same again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rvedit.evaluation.aggregate import Values
from rvedit.evaluation.bradley_terry import fit_strengths, information, pairs_of
from rvedit.evaluation.statistics import scipy_stats

EXPLORE = 0.4
"""Share of a budget that is spent on all pairs alike, before the undecided ones are preferred."""
PRIOR_SD = 3.0
"""Standard deviation of the log strengths before any comparison, for the choice alone."""


@dataclass(frozen=True)
class Matchup:
    """Two editors, by their numbers, to compare on an item."""

    item: int
    left: int
    right: int


class Pool:
    """The comparisons that have not been made."""

    def __init__(self, has_edit: Values, categories: Sequence[str], seed: int = 0) -> None:
        """`has_edit` is a mask (items, editors); `categories` are the items'."""
        items, self.editors = has_edit.shape
        self._order = _mixed_order(categories, seed)
        self._used = np.zeros(items, int)
        first, second = pairs_of(self.editors)
        self.pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        self._left = [{i for i in range(items) if has_edit[i, a] and has_edit[i, b]} for a, b in self.pairs]
        self._rng = random.Random(seed)

    def __len__(self) -> int:
        """Return the number of comparisons."""
        return sum(map(len, self._left))

    @property
    def counts(self) -> Values:
        """The number of items left by pair."""
        return np.array([len(items) for items in self._left])

    def take(self, pair: int) -> Matchup:
        """Remove and return a comparison of a pair, on the item that has been used least."""
        items = self._left[pair]
        item = min(items, key=lambda i: (self._used[i], self._order[i]))
        items.remove(item)
        self._used[item] += 1
        return Matchup(item, *self.pairs[pair])

    def take_random(self) -> Matchup:
        """Remove and return a random comparison."""
        return self.take(self._rng.choices(range(len(self.pairs)), self.counts.tolist())[0])

    def take_best(self, wins: Values, ties: Values, count: int, explore: bool) -> list[Matchup]:
        """Remove and return up to `count` comparisons that lower the variance of undecided differences most.

        Greedy L-optimal design: the goal is the sum of the variances of all differences of two log strengths,
        each weighted by the square of its p-value, so that what is decided costs little more. With `explore`,
        all weigh the same: otherwise an editor that was lucky at first would not be tried again, and the
        intervals would cover too rarely (benchmarks/arena_simulation.py). Variances follow from the Fisher
        information of the comparisons that were made, at their fitted strengths. Each choice counts as made
        for the next one. `wins` and `ties` are the counts so far, (editors, editors).
        """
        first, second = pairs_of(self.editors)
        fitted = fit_strengths(wins[None], ties[None])
        theta = fitted.log_strength[0]
        per_comparison = information(theta[first] - theta[second], fitted.log_tie)
        played = (wins + wins.T + ties)[first, second]
        contrasts = np.zeros((len(self.pairs), self.editors))
        contrasts[range(len(self.pairs)), first], contrasts[range(len(self.pairs)), second] = 1, -1
        precision = np.eye(self.editors) / PRIOR_SD**2
        precision += (contrasts * (played * per_comparison)[:, None]).T @ contrasts
        variance = np.linalg.inv(precision)
        errors = np.sqrt(((contrasts @ variance) * contrasts).sum(axis=1))
        p_values = 2 * scipy_stats().norm.sf(np.abs(contrasts @ theta) / errors)
        weights = np.ones_like(p_values) if explore else p_values**2
        goal = (contrasts * weights[:, None]).T @ contrasts
        chosen = []
        for _ in range(min(count, len(self))):
            spread = contrasts @ variance
            inflation = 1 + per_comparison * (spread * contrasts).sum(axis=1)
            gain = per_comparison * ((spread @ goal) * spread).sum(axis=1) / inflation
            best = int(np.argmax(np.where(self.counts > 0, gain, -1)))
            variance = variance - per_comparison[best] / inflation[best] * np.outer(
                spread[best], spread[best]
            )
            chosen.append(self.take(best))
        return chosen


def _mixed_order(categories: Sequence[str], seed: int) -> list[float]:
    """Return ranks of the items by which they are used: random, and the categories in even shares."""
    rng = random.Random(seed)
    ranks = [0.0] * len(categories)
    for category in sorted(set(categories)):
        items = [i for i, name in enumerate(categories) if name == category]
        rng.shuffle(items)
        for place, item in enumerate(items):
            ranks[item] = (place + rng.random()) / len(items)
    return ranks
