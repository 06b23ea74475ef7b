"""Drift of colors over ten windows, where nano's edits leave the source alone, with and without `ColorMatch`.

    python benchmarks/nano_drift.py --out benchmarks/results/nano_drift.json

Held-out playground clips of 45 frames, and, with --clips, other clips. A pixel counts as left alone if it is
at least an eighth of the frame away from the changed region; in other clips, where instructions name things
that are not there, all pixels count. For each window: difference between edit and source in the mean and in
the standard deviation of each channel, in levels of 0 to 255, averaged over channels and clips.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out

from rvedit.editing.colors import ColorMatch
from rvedit.editing.config import EditConfig
from rvedit.editing.mask import grow
from rvedit.editing.windows import WindowPlan
from rvedit.io.frames import resize_frames
from rvedit.io.video import FileFrames
from rvedit.pipelines.loading import load_pipeline

WINDOWS = 10


def differences(edit, source, is_alone, plan):
    """Return (windows, 2): differences in mean and spread over the frames that are new in each window."""
    rows = []
    for window in range(WINDOWS):
        start = plan.length - plan.stride + window * plan.stride if window else 0
        frames = slice(start, plan.length + window * plan.stride)
        alone = is_alone[frames]
        a, b = (clip[frames][alone].astype(float) for clip in (edit, source))
        rows.append([np.abs(f(a, axis=0) - f(b, axis=0)).mean() for f in (np.mean, np.std)])
    return np.array(rows)


def playground(count, num_frames, size):
    for triplet, source, _, mask in held_out(count, num_frames, size):
        if triplet.category.value != "style":
            changed = np.repeat(mask.any(axis=0)[None], num_frames, axis=0)
            yield triplet.instruction, source, ~np.stack([grow(m, size // 8) for m in changed])


def footage(folder, num_frames):
    for path in sorted(folder.glob("*.mp4")):
        frames = np.stack(list(islice(iter(FileFrames(path)), num_frames)))
        if len(frames) == num_frames:
            height, width = frames.shape[1:3]
            frames = resize_frames(frames, 256, 2 * round(128 * width / height))
            yield "remove the balloon", frames, np.ones(frames.shape[:3], bool)


def plot(results, path):
    """Plot the differences of the playground's clips by window."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
    titles = {"mean": "mean of colors", "spread": "standard deviation of colors"}
    for ax, (statistic, title) in zip(axes, titles.items(), strict=True):
        for variant, label in (("not matched", "without"), ("matched", "with matching")):
            values = results[f"playground/{statistic}/{variant}"]["by_window"]
            ax.plot(range(1, WINDOWS + 1), values, marker="o", markersize=3, label=label)
        ax.set(title=title, xlabel="window", ylim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("difference, gray levels")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--clips", type=Path, help="folder of other clips")
    parser.add_argument("--plot", type=Path, help="picture of the playground's differences")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, args.device.type)
    plan = WindowPlan.of(pipe)
    num_frames = plan.length + (WINDOWS - 1) * plan.stride
    sets = {"playground": playground(args.count, num_frames, args.size)}
    if args.clips:
        sets["other clips"] = footage(args.clips, num_frames)
    results, table = {}, []
    for name, clips in sets.items():
        rows = defaultdict(list)
        for instruction, source, is_alone in clips:
            matched = edit_clip(pipe, source, instruction, EditConfig())
            with patch.object(ColorMatch, "apply", lambda self, window: window):
                unmatched = edit_clip(pipe, source, instruction, EditConfig())
            for variant, edit in (("matched", matched), ("not matched", unmatched)):
                rows[variant].append(differences(edit, source, is_alone, plan))
        for variant, found in rows.items():
            means = np.mean(found, axis=0)
            for index, statistic in enumerate(("mean", "spread")):
                ratio = means[-1, index] / means[0, index]
                key = f"{name}/{statistic}/{variant}"
                results[key] = {
                    "by_window": means[:, index].round(3).tolist(),
                    "last_to_first": ratio,
                    "clips": len(found),
                }
                table.append((key, *(f"{means[w, index]:.2f}" for w in (0, 4, 9)), f"{ratio:.2f}"))
    print_table(("levels of 0 to 255", "window 1", "window 5", "window 10", "last / first"), table)
    write_json(args, results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
