"""Intervals and savings of `rvedit judge arena`, on simulated editors whose strengths are known.

    python benchmarks/arena_simulation.py --out benchmarks/results/arena_simulation.json

The judge prefers the better of two edits by the Bradley-Terry model, and leans by a constant (0.5 on the
logit scale) towards the edit that it sees first. It is asked in both orders; disagreement is a tie.

Coverage: all pairs of editors on all items; how many of 100 (and 200) runs' 95% intervals contain each
editor's true strength. The same of runs whose comparisons were chosen by `--budget`.

Savings: 480 comparisons in random order, against those that `--budget` chooses. How many of the latter give
the same result, averaged over the runs: the interval of the difference between the two closest editors; as
many pairs told apart; the mean interval of all strengths.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, print_table, write_json

from rvedit.evaluation.arena import ROUND
from rvedit.evaluation.arena_schedule import EXPLORE, Matchup, Pool
from rvedit.evaluation.bootstrap import bca_estimate, resample
from rvedit.evaluation.bradley_terry import Outcome, count_outcomes, pairs_of, strength_statistic

BIAS = 0.5
EDITORS = {
    "four, even": np.array([1.5, 0.5, -0.5, -1.5]),
    "four, two of them close": np.array([1.0, 0.2, -0.1, -1.1]),
    "six, two of them close": np.array([2.2, 1.6, 0.3, 0.0, -1.4, -2.7]),
    "eight, two of them close": np.array([3.2, 2.3, 1.3, 0.6, 0.3, -1.1, -2.5, -4.1]),
}
BUDGET, STEP = 480, 48


def compare(strengths, matchup, rng):
    """Return the outcome of asking in both orders."""
    half = (strengths[matchup.left] - strengths[matchup.right]) / 2
    prefers_left = rng.random(2) < 1 / (1 + np.exp(-half + np.array([-BIAS, BIAS])))
    return Outcome(matchup.item, matchup.left, matchup.right, float(prefers_left.mean()))


def choose(pool, outcomes, adaptive, items, editors, budget):
    if not adaptive:
        return [pool.take_random() for _ in range(min(ROUND, len(pool)))]
    wins, ties = (x.sum(axis=0) for x in count_outcomes(outcomes, items, editors))
    return pool.take_best(wins, ties, ROUND, explore=len(outcomes) < EXPLORE * budget)


def play(strengths, items, budget, adaptive, seed):
    """Yield the outcomes so far after each round."""
    rng = np.random.default_rng(seed)
    pool = Pool(np.ones((items, len(strengths)), bool), ["all"] * items, seed)
    outcomes = []
    while len(outcomes) < budget and len(pool):
        for matchup in choose(pool, outcomes, adaptive, items, len(strengths), budget):
            outcomes.append(compare(strengths, matchup, rng))
        yield outcomes


def intervals(outcomes, items, editors, resamples):
    """Return the (low, high) of strengths and differences, (editors + pairs, 2), over the items used."""
    used = {item: number for number, item in enumerate(sorted({o.item for o in outcomes}))}
    outcomes = [Outcome(used[o.item], o.left, o.right, o.score) for o in outcomes]
    statistic = strength_statistic(*count_outcomes(outcomes, len(used), editors))
    values, drawn, left_out = resample(statistic, len(used), resamples=resamples)
    found = [bca_estimate(float(v), drawn[:, i], left_out[:, i]) for i, v in enumerate(values)]
    return np.array([[e.low, e.high] for e in found])


def coverage(name, items, runs, resamples, budget=None):
    """Return how many of the runs' intervals contain the truth, as the mean over editors, per 100 runs."""
    strengths = EDITORS[name] - EDITORS[name].mean()
    editors = len(strengths)
    pairs = list(zip(*pairs_of(editors), strict=True))
    covered = np.zeros(editors)
    for run in range(runs):
        if budget:
            *_, outcomes = play(strengths, items, budget, True, run)
        else:
            rng = np.random.default_rng(run)
            outcomes = [
                compare(strengths, Matchup(item, *pair), rng) for item in range(items) for pair in pairs
            ]
        low, high = intervals(outcomes, items, editors, resamples)[:editors].T
        covered += (low <= strengths) & (strengths <= high)
    per_editor = (100 * covered / runs).tolist()
    mean = float(np.mean(per_editor))
    print(f"{name}, {items} items, budget {budget}: {mean:.1f} of 100 in {runs} runs", flush=True)
    return {
        "editors": name,
        "items": items,
        "budget": budget,
        "runs": runs,
        "covered_per_100": mean,
        "by_editor": per_editor,
    }


