"""The share of a save that training waits for, with some work in between; for the embedded nano's weights.

    python benchmarks/checkpoint_save.py --out benchmarks/results/checkpoint_save.json

Training waits for `save`, and before the next update for the copy to host memory, which runs beside the next
step's forward and backward passes; a matrix product of --work seconds stands in for them. The save's time
is that of copying and writing alone. Weights, AdamW's moments and a moving average, in one process; the first
save, which also allocates the host memory, is reported separately.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from _common import arguments, print_table, write_json
from diffusers.training_utils import EMAModel
from torch import nn

from rvedit.pipelines.loading import load_pipeline
from rvedit.training.distributed import Processes
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import OptimizerRecipe
from rvedit.training.state import CheckpointWriter, RunState
from rvedit.training.trainable import PARTS


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--work", type=float, default=1.0, help="seconds of a step's passes")
    args = parser.parse_args()
    processes = Processes("ddp", str(args.device))
    pipeline = load_pipeline("nano", "cpu")
    model = nn.ModuleDict({name: getattr(pipeline, name) for name in PARTS if getattr(pipeline, name)})
    model = model.to(args.device, torch.float32).requires_grad_(True)
    optimizer = NamedOptimizer(model, OptimizerRecipe())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    ema = EMAModel(optimizer.local.values(), foreach=True)
    matrix = torch.randn(512, 512, device=args.device)
    waited: list[float] = []
    total: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), processes, keep=2)
        for step in range(1 + args.repeats):
            start = time.perf_counter()
            writer.save(RunState(step), optimizer, ema)
            writer.finish()
            total.append(time.perf_counter() - start)
            start = time.perf_counter()
            writer.save(RunState(step), optimizer, ema)
            saved = time.perf_counter()
            while time.perf_counter() - saved < args.work:
                matrix @ matrix
            worked = time.perf_counter()
            writer.wait_for_copy()
            waited.append(saved - start + time.perf_counter() - worked)
            writer.finish()
        writer.close()
        size = sum(file.stat().st_size for file in Path(folder).rglob(f"*{args.repeats:08d}/*"))
    results = {"first": waited[0] / total[0], "later, median": median(waited[1:]) / median(total[1:])}
    print_table(("save", "waited / whole"), [(name, f"{share:.3f}") for name, share in results.items()])
    print(f"{size / 1e6:.0f} MB")
    write_json(args, {"waited_share": results, "bytes": size})


if __name__ == "__main__":
    main()
