"""Edits of held-out playground clips by the number of denoising steps, of one model or several.

    python benchmarks/nano_steps.py --models nano runs/nano_distill --out benchmarks/results/nano_steps.json

Edits are without detail transfer. Success, gain and preservation are means over categories.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out, measure

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import SUCCESS_GAIN
from rvedit.pipelines.loading import load_pipeline


def summary(rows):
    """Return the means over categories of the rows, (gain, preservation or None), of each category."""
    gains = {category: [gain for gain, _ in found] for category, found in rows.items()}
    kept = {c: [psnr for _, psnr in found if psnr is not None] for c, found in rows.items()}
    return {
        "success": float(np.mean([np.mean(np.array(g) > SUCCESS_GAIN) for g in gains.values()])),
        "gain": float(np.mean([np.mean(g) for g in gains.values()])),
        "preservation": float(np.mean([np.mean(psnr) for psnr in kept.values() if psnr])),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["nano"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8, 12, 24])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num-frames", type=int, default=9)
    args = parser.parse_args()
    pipes = {name: load_pipeline(name, args.device.type) for name in args.models}
    rows = defaultdict(lambda: defaultdict(list))
    for triplet, source, target, mask in held_out(args.count, args.num_frames, args.size):
        for name, pipe in pipes.items():
            for steps in args.steps:
                config = EditConfig(num_inference_steps=steps, detail=0)
                edit = edit_clip(pipe, source, triplet.instruction, config)
                found = measure(source, edit, target, mask)
                row = (found["gain"], found["preservation"])
                rows[name, steps][triplet.category.value].append(row)
    results, table = {}, []
    for (name, steps), found in rows.items():
        results[f"{name}/{steps}"] = means = summary(found)
        cells = (f"{means['success']:.0%}", f"{means['gain']:.3f}", f"{means['preservation']:.1f}")
        table.append((f"{name}, {steps} steps", *cells))
    print_table((f"{args.count} clips", "success", "gain", "preservation, dB"), table)
    write_json(args, results)


if __name__ == "__main__":
    main()
