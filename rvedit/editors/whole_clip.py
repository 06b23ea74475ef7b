"""The other editors of Table 1 that diffusers runs: Lucy-Edit, VACE, and Ditto's adapters on VACE.

They edit a clip of their native size, length and rate at once. A longer clip is edited in pieces of that
length, one after the other; what comes back has the source's frames and size.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LucyEditPipeline, WanVACEPipeline
from PIL import Image

from rvedit.checkpoints import check_components, find_checkpoint
from rvedit.editing.finish import EditedFrames, finish, read_twice
from rvedit.editors.adapters import add_adapters
from rvedit.editors.base import Takes
from rvedit.errors import UserError
from rvedit.model.latents import StreamDecoder, encode
from rvedit.records import EditSettings, Progress
from rvedit.video import VideoReader
from rvedit.video_tensors import Frames, resize_frames, to_model_range


@dataclass(frozen=True)
class Native:
    """What an editor was trained on."""

    height: int
    width: int
    num_frames: int
    frame_rate: float

    def size(self, height: int, width: int, grid: int) -> tuple[int, int]:
        """The native size where a source has about its shape, lying or standing; else one of its area, in
        multiples of the grid.
        """
        shape = (self.height, self.width) if width >= height else (self.width, self.height)
        if abs(np.log(width / height) - np.log(shape[1] / shape[0])) < 0.1:
            return shape
        scale = (self.height * self.width / (height * width)) ** 0.5
        rows, columns = (max(1, round(side * scale / grid)) * grid for side in (height, width))
        return rows, columns


@dataclass(frozen=True)
class Known:
    """An editor of Table 1."""

    weights: str
    native: Native
    variable: str
    """Names other weights."""
    takes: Takes
    adapters: str | None = None
    """Of a checkpoint without any of its own: a repository of adapters, and the file in it."""


KNOWN = {
    "lucy": Known("decart-ai/Lucy-Edit-1.1-Dev", Native(480, 832, 81, 24.0), "RVEDIT_LUCY", Takes()),
    "vace": Known(
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        Native(720, 1280, 81, 16.0),
        "RVEDIT_VACE",
        Takes(description=True, mask=True),
    ),
    "ditto": Known(
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        Native(480, 832, 73, 20.0),
        "RVEDIT_VACE",
        Takes(mask=True),  # the adapters were trained on instructions
        "QingyanBai/Ditto_models",
    ),
}
"""By the name that `--model` takes."""


class WholeClipEditor:
    """A pipeline of diffusers as an editor.

    Args:
        name: as it stands in results.
        pipeline: Lucy-Edit's or VACE's.
        native: what it was trained on.
        takes: what it reads beside a clip and an instruction.
    """

    def __init__(self, name: str, pipeline: Any, native: Native, takes: Takes) -> None:
        self.name, self.pipeline, self.native, self.takes = name, pipeline, native, takes
        pipeline.set_progress_bar_config(disable=True)

    def windows(self, num_frames: int) -> int:
        """See `Editor.windows`; of a source at the native rate."""
        return -(-num_frames // self.native.num_frames)

    def edit(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[Frames]:
        """See `Editor.edit`. Raises UserError where it lacks a description."""
        self.takes.check(self.name, settings)
        words = settings.description if self.takes.description else instruction
        assert words is not None
        source, originals = read_twice(frames) if settings.reads_reconstruction else (iter(frames), None)
        first = next(source, None)
        if first is None:
            return
        originals = repeat(first) if originals is None else originals
        vae, transformer = self.pipeline.vae.config, self.pipeline.transformer.config
        grid = vae.scale_factor_spatial * transformer.patch_size[1]
        inside = self.native.size(first.shape[0], first.shape[1], grid)
        resized = (resize_frames(frame[None], *inside)[0] for frame in chain([first], source))
        windows = self._edit_pieces(resized, words, settings, on_progress)
        cell = vae.scale_factor_spatial // 2  # half of a latent's side
        yield from finish(windows, originals, settings, cell, self.pipeline._execution_device)
        self.pipeline.maybe_free_model_hooks()

    def _edit_pieces(
        self,
        source: Iterator[Frames],
        words: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[EditedFrames]:
        """Pieces of the native length; frames that the editor does not see are as the nearest seen one."""
        # A source of more frames a second than the editor knows is seen at the editor's rate.
        stride = max(1.0, (settings.frame_rate or 0.0) / self.native.frame_rate)
        span = int((self.native.num_frames - 1) * stride) + 1
        masks = _masks(settings.mask)
        index = 0
        while piece := list(islice(source, span)):
            seen = [round(n * stride) for n in range(int((len(piece) - 1) / stride) + 1)]
            mask = [next(masks) for _ in piece]

            def report(step: int, num_steps: int, window: int = index) -> None:
                on_progress(Progress(window + 1, step, num_steps))

            shown = np.stack([piece[n] for n in seen])
            edit = self._run(shown, [mask[n] for n in seen], words, settings, report)
            nearest = [min(len(seen) - 1, round(number / stride)) for number in range(len(piece))]
            yield EditedFrames(
                edit.edited[nearest],
                None if edit.reconstructed is None else edit.reconstructed[nearest],
                edit.source[nearest],
            )
            index += 1

    def _run(
        self,
        frames: Frames,
        masks: list[Frames | None],
        words: str,
        settings: EditSettings,
        report: Callable[[int, int], None],
    ) -> EditedFrames:
        """Edit at most a native length: padded to 4k+1 frames by the last, and cut again."""
        count, height, width = frames.shape[:3]
        padding = (1 - count) % 4
        frames = np.concatenate([frames, frames[-1:].repeat(padding, axis=0)])
        options: dict[str, Any] = {}
        if isinstance(self.pipeline, WanVACEPipeline):
            shown: list[Any] = [*masks, *masks[-1:] * padding]
            white = np.full((height, width, 3), 255, np.uint8)
            options["mask"] = [
                Image.fromarray(white if m is None else resize_frames(m[None], height, width)[0])
                for m in shown
            ]
        if settings.num_inference_steps:
            options["num_inference_steps"] = settings.num_inference_steps
        if settings.guidance_scale is not None:
            options["guidance_scale"] = settings.guidance_scale

        def progress(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            report(step + 1, pipeline.num_timesteps)
            return values

        result = self.pipeline(
            prompt=words,
            video=[Image.fromarray(frame) for frame in frames],
            height=height,
            width=width,
            num_frames=len(frames),
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="np",
            callback_on_step_end=progress,
            **options,
        ).frames[0]
        edited = np.asarray((result[:count] * 255).round().clip(0, 255), np.uint8)
        reconstructed = self._reconstruct(frames)[:count] if settings.reads_reconstruction else None
        return EditedFrames(edited, reconstructed, frames[:count])

    @torch.no_grad()
    def _reconstruct(self, frames: Frames) -> Frames:
        """The source after the editor's own VAE."""
        vae = self.pipeline.vae
        latents = encode(vae, to_model_range(frames)[None].to(self.pipeline._execution_device))
        return StreamDecoder(vae).frames(latents)


