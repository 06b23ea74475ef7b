"""Measures without a model on the playground: do they rank known damage, and do they follow the exact judge?

    python benchmarks/measures.py --out benchmarks/results/measures.json

1. **Known damage.** True edits (for styles, the sources) are damaged by shifts, flicker, blur and color casts
   of four known strengths, none among them. A measure ranks two neighboring strengths rightly if the stronger
   damage is worse by it.
2. **The reference judge.** Edits of varied quality: blends of source and target, the target blurred,
   flickering, with noise or a cast, the source, and nano's edits. Spearman's coefficient of each measure,
   as its distance from the value of an unchanged clip, with each axis of the reference judge, over all edits
   and as the mean over edits of the same item. Positive: the farther from the source, the worse the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from rvedit import NANO, load_pipeline
from rvedit.evaluation.measure_table import DEFINITIONS
from rvedit.evaluation.model_free import measure_frames
from rvedit.evaluation.reference import measure, scores_of
from rvedit.evaluation.scores import AXES
from rvedit.io.records import Category
from rvedit.io.video.clip import Frames
from rvedit.playground.world import render, sample_triplet

SEED, FRAMES, SIDE = 11, 21, 128
FRAME_MEASURES = (
    "changed",
    "psnr",
    "ssim",
    "displacement",
    "frame_change",
    "warping_error",
    "sharpness",
    "color_shift",
)
CAST = np.array([1.0, -0.5, 0.25])
Damage = Callable[[Frames, float], Frames]


def clipped(values: np.ndarray) -> Frames:
    return values.round().clip(0, 255).astype(np.uint8)


def shift(clip: Frames, pixels: float) -> Frames:
    return np.roll(clip, int(pixels), axis=2)


def flicker(clip: Frames, levels: float) -> Frames:
    signs = np.where(np.arange(len(clip)) % 2, 1, -1)
    return clipped(clip + levels * signs[:, None, None, None])


def blur(clip: Frames, sigma: float) -> Frames:
    return gaussian_filter(clip, (0, sigma, sigma, 0)) if sigma else clip


def cast(clip: Frames, levels: float) -> Frames:
    return clipped(clip + levels * CAST)


def noise(clip: Frames, levels: float) -> Frames:
    return clipped(clip + np.random.default_rng(0).normal(0, levels, clip.shape))


# Damage -> function, strengths, and for each of its measures whether it rises with the damage.
DAMAGES: dict[str, tuple[Damage, tuple[float, ...], dict[str, bool]]] = {
    "shift": (shift, (0, 1, 2, 4), {"displacement": True}),
    "flicker": (flicker, (0, 4, 8, 16), {"frame_change": True, "warping_error": True}),
    "blur": (blur, (0, 0.5, 1, 2), {"sharpness": False}),
    "cast": (cast, (0, 8, 16, 32), {"color_shift": True}),
}


def triplets(count: int, realism: float) -> Iterator[tuple[Any, Frames, Frames]]:
    """Yield `count` triplets of each category with their clips."""
    left = dict.fromkeys(Category, count)
    index = 0
    while any(left.values()):
        triplet = sample_triplet(SEED, index, "test", realism=realism)
        index += 1
        if left[triplet.category]:
            left[triplet.category] -= 1
            yield triplet, *(render(scene, FRAMES, SIDE, SIDE) for scene in (triplet.source, triplet.target))


def ranking(count: int, realism: float) -> dict[str, dict[str, int]]:
    """Return how many pairs of neighboring strengths there are, and how many are ranked rightly."""
    results: dict[str, dict[str, int]] = {}
    for triplet, source, target in triplets(count, realism):
        base = source if triplet.category is Category.STYLE else target
        for name, (damage, strengths, rises) in DAMAGES.items():
            values = [measure_frames(zip(source, damage(base, s), strict=True)) for s in strengths]
            for measured, up in rises.items():
                row = results.setdefault(f"{name}: {measured}", {"pairs": 0, "right": 0})
                steps = [(b[measured] or 0) - (a[measured] or 0) for a, b in pairwise(values)]
                row["pairs"] += len(steps)
                row["right"] += sum(step > 0 if up else step < 0 for step in steps)
    return results


def edits_of(pipe: Any, triplet: Any, source: Frames, target: Frames) -> Iterator[Frames]:
    """Yield edits of varied quality."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield clipped(source * (1 - share) + target * share)
    for damage, strengths in ((blur, (0.7, 1.5)), (flicker, (4, 12)), (noise, (5, 15)), (cast, (10, 30))):
        yield from (damage(target, strength) for strength in strengths)
    yield edit_clip(pipe, source, triplet.instruction)


def correlation(count: int, realism: float) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return Spearman's coefficients: measure -> axis -> over all edits, and as the mean within items."""
    pipe = load_pipeline(NANO)
    items = []
    for triplet, source, target in triplets(count, realism):
        rows = []
        for edit in edits_of(pipe, triplet, source, target):
            measures = measure_frames(zip(source, edit, strict=True))
            exact = scores_of(measure(source, edit, target, triplet.category is Category.STYLE))
            rows.append((measures, exact.values))
        items.append(rows)
    results: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in FRAME_MEASURES:
        for axis, label in enumerate(AXES):
            pairs = [
                np.array(
                    [
                        (-abs(m[name] - DEFINITIONS[name].perfect), s[axis])
                        for m, s in rows
                        if m[name] is not None
                    ]
                )
                for rows in items
            ]
            within = [rank(p) for p in pairs if len(p) > 2]
            known = [value for value in within if value is not None]
            pooled = [p for p in pairs if len(p)]
            results.setdefault(name, {})[label] = {
                "all": rank(np.concatenate(pooled)) if pooled else None,
                "within": float(np.mean(known)) if known else None,
                "edits": sum(map(len, pairs)),
            }
    return results


def rank(pairs: np.ndarray) -> float | None:
    x, y = pairs.T
    return float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else None


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--count", type=int, default=4, help="triplets of each category")
    args = parser.parse_args()
    result: dict[str, Any] = {"triplets": 4 * args.count, "frames": FRAMES, "side": SIDE}
    for title, realism in (("flat", 0.0), ("realistic", 1.0)):
        ranked = ranking(args.count, realism)
        total = {key: sum(row[key] for row in ranked.values()) for key in ("pairs", "right")}
        result[title] = {
            "ranking": ranked,
            "ranking_of_all": total,
            "correlation": correlation(args.count, realism),
        }
        rows = [
            [name, str(row["pairs"]), f"{row['right'] / row['pairs']:.3f}"] for name, row in ranked.items()
        ]
        print_table(["damage: measure", "pairs", f"ranked rightly ({title})"], rows)
        shown = [
            [
                name,
                *(
                    f"{v['all']:+.2f} / {v['within']:+.2f}" if v["within"] is not None else "-"
                    for v in axes.values()
                ),
            ]
            for name, axes in result[title]["correlation"].items()
        ]
        print_table([f"Spearman, all / within items ({title})", *(axis.upper() for axis in AXES)], shown)
    write_json(args, result)


if __name__ == "__main__":
    main()