def measures(outcomes, strengths, items, resamples):
    """Return the width for the closest editors, minus the pairs told apart, and the strengths' mean width."""
    editors = len(strengths)
    first, second = pairs_of(editors)
    low, high = intervals(outcomes, items, editors, resamples).T
    closest = editors + int(np.abs(strengths[first] - strengths[second]).argmin())
    apart = (low * high > 0)[editors:].sum()
    return [(high - low)[closest], -float(apart), (high - low)[:editors].mean()]


def savings(name, runs, resamples, items=100):
    """Return which share of the random comparisons the chosen ones need for each measure."""
    strengths = EDITORS[name] - EDITORS[name].mean()
    target, curve = [], []
    for run in range(runs):
        *_, outcomes = play(strengths, items, BUDGET, False, run)
        target.append(measures(outcomes, strengths, items, resamples))
        steps = []
        for outcomes in play(strengths, items, BUDGET, True, 10**6 + run):
            if len(outcomes) % STEP == 0:
                steps.append(measures(outcomes, strengths, items, resamples))
        curve.append(steps)
    target, curve = np.mean(target, axis=0), np.mean(curve, axis=0)
    counts = np.arange(STEP, BUDGET + 1, STEP)
    needs = {}
    for i, measure in enumerate(("closest_pair", "pairs_apart", "mean_strength")):
        best = np.minimum.accumulate(curve[:, i])
        reached = best[-1] <= target[i]
        share = float(np.interp(-target[i], -best, counts) / BUDGET) if reached else None
        print(f"{name}: {measure} {target[i]:.3f} {curve[-1, i]:.3f} {share}", flush=True)
        needs[measure] = {"random": float(target[i]), "chosen": float(curve[-1, i]), "share_needed": share}
    return {"editors": name, "items": items, "runs": runs, "random_comparisons": BUDGET, **needs}


def main():
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[100, 200], help="numbers of runs for coverage"
    )
    parser.add_argument("--saving-runs", type=int, default=30)
    parser.add_argument("--resamples", type=int, default=500)
    args = parser.parse_args()
    covered = [
        coverage(name, items, runs, args.resamples, budget)
        for runs in args.runs
        for name, items, budget in (
            ("four, even", 50, None),
            ("four, even", 100, None),
            ("six, two of them close", 100, None),
            ("six, two of them close", 100, 480),
        )
    ]
    print_table(
        ["editors", "items", "comparisons", "runs", "covered", "by editor"],
        [
            [
                r["editors"], str(r["items"]), str(r["budget"] or "all"), str(r["runs"]),
                f"{r['covered_per_100']:.1f}", " ".join(f"{x:.0f}" for x in r["by_editor"]),
            ]
            for r in covered
        ],
    )  # fmt: skip
    saved = [savings(name, args.saving_runs, min(args.resamples, 400)) for name in EDITORS]
    names = ("closest_pair", "pairs_apart", "mean_strength")
    print_table(
        ["editors", *(f"{name}: random, chosen, share needed" for name in names)],
        [
            [
                r["editors"],
                *(
                    f"{r[n]['random']:.2f} {r[n]['chosen']:.2f} {r[n]['share_needed'] or float('nan'):.2f}"
                    for n in names
                ),
            ]
            for r in saved
        ],
    )
    write_json(args, {"coverage": covered, "savings": saved})


if __name__ == "__main__":
    main()