def load_known(name: str, dtype: torch.dtype) -> WholeClipEditor:
    """`lucy`, `vace` or `ditto`, from the hub or from where its variable points."""
    known = KNOWN[name]
    folder = find_checkpoint(os.environ.get(known.variable) or known.weights, known.variable)
    editor = load_foreign(folder, name, known, dtype)
    if known.adapters:
        adapters = os.environ.get("RVEDIT_DITTO") or known.adapters
        add_adapters(editor.pipeline.transformer, _adapter(find_checkpoint(adapters, "RVEDIT_DITTO")))
    return editor


def load_foreign(folder: Path, name: str, known: Known, dtype: torch.dtype) -> WholeClipEditor:
    """A folder of one of the pipelines that we drive; the VAE in fp32, as latents are coarse otherwise."""
    if importlib.util.find_spec("ftfy") is None:
        raise UserError(f"{name}: its pipeline needs ftfy: pip install 'rvedit[editors]'")
    check_components(folder)
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype={"default": dtype, "vae": torch.float32})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None
    if not isinstance(pipeline, (LucyEditPipeline, WanVACEPipeline)):
        raise UserError(f"{folder}: a {type(pipeline).__name__}, which is no editor that we drive")
    return WholeClipEditor(name, pipeline, known.native, known.takes)


def _adapter(file: Path) -> Path:
    """The file of adapters: the one that is named, or Ditto's of global edits."""
    if file.is_file():
        return file
    found = sorted(
        path for path in file.glob("**/*.safetensors") if "global" in path.name and "style" not in path.name
    )
    if not found:
        raise UserError(f"{file}: holds no adapters of global edits: name a file with RVEDIT_DITTO")
    return found[0]


def _masks(path: Path | None) -> Iterator[Frames | None]:
    """A mask for every frame of a source, the last one over and over; none: everything may change."""
    mask: Frames | None = None
    if path is not None:
        with VideoReader(path) as reader:
            for timed in reader:
                mask = timed.frame
                yield mask
    while True:
        yield mask
