"""Edits of held-out playground clips larger than nano's size, with and without detail transfer.

    python benchmarks/nano_detail.py --out benchmarks/results/nano_detail.json

The clips have sides of 512 and 1024 pixels; nano edits at 128. Measured against the exact target at full
size: gain in the edited region, preservation outside it (dB) and error of the change from frame to frame
(gray levels); also seconds per frame.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out, measure

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import change_error
from rvedit.pipelines.loading import load_pipeline

KEYS = ("gain", "preservation", "change_error", "seconds_a_frame")
VARIANTS = {"plain": EditConfig(detail=0), "detail": EditConfig()}


def mean(rows):
    values = {key: [row[key] for row in rows if row[key] is not None] for key in KEYS}
    return {key: float(np.mean(found)) if found else None for key, found in values.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--num-frames", type=int, default=9)
    args = parser.parse_args()
    editor = load_pipeline(args.model, args.device.type)
    results = {}
    for size in args.sizes:
        rows = defaultdict(list)
        for triplet, source, target, mask in held_out(args.count, args.num_frames, size):
            for variant, settings in VARIANTS.items():
                started = time.perf_counter()
                edit = edit_clip(editor, source, triplet.instruction, settings)
                seconds = (time.perf_counter() - started) / len(source)
                row = {**measure(source, edit, target, mask), "change_error": change_error(edit, target)}
                rows[triplet.category.value, variant].append({**row, "seconds_a_frame": seconds})
        table = {f"{category}/{variant}": mean(r) for (category, variant), r in sorted(rows.items())}
        for variant in VARIANTS:
            groups = [table[name] for name in table if name.endswith(f"/{variant}")]
            table[f"mean over categories/{variant}"] = mean(groups)
        results[str(size)] = table
        cells = [
            (name, *("-" if row[key] is None else f"{row[key]:.3f}" for key in KEYS))
            for name, row in table.items()
        ]
        print()
        print_table((f"{args.count} clips, {size} pixels", *KEYS), cells)
        write_json(args, results)


if __name__ == "__main__":
    main()
