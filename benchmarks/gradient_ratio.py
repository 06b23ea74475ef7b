"""The share of alignment in the gradient: weight x |grad L_align| / |grad L_fm|, by block and time.

    python benchmarks/gradient_ratio.py --out benchmarks/results/gradient_ratio.json

On held-out playground clips, one at a time, with the same noise for every block and time. Norms are L2, over
the parameters that both losses reach; the cosine is that between the two gradients. Times are those at which
the model is called, after any shift. All of transformer, connector, multimodal LLM and text encoder counts as
trained, except what --frozen names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from _common import arguments, print_table, write_json
from nano_quality import held_out

from rvedit.pipelines.loading import load_pipeline
from rvedit.training.editor import EditorObjective
from rvedit.training.recipe import Recipe
from rvedit.training.recipe_sections import ModelRecipe
from rvedit.training.samples import BranchSample, Sample, collate
from rvedit.training.step import TripletBatch, losses_at, sample_noise_and_timesteps, with_latents
from rvedit.training.trainable import choose_trained

TIMES = (0.2, 0.5, 0.8, 0.95)
WEIGHTS = (0.01, 0.1, 0.75)
"""Weights for which the share of cells above 1 is given."""


def as_batch(pipeline: Any, number: int, triplet: Any, source: Any, target: Any) -> TripletBatch:
    """Return a playground triplet and its rendered clips as a batch of one, with latents, on the device."""
    frame_processor = pipeline.edit_token_encoder.frame_processor
    samples = (
        BranchSample(torch.from_numpy(clip), None, frame_processor(clip), text)
        for clip, text in ((source, triplet.instruction), (target, triplet.target_caption))
    )
    batch = collate(
        [Sample(number, *samples, unreadable={}, picture=None, mask=None)], pipeline.config.max_text_length
    )
    return with_latents(pipeline, batch.to(pipeline.device))


class GradientPair:
    """The gradients of both losses at one time and block."""

    def __init__(self, names: list[str], fm: tuple[Any, ...], align: tuple[Any, ...]):
        pairs = zip(names, fm, align, strict=True)
        self.shared = {
            n: (f, a) for n, f, a in pairs if f is not None and a is not None and f.any() and a.any()
        }

    def dot(self, left: int, right: int, prefix: str = "") -> float:
        """Return the inner product of gradients 0 (L_fm) and 1 (L_align) over parameters with a prefix."""
        pairs = (pair for name, pair in self.shared.items() if name.startswith(prefix))
        return sum(float(torch.vdot(p[left].flatten(), p[right].flatten())) for p in pairs)

    @property
    def ratio(self) -> float:
        """Return |grad L_align| / |grad L_fm|."""
        return math.sqrt(self.dot(1, 1) / self.dot(0, 0))

    @property
    def cosine(self) -> float:
        """Return the cosine between both gradients."""
        return self.dot(0, 1) / math.sqrt(self.dot(0, 0) * self.dot(1, 1))


def measure(
    pipeline: Any, batch: TripletBatch, trained: dict[str, Any], modules: list[str], seed: int
) -> Any:
    """Return ratio, cosine and each module's share of |grad L_align|^2, (times, blocks, 2 + modules)."""
    latents = batch.reference.latents
    _, noise, _ = sample_noise_and_timesteps(seed, batch.numbers, latents.shape[1:])
    noise, names, parameters = noise.to(latents.device), list(trained), list(trained.values())
    rows = []
    for time in TIMES:
        t = torch.full((1,), time, device=latents.device)

        def gradient(loss: str, depth: int | None, t: Any = t) -> tuple[Any, ...]:
            value = losses_at(pipeline, batch, t, noise, depth, only=loss)[loss]
            return torch.autograd.grad(value, parameters, allow_unused=True)

        fm = gradient("loss_fm", None)
        for depth in range(1, len(pipeline.transformer.blocks) + 1):
            pair = GradientPair(names, fm, gradient("loss_align", depth))
            energy = pair.dot(1, 1)
            rows.append([pair.ratio, pair.cosine, *(pair.dot(1, 1, f"{m}.") / energy for m in modules)])
    return np.array(rows).reshape(len(TIMES), -1, 2 + len(modules))


def median_and_range(values: Any) -> list[float]:
    """Return median, minimum and maximum."""
    return [float(f(values)) for f in (np.median, np.min, np.max)]


def summarize(found: Any, modules: list[str], weight: float) -> dict[str, Any]:
    """Return medians and ranges of (clips, times, blocks, quantities), by time, by block and by both."""
    ratio, cosine = weight * found[..., 0], found[..., 1]
    blocks = range(found.shape[2])
    return {
        "by_time": {
            f"{time:g}": {
                "ratio": median_and_range(ratio[:, i]),
                "cosine": median_and_range(cosine[:, i]),
                "ratio_by_block": [median_and_range(ratio[:, i, b]) for b in blocks],
                "cosine_by_block": [median_and_range(cosine[:, i, b]) for b in blocks],
            }
            for i, time in enumerate(TIMES)
        },
        "by_block": [
            {"ratio": median_and_range(ratio[:, :, b]), "cosine": median_and_range(cosine[:, :, b])}
            for b in blocks
        ],
        "all": {"ratio": median_and_range(ratio), "cosine": median_and_range(cosine)},
        "by_weight": {
            f"{w:g}": {
                "median": float(np.median(w * found[..., 0])),
                "above_1": float((w * found[..., 0] > 1).mean()),
            }
            for w in WEIGHTS
        },
        "share_of_alignments_squared_gradient": {
            name: float(found[..., 2 + i].mean()) for i, name in enumerate(modules)
        },
    }


def trained_parameters(pipeline: Any, frozen: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Return the trained parameters by name, and the names of their modules."""
    recipe = Recipe(model=ModelRecipe(frozen=frozen))
    objective = EditorObjective(pipeline, recipe).eval()
    pipeline.vae.requires_grad_(False)
    choose_trained(objective, recipe.model)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    return trained, sorted({name.split(".")[0] for name in trained})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=12, help="held-out clips")
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--weight", type=float, default=0.75, help="alignment weight")
    parser.add_argument("--frozen", nargs="*", default=[], help="prefixes of parameters that do not count")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    args = parser.parse_args()
    pipeline = load_pipeline(args.model, args.device.type)
    trained, modules = trained_parameters(pipeline, tuple(args.frozen))
    found = []
    for number, (triplet, source, target, _) in enumerate(held_out(args.count, args.num_frames, args.size)):
        batch = as_batch(pipeline, number, triplet, source, target)
        found.append(measure(pipeline, batch, trained, modules, args.seed))
    found = np.stack(found)
    results = summarize(found, modules, args.weight)

    def cell(figures: list[float], digits: int = 1) -> str:
        return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*figures, d=digits)

    print(f"{args.weight:g} x |grad L_align| / |grad L_fm|: median (range)")
    rows = [
        (f"block {b + 1}", *(cell(r["ratio_by_block"][b]) for r in results["by_time"].values()))
        for b in range(found.shape[2])
    ]
    rows.append(("all blocks", *(cell(r["ratio"]) for r in results["by_time"].values())))
    rows.append(("cosine", *(cell(r["cosine"], 2) for r in results["by_time"].values())))
    print_table(("", *(f"t = {time:g}" for time in TIMES)), rows)
    for weight, row in results["by_weight"].items():
        print(f"weight {weight}: median {row['median']:.2f}, above 1 in {row['above_1']:.0%} of cells")
    shares = results["share_of_alignments_squared_gradient"].items()
    print("alignment's squared gradient: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    write_json(args, {"times": TIMES, **results})


if __name__ == "__main__":
    main()
