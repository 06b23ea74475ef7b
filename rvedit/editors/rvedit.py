"""RVEDiT itself: the embedded nano, or a folder or hub id with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from rvedit.checkpoints import find_checkpoint, load_pipeline
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
    pipeline = load_pipeline(find_checkpoint(model), DTYPES[kind])
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
