"""Metrics of a run: one JSON line per step and per validation, and the same for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from rvedit.io.temporary import atomic_path


class RunLog:
    """The files `metrics.jsonl`, `validation.jsonl` and `tensorboard/` in a run's folder.

    On resume the lines of steps that will be repeated are removed, including one that a kill left incomplete.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:first_step] if path.exists() else []
        with atomic_path(path) as part:
            part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self.file = path.open("a", buffering=1, encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, record: dict[str, float]) -> None:
        """Write the metrics of a step."""
        self.file.write(json.dumps(record) + "\n")
        step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, step)

    def write_validation(self, step: int, losses: dict[str, float]) -> None:
        """Write the losses of held-out clips after a number of steps."""
        with (self.folder / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **losses}) + "\n")
        for name, value in losses.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        self.file.close()
        self.board.close()
