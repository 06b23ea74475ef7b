"""Edits of held-out playground clips with the true mask, without a mask, and within a box around the mask.

    python benchmarks/nano_mask.py --out benchmarks/results/nano_mask.json

Local edits only. Measured against the exact target: gain in the changed region, and preservation outside it
in dB (at most 60), which includes the soft border of the mask; `beyond the border` leaves the border out.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out

from rvedit.editing.config import EditConfig
from rvedit.editing.mask import border_of, grow
from rvedit.evaluation.measures import edit_gain, preservation
from rvedit.pipelines.loading import load_pipeline

KEYS = ("gain", "preservation", "beyond the border")


def bounding_box(mask):
    """Return the smallest box that holds the mask in all frames, as a mask (h, w)."""
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = np.zeros(mask.shape[1:], bool)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=100, help="number of local edits")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num-frames", type=int, default=9)
    args = parser.parse_args()
    pipe = load_pipeline(args.model, args.device.type)
    rows = defaultdict(list)
    for triplet, source, target, mask in held_out(-(-args.count * 4 // 3), args.num_frames, args.size):
        if triplet.category.value == "style" or len(rows["all", "mask"]) == args.count:
            continue
        far = np.stack([grow(frame, border_of(*frame.shape)) for frame in mask])
        for variant, allowed in (("no mask", None), ("mask", mask), ("box", bounding_box(mask))):
            edit = edit_clip(pipe, source, triplet.instruction, EditConfig(mask=allowed))
            row = [edit_gain(source, edit, target, mask)]
            row += [preservation(edit, target, region) for region in (mask, far)]
            for category in (triplet.category.value, "all"):
                rows[category, variant].append(row)
    results, table = {}, []
    for (category, variant), found in sorted(rows.items()):
        means = dict(zip(KEYS, np.mean(found, axis=0).tolist(), strict=True))
        results[f"{category}/{variant}"] = {"clips": len(found), **means}
        cells = (f"{means['gain']:.3f}", *(f"{means[key]:.1f}" for key in KEYS[1:]))
        table.append((f"{category}/{variant}", str(len(found)), *cells))
    print_table((f"{args.size} pixels", "clips", *KEYS), table)
    write_json(args, results)


if __name__ == "__main__":
    main()
