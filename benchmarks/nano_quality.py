"""Edit quality on held-out playground clips, compared with the copied source and the VAE's reconstruction.

Edits are without detail transfer, which nano_detail.py measures, unless --detail is given.

    python benchmarks/nano_quality.py --out benchmarks/results/nano_quality.json --sheet sheet.png
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from _common import arguments, edit_clip, write_json
from PIL import Image
from tqdm import tqdm

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import SUCCESS_GAIN, edit_gain, flicker, preservation
from rvedit.io.frames import to_frames, to_model_range
from rvedit.models.autoencoder import decode, encode
from rvedit.pipelines.loading import load_pipeline
from rvedit.playground.world import Split, edit_mask, render, sample_triplet

SEED = 1_000_003  # for evaluation; training uses other seeds and another split


def measure(source, output, target, mask):
    return {
        "gain": edit_gain(source, output, target, mask),
        "preservation": preservation(output, target, mask),
        "flicker": flicker(output),
        "target_flicker": flicker(target),
    }


def summarize(rows):
    def mean(key):
        values = [row[key] for row in rows if row[key] is not None]
        return float(np.mean(values)) if values else None

    success = float(np.mean([row["gain"] > SUCCESS_GAIN for row in rows]))
    return {
        "clips": len(rows),
        "success": success,
        **{k: mean(k) for k in ("gain", "preservation")},
        # A ratio of means, as targets with hardly any motion would dominate a mean of ratios.
        "flicker": mean("flicker") / mean("target_flicker"),
    }


def held_out(count: int, num_frames: int, size: int, split: Split = "test", realism: float = 0.0):
    """Yield (triplet, source, target, mask of the changed region), with equally many clips per category."""
    remaining = defaultdict(lambda: -(-count // (2 if split == "test_pair" else 4)))
    index = 0
    for _ in tqdm(range(count), desc=split):
        while not remaining[(triplet := sample_triplet(SEED, index, split, realism=realism)).category]:
            index += 1
        index += 1
        remaining[triplet.category] -= 1
        source, target = (render(scene, num_frames, size, size) for scene in (triplet.source, triplet.target))
        mask = edit_mask(source, target)
        yield triplet, source, target, mask | (triplet.category.value == "style")


def evaluate(editor, split: Split, args, settings: EditConfig):
    vae, device = editor.vae, editor.device
    rows, shown = defaultdict(list), defaultdict(list)
    clips = (args.count, args.num_frames, args.size, split, args.realism)
    for triplet, source, target, mask in held_out(*clips):
        category = triplet.category.value
        output = edit_clip(editor, source, triplet.instruction, settings)
        with torch.no_grad():
            latents = encode(vae, to_model_range(target)[None].to(device))
            ceiling = to_frames(decode(vae, latents)[0])[: args.num_frames]
        for name, clip in (("edit", output), ("copy the source", source), ("VAE ceiling", ceiling)):
            rows[name, category].append(measure(source, clip, target, mask))
        if len(shown[category]) < 8:
            shown[category].append(np.concatenate([source[0], output[0], output[-1], target[-1]], axis=1))
    return rows, shown


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--realism", type=float, default=0.0, help="0: flat drawings; 1: like photographs")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--detail", default="0", help="strength of detail transfer: 0 to 1, or auto")
    parser.add_argument("--sheet", type=Path, help="image of source, first and last edited frame, target")
    args = parser.parse_args()
    editor = load_pipeline(args.model, args.device.type)
    detail = "auto" if args.detail == "auto" else float(args.detail)
    settings = EditConfig(num_inference_steps=args.steps, guidance_scale=args.guidance, detail=detail)
    results = {}
    for split in args.splits:
        rows, shown = evaluate(editor, split, args, settings)
        table = {f"{name}/{category}": summarize(r) for (name, category), r in sorted(rows.items())}
        for name in ("edit", "copy the source", "VAE ceiling"):
            groups = [v for k, v in table.items() if k.startswith(name + "/")]
            table[f"{name}/mean over categories"] = {
                key: float(np.mean([g[key] for g in groups if g[key] is not None]))
                for key in ("clips", "success", "gain", "preservation", "flicker")
            }
        results[split] = table
        print(f"\n{split:34}{'clips':>8}{'success':>9}{'gain':>8}{'preserv. dB':>13}{'flicker ratio':>15}")
        for key, row in sorted(table.items()):
            psnr = "-" if row["preservation"] is None else f"{row['preservation']:.1f}"
            figures = f"{row['success']:>9.0%}{row['gain']:>8.2f}{psnr:>13}{row['flicker']:>15.2f}"
            print(f"{key:34}{row['clips']:>8.0f}{figures}")
    write_json(args, results)
    if args.sheet:
        columns = [np.concatenate(images) for _, images in sorted(shown.items())]
        height = min(len(c) for c in columns)
        Image.fromarray(np.concatenate([c[:height] for c in columns], axis=1)).save(args.sheet)


if __name__ == "__main__":
    main()
