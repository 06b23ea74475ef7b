"""How often the 95% intervals of `rvedit judge agreement` contain the truth, for simulated raters.

    python benchmarks/rater_agreement.py --out benchmarks/results/rater_agreement.json

An edit has a quality q from N(0, 1). A rater gives the number of the cut points -1, 0 and 1 that q + noise
exceeds, plus 1, so a score of 1 to 4; the judge gives q + noise. The truth is that of infinitely many edits
with the same raters' noise: alpha from the exact coincidences, the integral over q of the product of two
raters' probabilities; accuracy from a million independent pairs of edits, ranked by the judge and by the mean
of the raters. Percentile intervals of the same resamples stand beside, for comparison.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from _common import arguments, print_table, write_json
from scipy.stats import norm

from rvedit.evaluation.aggregate import estimate_of
from rvedit.evaluation.association import score_association
from rvedit.evaluation.bootstrap import bca_estimate, resample
from rvedit.evaluation.krippendorff import alpha_of_coincidences, alpha_statistic

CUTS = np.array([-1.0, 0.0, 1.0])
CASES = (
    {"items": 50, "raters": 3, "noise": 0.5, "missing": 0.0},
    {"items": 100, "raters": 3, "noise": 0.5, "missing": 0.0},
    {"items": 100, "raters": 2, "noise": 1.0, "missing": 0.0},
    {"items": 249, "raters": 5, "noise": 1.0, "missing": 0.4},
)
JUDGE_NOISE = 0.7


def rate(quality, noise, raters, rng):
    """Return scores of 1 to 4, (items, raters)."""
    seen = quality[:, None] + rng.normal(0, noise, (len(quality), raters))
    return 1.0 + (seen[..., None] > CUTS).sum(axis=-1)


def true_alpha(noise):
    quality = np.linspace(-8, 8, 8001)
    density = norm.pdf(quality) * (quality[1] - quality[0])
    above = norm.cdf((quality[:, None] - CUTS) / noise)
    edges = np.column_stack([np.ones_like(quality), above, np.zeros_like(quality)])
    levels = -np.diff(edges, axis=1)
    pairs = np.einsum("q,qi,qj->ij", density, levels, levels)
    many = 1e9  # the correction for small samples vanishes
    return float(alpha_of_coincidences(many * pairs[None], np.arange(1.0, 5), "ordinal")[0])


def true_accuracy(case, rng, pairs=1_000_000):
    quality = rng.normal(size=2 * pairs)
    scores = simulate(case, quality, rng)
    judge, human = scores[0].reshape(2, pairs), np.nanmean(scores[1], axis=1).reshape(2, pairs)
    order = np.sign(human[0] - human[1])
    decided = order != 0
    return float((np.sign(judge[0] - judge[1]) == order)[decided].mean())


def simulate(case, quality, rng):
    """Return the judge's scores (items,) and the raters' (items, raters); each edit keeps one at least."""
    human = rate(quality, case["noise"], case["raters"], rng)
    missing = rng.random(human.shape) < case["missing"]
    missing[:, 0] &= ~missing.all(axis=1)
    human[missing] = np.nan
    return quality + rng.normal(0, JUDGE_NOISE, len(quality)), human


def intervals_of(judge, human, resamples):
    """Return the BCa and percentile estimates of alpha and accuracy."""
    alpha, associate = alpha_statistic(human), score_association(judge, np.nanmean(human, axis=1))

    def statistic(weights):
        return np.concatenate([alpha(weights), associate(weights)[:, 2:]], axis=1)

    values, drawn, left_out = resample(statistic, len(judge), resamples=resamples)
    return {
        name: {
            "bca": bca_estimate(float(values[i]), drawn[:, i], left_out[:, i]),
            "percentile": estimate_of(float(values[i]), drawn[:, i]),
        }
        for i, name in enumerate(("alpha", "accuracy"))
    }


def coverage(case, runs, resamples, first_seed):
    """Return the truth and how many of the runs' intervals contain it, by coefficient and method."""
    truth = {
        "alpha": true_alpha(case["noise"]),
        "accuracy": true_accuracy(case, np.random.default_rng(10**6)),
    }
    covered = Counter()
    for run in range(runs):
        rng = np.random.default_rng(first_seed + run)
        judge, human = simulate(case, rng.normal(size=case["items"]), rng)
        for name, methods in intervals_of(judge, human, resamples).items():
            for method, estimate in methods.items():
                covered[f"{name}_{method}"] += estimate.low <= truth[name] <= estimate.high
    return {**case, "runs": runs, **{f"true_{k}": v for k, v in truth.items()}, "covered": dict(covered)}


def main():
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000], help="numbers of simulated runs")
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args()
    results = [coverage(case, runs, args.resamples, first_seed=0) for runs in args.runs for case in CASES]
    columns = [f"{name}_{method}" for name in ("alpha", "accuracy") for method in ("bca", "percentile")]
    rows = [
        [
            f"{r['items']} items, {r['raters']} raters, noise {r['noise']}, {r['missing']:.0%} missing",
            str(r["runs"]), f"{r['true_alpha']:.3f}", f"{r['true_accuracy']:.3f}",
            *(f"{100 * r['covered'][name] / r['runs']:.1f}%" for name in columns),
        ]
        for r in results
    ]  # fmt: skip
    print_table(["case", "runs", "alpha", "accuracy", *(c.replace("_", ", ") for c in columns)], rows)
    write_json(args, {"results": results})


if __name__ == "__main__":
    main()
