"""Teach nano an edit that it cannot do from 25 pairs, by recipes/pairs_lora.yaml; measure what it costs.

The edit is "make it a thermal image": each pixel's brightness is shown in the colors of a thermal camera. The
pairs are clips and images of the playground in folders, as a user would have them. Measured without detail
transfer, on held-out clips: this edit, also in other words, and nano's own edits, without and with the
trained LoRA weights.

    python benchmarks/pairs_lora.py --out benchmarks/results/pairs_lora.json --sheet sheet.png
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from rvedit.datasets.prepare import prepare_dataset
from rvedit.datasets.survey import DatasetConfig
from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import SUCCESS_GAIN, edit_gain, preservation
from rvedit.io.frames import Frames
from rvedit.io.video import write_clip
from rvedit.pipelines.loading import load_pipeline
from rvedit.playground.world import FRAME_RATE, render, sample_triplet
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

INSTRUCTION = "make it a thermal image"
OTHER_WORDS = "turn the video into a thermal picture"
RECIPES = Path(__file__).parent.parent / "recipes"
PALETTE = np.array([[10, 0, 60], [90, 0, 140], [220, 40, 60], [255, 160, 20], [255, 250, 200]], np.float32)
REALISM = 0.5
SIZE = 128


def thermal(clip: Frames) -> Frames:
    """Return a clip (t, h, w, 3) with its brightness in false colors, from dark violet to pale yellow."""
    level = clip.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) / 255 * (len(PALETTE) - 1)
    below = np.minimum(level.astype(int), len(PALETTE) - 2)
    share = (level - below)[..., None]
    return (PALETTE[below] * (1 - share) + PALETTE[below + 1] * share + 0.5).astype(np.uint8)


def write_pairs(folder: Path, count: int, seed: int) -> None:
    """Write pairs as a user would: every third one a picture, the others clips of 9 frames."""
    for side in ("source", "target"):
        (folder / side).mkdir(parents=True)
    for index in range(count):
        num_frames = 1 if index % 3 == 2 else 9
        source = render(sample_triplet(seed, index, realism=REALISM).source, num_frames, SIZE, SIZE)
        for side, clip in (("source", source), ("target", thermal(source))):
            if num_frames == 1:
                Image.fromarray(clip[0]).save(folder / side / f"{index:02}.png")
            else:
                write_clip(folder / side / f"{index:02}.mp4", clip, FRAME_RATE)
    (folder / "instruction.txt").write_text(INSTRUCTION, encoding="utf-8")


def train_lora(args, folder: Path) -> tuple[Path, float]:
    """Prepare and train as the command line does; return the run's folder and the minutes of training."""
    write_pairs(folder / "pairs", args.pairs, seed=77)
    report = prepare_dataset(DatasetConfig("pairs", (folder / "pairs",), folder / "data", min_frames=1))
    settings = [f"data.manifest={report.manifest}", f"model.init_from={args.model}", *(args.set or ())]
    recipe = load_recipe(RECIPES / "pairs_lora.yaml", [RECIPES / "nano_pairs.yaml"], settings)
    start = time.perf_counter()
    for _ in tqdm(train(recipe, args.runs or folder, args.device.type), total=recipe.steps, desc="training"):
        pass
    return (args.runs or folder) / recipe.name, (time.perf_counter() - start) / 60


def evaluate(editor, args) -> tuple[dict[str, NDArray], list[Frames]]:
    """Return the gains, and for nano's own edits the preservation, of held-out clips by kind of edit."""
    found, rows = defaultdict(list), []
    settings = EditConfig(detail=0.0)
    for index in tqdm(range(args.count), desc="new edit"):
        scene = sample_triplet(1_000_003, index, "test", realism=REALISM).source
        source = render(scene, 9, SIZE, SIZE)
        target, region = thermal(source), np.ones(source.shape[:3], bool)
        for name, words in (("new edit", INSTRUCTION), ("new edit, other words", OTHER_WORDS)):
            output = edit_clip(editor, source, words, settings)
            found[name].append(edit_gain(source, output, target, region))
            if name == "new edit" and len(rows) < 6:
                rows.append(np.concatenate([source[0], output[0], output[-1], target[-1]], axis=1))
    for triplet, source, target, mask in held_out(args.count, 9, SIZE, realism=0.0):
        output = edit_clip(editor, source, triplet.instruction, settings)
        name = f"nano's own: {triplet.category.value}"
        found[name].append(edit_gain(source, output, target, mask))
        if not mask.all():
            found["preservation of nano's own, dB"].append(preservation(output, target, mask))
    return {name: np.array(values) for name, values in found.items()}, rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--count", type=int, default=40, help="held-out clips of the new edit, and of nano's")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--runs", type=Path, help="folder to keep the run in; a run there is resumed")
    parser.add_argument("--sheet", type=Path, help="image of source, first and last edited frame, target")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        run, minutes = train_lora(args, Path(temporary))
        before, _ = evaluate(load_pipeline(args.model, args.device.type), args)
        after, rows = evaluate(load_pipeline(args.model, args.device.type, lora=[str(run)]), args)
        size = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
    results = {}
    for name in before:
        pair = {"before": before[name], "after": after[name]}
        is_gain = "dB" not in name
        results[name] = {when: {"mean": float(x.mean())} for when, x in pair.items()}
        if is_gain:
            for when, gains in pair.items():
                results[name][when]["success"] = float((gains > SUCCESS_GAIN).mean())
    cell = lambda row: f"{row['mean']:.2f}" + (f" ({row['success']:.0%})" if "success" in row else "")  # noqa: E731
    table = [(name, cell(row["before"]), cell(row["after"])) for name, row in results.items()]
    print_table(("mean gain (success)", "without LoRA", "with LoRA"), table)
    print(f"{minutes:.1f} minutes of training, {size / 1e6:.1f} MB")
    write_json(args, {"minutes": minutes, "lora_bytes": size, "edits": results})
    if args.sheet:
        Image.fromarray(np.concatenate(rows)).save(args.sheet)


if __name__ == "__main__":
    main()
