"""The share of a save by which it delays a training step, for the embedded nano.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_save.py --out benchmarks/results/checkpoint_save.json

A save copies the state to host memory beside the next step's passes, and writes it beside those that follow;
only the next update waits for the copy. The delay is what forward and backward passes of four clips take
longer with a save before them, waiting for the copy included, than without one. The save's time is that of
copying and writing alone. Weights, AdamW's moments and a moving average, in one process; the first save,
which also allocates the host memory, is left out. Medians over repeats.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _common import arguments, print_table, write_json
from diffusers.training_utils import EMAModel

from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import Recipe
from rvedit.training.state import CheckpointWriter, RunState

RECIPE = {
    "model": {"preset": "nano", "init_from": "nano", "routing_depth": 4},
    "data": {"num_frames": 9, "height": 128, "width": 128, "workers": 0},
    "batch_size": 4,
    "precision": "fp32",
}


def main() -> None:
    parser = arguments(__doc__, repeats=15)
    args = parser.parse_args()
    processes = Processes("ddp", str(args.device))
    task = EditorTask(Recipe.model_validate(RECIPE), processes)
    model: Any = processes.wrap(task.objective)
    optimizer = NamedOptimizer(model, task.recipe.optimizer)
    ema = EMAModel(optimizer.local.values(), foreach=True)
    batch = next(task.batches([list(range(4))]))
    seconds: dict[str, list[float]] = {"passes": [], "passes after a save": [], "save": []}

    def passes(name: str, writer: CheckpointWriter | None = None, step: int = 0) -> None:
        start = time.perf_counter()
        if writer:
            writer.save(RunState(step), optimizer, ema)
        model(batch, step)["loss"].backward()
        if writer:
            writer.wait_for_copy()
        seconds[name].append(time.perf_counter() - start)
        optimizer.step(0.0)

    passes("passes")  # makes the optimizer's state
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), processes, keep=2)
        for step in range(1 + args.repeats):
            start = time.perf_counter()
            writer.save(RunState(step), optimizer, ema)
            writer.finish()
            seconds["save"].append(time.perf_counter() - start)
            passes("passes")
            passes("passes after a save", writer, step)
            writer.finish()
        writer.close()
        size = sum(file.stat().st_size for file in Path(folder).rglob(f"*{args.repeats:08d}/*"))
    of = {name: median(values[1:]) for name, values in seconds.items()}
    delay = (of["passes after a save"] - of["passes"]) / of["save"]
    print_table(("", "seconds"), [(name, f"{value:.3f}") for name, value in of.items()])
    print(f"{size / 1e6:.0f} MB; the delay is {delay:.1%} of the save")
    write_json(args, {"seconds": of, "delay_share": delay, "bytes": size})


if __name__ == "__main__":
    main()
