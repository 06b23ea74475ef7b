"""Edit the clip of a job, in the worker's process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvedit.editing.config import EditConfig, Progress
from rvedit.io.errors import reason_of
from rvedit.io.video import VideoInfo, VideoReader, VideoWriter, default_suffix, frame_times
from rvedit.studio.jobs import PREVIEW, VIEW
from rvedit.studio.request import EditFiles, EditRequest

if TYPE_CHECKING:
    from rvedit.pipelines.memory import Offload, Quantize

_VIEW_SIDE = 720
"""Longest side in pixels of each of the two pictures in a view."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded: the values of `rvedit edit`'s options, the same for all jobs."""

    device: str | None = None
    dtype: str | None = None
    offload: Offload = "auto"
    quantization: Quantize | None = None
    vae_tiling: bool = False
    segmenter: str | None = None


class JobEditor:
    """Edits one job after another, and keeps the last model loaded."""

    def __init__(self, loading: LoadOptions) -> None:
        self.loading = loading
        self._loaded: tuple[Any, Any] = (None, None)

    def __call__(self, request: EditRequest, files: EditFiles, report: Report) -> dict[str, Any]:
        """Edit a clip; write the result, the view and the preview beside it. Return fields of the job.

        `report` receives what the job does, and as `edited` the fields, as soon as the result is there. The
        view may be missing, with a warning. Raises UserError for what does not fit the clip or the model.
        """
        from rvedit.editing.edit_file import edit_file
        from rvedit.editing.long_video import count_windows
        from rvedit.editing.preview import Preview
        from rvedit.editing.time_range import frame_range

        folder, count = files.source.parent, len(request.instructions)
        with VideoReader(files.source) as reader:
            info, part = reader.info, None
            if request.start or request.stop or request.fade:
                part = frame_range(
                    *frame_times(info), request.start or None, request.stop or None, request.fade
                )
            configs = _configs(request, files, self._mask(request, files, reader, part, report))
            report({"stage": "loading the model"})
            pipe = self._pipe(request)
            rate = float(info.frame_rate)
            num_frames = part.stop - part.first if part else info.num_frames
            windows = count_windows(pipe, num_frames, rate)
            output = folder / f"result{default_suffix(info)}"
            edited = edit_file(
                reader,
                request.instructions,
                output,
                pipe,
                configs,
                part=part,
                overwrite=True,
                on_progress=_Sampling(report, windows, count),
                callback_on_step_end=Preview(pipe, folder / PREVIEW, rate),
            )
        values = {
            "output": output.name,
            "num_frames": edited.num_frames,
            "width": edited.width,
            "height": edited.height,
            "seconds": round(edited.seconds, 3),
        }
        report({"stage": "writing the view", "edited": values})
        try:
            write_view(files.source, output, folder / VIEW)
        except Exception as error:  # the edit is there, and can be downloaded
            warnings.warn(
                f"{files.name}: the page shows no view of its edit ({reason_of(error)})", stacklevel=2
            )
        return values

    def _pipe(self, request: EditRequest) -> Any:
        from rvedit.pipelines.loading import load_pipeline, quiet_libraries

        wanted = (request.model, request.lora)
        if self._loaded[0] != wanted:
            self._loaded = (None, None)  # frees its memory first
            quiet_libraries()
            options = self.loading
            pipe = load_pipeline(
                request.model or "nano",
                device=options.device,
                dtype=options.dtype,
                offload=options.offload,
                quantization=options.quantization,
                vae_tiling=options.vae_tiling,
                lora=request.lora,
            )
            pipe.set_progress_bar_config(disable=True)
            self._loaded = (wanted, pipe)
        return self._loaded[1]

    def _mask(
        self, request: EditRequest, files: EditFiles, reader: VideoReader, part: Any, report: Report
    ) -> Any:
        """Return the mask of the job: its file, its box, or what a segmentation model finds; None: none."""
        from rvedit.editing.mask import check_mask
        from rvedit.editing.regions import find_region, read_regions

        masks = [files.mask] if files.mask else []
        place = read_regions(masks, [request.region] if request.region else [], 1)[0]
        if not isinstance(place, str):
            if place is not None:
                check_mask(EditConfig(mask=place, **_growth(request)), reader.info)
            return place
        from rvedit.editing.segmenters import DEFAULT_SEGMENTER, check_segmenter, load_segmenter

        name = self.loading.segmenter or DEFAULT_SEGMENTER
        check_segmenter(name)
        report({"stage": f"looking for {place}"})
        frames = (timed.frame for timed in reader)
        return find_region(frames, place, load_segmenter(name, self.loading.device), part)


class _Sampling:
    """An `on_progress` that reports window, step, and the time left at the rate so far."""

    def __init__(self, report: Report, windows: int, instructions: int) -> None:
        self.report, self.windows, self.instructions = report, windows, instructions
        self._finished = [0.0] * instructions
        self._started = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        self._finished[progress.edit - 1] = progress.window - 1 + progress.step / progress.num_steps
        share = sum(self._finished) / (self.windows * self.instructions)
        left = (time.monotonic() - self._started) * (1 / share - 1)
        self.report(
            {
                "stage": "editing",
                "instruction": progress.edit,
                "instructions": self.instructions,
                "window": progress.window,
                "windows": self.windows,
                "step": progress.step,
                "steps": progress.num_steps,
                "share": round(share, 4),
                "seconds_left": round(left, 1),
            }
        )


def _growth(request: EditRequest) -> Mapping[str, Any]:
    return {"grow": request.grow, "invert_mask": request.invert_mask}


def _configs(request: EditRequest, files: EditFiles, mask: Any) -> list[EditConfig]:
    """Return the settings of each instruction."""
    config = EditConfig(
        request.steps,
        request.guidance,
        request.seed,
        request.preserve,
        request.detail,
        reference_image=files.reference,
    )
    if mask is not None:
        config = replace(config, mask=mask, **_growth(request))
    configs = [config] * len(request.instructions)
    if request.description:
        configs = [replace(config, description=text) for text in request.description]
    return configs


def write_view(source: Path, edited: Path, path: Path) -> None:
    """Write source and edit side by side, small, as H.264 without sound that every browser plays.

    Left and right half have the same even size, at most 720 pixels a side. The rate is constant.
    """
    from rvedit.io.frames import resize_frames

    with VideoReader(source) as before, VideoReader(edited) as after:
        info = before.info
        scale = min(1.0, _VIEW_SIDE / max(info.width, info.height))
        height, width = (max(2, round(side * scale / 2) * 2) for side in (info.height, info.width))
        with VideoWriter(
            path, like=_plain(info, 2 * width, height), overwrite=True, preset="veryfast"
        ) as out:
            for number, (left, right) in enumerate(zip(before, after, strict=False)):
                both = [resize_frames(timed.frame[None], height, width)[0] for timed in (left, right)]
                out.write(_beside(*both), number, 1)


def _plain(info: VideoInfo, width: int, height: int) -> VideoInfo:
    """Return the description of a clip of constant rate, without sound."""
    rate = Fraction(info.frame_rate).limit_denominator(1000)
    return VideoInfo(
        path=Path("view"),
        kind="video",
        width=width,
        height=height,
        num_frames=info.num_frames,
        frame_rate=rate,
        time_base=1 / rate,
        duration=float(info.num_frames / rate),
        color_range=1,
        colorspace=1,
        color_primaries=1,
        color_trc=1,
        pix_fmt="yuv420p",
    )


def _beside(left: Any, right: Any) -> Any:
    import numpy as np

    return np.concatenate([left, right], axis=1)
