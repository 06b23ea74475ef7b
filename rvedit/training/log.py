"""What a run writes down: one JSON line per step, and the same for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from rvedit.io.video import temporary_sibling


class RunLog:
    """`metrics.jsonl` and `tensorboard/` of a run's folder.

    On resume, what was logged of steps that are run again is dropped, a line that a kill tore included.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = path.read_text(encoding="utf-8").splitlines()[:first_step] if path.exists() else []
        part = temporary_sibling(path)
        part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        part.replace(path)
        self.file = path.open("a", buffering=1, encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, record: dict[str, float]) -> None:
        """Log a step."""
        self.file.write(json.dumps(record) + "\n")
        step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, step)
