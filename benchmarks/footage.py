"""Color styles with known targets, on real clips at full size, with and without detail transfer.

    python benchmarks/footage.py FOLDER --out benchmarks/results/footage.json --sheet sheet.png

FOLDER has clips, which are not part of the project. A style of the playground is a function of the pixels, so
the exact target of "make it sepia" is known for any clip. For each style: PSNR and SSIM to the target;
flicker (change from frame to frame relative to the target's, ideally 1); seconds per frame. Each row of the
sheet has, for a clip and style, a frame of source, plain edit, edit with detail transfer, and target.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from PIL import Image
from tqdm import tqdm

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import flicker, psnr, ssim
from rvedit.io.video import VideoReader
from rvedit.pipelines.loading import load_pipeline
from rvedit.playground import grammar
from rvedit.playground.styles import PHOTOMETRIC, stylize

VARIANTS = {"plain": 0, "detail": "auto"}
"""Strength of detail transfer."""
SHOWN = ("psnr", "ssim", "flicker", "worst_flicker", "seconds_a_frame")


def measure(editor, source, style, settings):
    target = stylize(source, style)
    started = time.perf_counter()
    edit = edit_clip(editor, source, f"make it {style}", settings)
    seconds = time.perf_counter() - started
    row = {
        "psnr": psnr(edit, target),
        "ssim": ssim(edit[::4], target[::4]),
        "flicker": flicker(edit) / flicker(target),
        "seconds_a_frame": seconds / len(source),
    }
    return row, edit, target


def summarize(rows):
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {**means, "worst_flicker": max(row["flicker"] for row in rows)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frames", type=int, default=17, help="frames per clip")
    parser.add_argument("--styles", nargs="+", choices=grammar.STYLES, default=list(PHOTOMETRIC))
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--guidance", type=float, help="default: the model's")
    parser.add_argument("--sheet", type=Path, help="image of all edits")
    args = parser.parse_args()
    editor = load_pipeline(args.model, args.device.type)
    paths = sorted(path for path in args.folder.iterdir() if path.is_file())
    clips = {}
    rows = {(style, variant): [] for style in args.styles for variant in VARIANTS}
    shown = []
    for path in tqdm(paths, desc="clips"):
        with VideoReader(path) as reader:
            source = np.stack([timed.frame for timed in islice(reader, args.frames)])
        clips[path.stem] = {"frames": len(source), "height": source.shape[1], "width": source.shape[2]}
        for style in args.styles:
            images = [source[-1]]
            for variant, detail in VARIANTS.items():
                settings = EditConfig(args.steps, args.guidance, detail=detail)
                row, edit, target = measure(editor, source, style, settings)
                rows[style, variant].append(row)
                clips[path.stem][f"{style}/{variant}"] = row
                images.append(edit[-1])
            shown.append(np.concatenate([*images, target[-1]], axis=1))
    table = {f"{style}/{variant}": summarize(r) for (style, variant), r in rows.items()}
    # Other styles have their own texture, which the source's detail would spoil, so they are not in the mean.
    colors = [style for style in args.styles if style in PHOTOMETRIC]
    for variant in VARIANTS if colors else ():
        table[f"mean of color styles/{variant}"] = summarize([r for s in colors for r in rows[s, variant]])
    cells = [(name, *(f"{row[key]:.3f}" for key in SHOWN)) for name, row in table.items()]
    print_table((f"{len(paths)} clips", *SHOWN), cells)
    write_json(args, {"table": table, "clips": clips})
    if args.sheet:
        width = max(image.shape[1] for image in shown)
        padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in shown]
        sheet = Image.fromarray(np.concatenate(padded))
        sheet.thumbnail((2560, 2**16))
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
