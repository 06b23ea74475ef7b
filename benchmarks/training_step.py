"""The cost of alignment: time of a training step with it relative to one without (limit: 1.25).

    python benchmarks/training_step.py

The step is `rvedit.training.step.training_losses` and its backward pass, at a medium size (12 blocks, width
512, S = 768, K = 32, routed). Latents, X_e and text states are fixed. The optimizer runs only with
`--optimizer`, as it is the same in both and would lower the ratio. The timed depths are the centers of equal
parts of 1 ... L, so that their mean is that of a uniformly drawn depth.
"""

from __future__ import annotations

from statistics import mean

import torch
from _common import Step, arguments, device_name, interleaved_medians, print_table, write_json
from _shapes import (
    SEED,
    Shape,
    StubPipeline,
    build_transformer,
    random_batch,
    sample_of_depths,
    scaled_down,
    step_with_depth,
    training_flops,
)

from rvedit.training.recipe_sections import AlignmentRecipe, FlowRecipe
from rvedit.training.step import training_losses

BAR = 1.25


def build_steps(
    models: StubPipeline, shape: Shape, depths: list[int], bf16: bool, optimizer: bool = False
) -> dict[str, Step]:
    """Return training steps without alignment and with alignment at each depth."""
    device = models.edit_tokens.device
    batch = random_batch(shape, device)
    adamw = torch.optim.AdamW(models.parameters(), lr=1e-6) if optimizer else None

    def step(weight: float, number: int) -> None:
        models.zero_grad(set_to_none=True)  # left by a step that ran out of memory
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            alignment = AlignmentRecipe(weight=weight)
            losses = training_losses(models, batch, FlowRecipe(), alignment, SEED, number)
        losses["loss"].backward()
        if adamw is not None:
            adamw.step()
        models.zero_grad(set_to_none=True)

    aligned = {f"aligned at block {d}": step_with_depth(d, shape.blocks) for d in depths}
    steps = {"not aligned": lambda: step(0.0, 0)}
    return steps | {name: lambda number=number: step(0.75, number) for name, number in aligned.items()}


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--width", type=int, default=512, help="d, a multiple of 64")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--grid", type=int, nargs=3, default=(3, 32, 32), help="latent frames, rows, columns")
    parser.add_argument("--tokens", type=int, default=32, help="number of tokens of X_e and of X_l")
    parser.add_argument("--depths", type=int, default=4, help="number of depths to time")
    parser.add_argument("--bf16", action="store_true", help="use bf16 autocast")
    parser.add_argument("--checkpointing", action="store_true", help="use gradient checkpointing")
    parser.add_argument("--optimizer", action="store_true", help="include AdamW's update in the step")
    args = parser.parse_args()

    shape = scaled_down(args.width, args.blocks, tuple(args.grid), args.tokens)
    transformer = build_transformer(shape, args.device)
    if args.checkpointing:
        transformer.enable_gradient_checkpointing()
    models = StubPipeline(transformer, shape)
    depths = sample_of_depths(shape.blocks, args.depths)
    steps = build_steps(models, shape, depths, args.bf16, args.optimizer)
    seconds = interleaved_medians(steps, args.device, args.repeats)

    plain = training_flops(shape, checkpointing=args.checkpointing)
    timed: list[list[int]] = [[], *([d] for d in depths)]
    rows = {
        name: {
            "ratio": value / seconds["not aligned"],
            "expected": training_flops(shape, depth, args.checkpointing) / plain,
        }
        for (name, value), depth in zip(seconds.items(), timed, strict=True)
    }
    aligned = list(rows.values())[1:]
    rows["mean of these depths"] = {key: mean(row[key] for row in aligned) for key in ("ratio", "expected")}
    uniform = training_flops(shape, range(1, shape.blocks + 1), args.checkpointing) / plain

    print(f"{device_name(args.device)}: S {shape.sequence}, width {shape.width}, {shape.blocks} blocks")
    print_table(
        ("training step", "ratio", "by formula"),
        [(name, f"{row['ratio']:.3f}", f"{row['expected']:.3f}") for name, row in rows.items()],
    )
    ratio = rows["mean of these depths"]["ratio"]
    print(f"any depth, uniformly, by formula: {uniform:.3f}")
    print(f"{'within' if ratio <= BAR else 'ABOVE'} the limit of {BAR}: {ratio:.3f}")
    write_json(args, {"bar": BAR, "ratio": ratio, "uniform_by_formula": uniform, "rows": rows})


if __name__ == "__main__":
    main()
