"""Metrics of a run: one JSON line per step and per validation, and the same for an experiment tracker."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_wandb_available

from rvedit.io.errors import UserError
from rvedit.io.temporary import atomic_path

PROJECT = "rvedit"
"""Name of the project, or experiment, in a tracker."""


class RunLog:
    """The files `metrics.jsonl` and `validation.jsonl` in a run's folder, and its tracker.

    On resume the lines of steps that will be repeated are removed, including one that a kill left incomplete.
    Raises UserError if the tracker's package is not installed.
    """

    def __init__(self, folder: Path, first_step: int, tracker: str = "tensorboard"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:first_step] if path.exists() else []
        _write_lines(path, lines)
        validations = folder / "validation.jsonl"
        if validations.exists():
            records = validations.read_text(encoding="utf-8").splitlines()
            kept = [line for line in records if json.loads(line)["step"] <= first_step and first_step]
            _write_lines(validations, kept)
        self.tracker = _open_tracker(tracker, folder, first_step)
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, float]) -> None:
        """Write the metrics of a step."""
        self.file.write(json.dumps(record) + "\n")
        self._track(record)

    def write_validation(self, record: dict[str, float]) -> None:
        """Write the losses of held-out clips after a number of steps."""
        with (self.folder / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._track(record)

    def _track(self, record: dict[str, float]) -> None:
        values = {name: value for name, value in record.items() if name != "step"}
        self.tracker.log(values, step=int(record["step"]))

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        self.file.close()
        self.tracker.finish()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as part:
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _open_tracker(name: str, folder: Path, first_step: int) -> GeneralTracker:
    tracker: Any
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", folder, purge_step=first_step)
    else:
        is_there = {"wandb": is_wandb_available, "mlflow": is_mlflow_available}[name]
        if not is_there():
            raise UserError(f"tracker: {name} is not installed: pip install {name}, or choose tensorboard")
        if name == "wandb":
            record = folder / "wandb_id"  # the same for a run that is resumed
            if first_step == 0 or not record.is_file():
                record.write_text(secrets.token_hex(8), encoding="utf-8")
            identity = record.read_text(encoding="utf-8")
            options = {"name": folder.name, "dir": str(folder), "id": identity, "resume": "allow"}
            tracker = WandBTracker(PROJECT, **options)
        else:
            tracker = MLflowTracker(PROJECT, logging_dir=str(folder / "mlflow"), run_name=folder.name)
    try:
        tracker.start()
    except Exception as error:  # whatever the tracker's package raises, such as for a missing login
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"tracker: {name}: {reason}: set it up, or choose tensorboard") from None
    return tracker
