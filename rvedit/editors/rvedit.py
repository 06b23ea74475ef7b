"""RVEDiT itself: the embedded nano, or a folder or hub id with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import torch

from rvedit.checkpoints import load_pipeline
from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings, Progress
from rvedit.video_tensors import Frames

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class RVEDiTEditor:
    """`RVEDiTPipeline` as an editor."""

    def __init__(self, pipeline: RVEDiTPipeline, name: str):
        self.pipeline = pipeline
        self.name = name

    def edit(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[Frames]:
        """See `Editor.edit`."""
        return self.pipeline.stream(frames, instruction, settings, on_progress)

    def windows(self, num_frames: int) -> int:
        """See `Editor.windows`."""
        return self.pipeline.window_plan.count(num_frames)


def load_editor(model: str = "nano", device: str | None = None, dtype: str | None = None) -> RVEDiTEditor:
    """Load a model by name: `nano`, a folder, or a hub id.

    Without a device it is the accelerator if there is one; without a dtype fp32 on a CPU and bf16 elsewhere.
    """
    place = _device(device)
    kind = dtype or ("fp32" if place.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise UserError(f"--dtype {kind}: choose one of {', '.join(DTYPES)}")
    pipeline = load_pipeline(_folder(model), DTYPES[kind])
    pipeline.to(place)
    return RVEDiTEditor(pipeline, model)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name}: no such device: try cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine or this build of torch has no CUDA: try --device cpu")
    return device


def _folder(model: str) -> Path:
    if model == "nano":
        return Path(str(files("rvedit") / "nano"))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise UserError(
            f"--model {model}: no such folder: give nano, a folder with a checkpoint, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--model {model}: not a folder here, and not to be had from the hub: {reason}"
        ) from None
