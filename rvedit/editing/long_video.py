"""The one driver for clips of any length and size, and for any pipeline that takes a video and a prompt.

A clip is read window by window at the model's size; a sampler edits each window by its pipeline; `finish`
brings the result back to the source's size. What differs between models is in their samplers: RVEDiT's
windows overlap and continue one another, the baselines' do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rvedit.editing.config import EditConfig, Progress
from rvedit.editing.finish import EditedFrames, finish, read_twice
from rvedit.editing.windows import Window, WindowNoise, WindowPlan, carry_over, pad_frames, split
from rvedit.io.frames import Frames, as_frames, resize_frames, to_frames, to_model_range
from rvedit.io.video import VideoReader
from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.pipelines.baselines import BaselineSpec, baseline_spec, capabilities
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

StepReport = Callable[[int, int], None]
"""(step from 1, number of steps)."""


def edit_video(
    pipe: Any,
    video: Any,
    prompt: str,
    config: EditConfig | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> Iterator[Frames]:
    """Edit a clip of any length and size; yield as many frames (h, w, 3) as it has, of the same size.

    Args:
        pipe: an `RVEDiTPipeline`, or diffusers' `LucyEditPipeline` or `WanVACEPipeline`.
        video: a path, an iterable of frames (h, w, 3) uint8, or any form that `RVEDiTPipeline` takes. An
            iterable is read one window ahead, so that it may be endless. One that can be iterated again is
            read twice instead of being held in memory.
        prompt: the instruction.
        config: how to edit; single settings may be given as keywords, such as `seed=3`.
        on_progress: called after each denoising step.

    Raises ValueError for settings that the pipeline does not read.
    """
    config = replace(config or EditConfig(), **changes)
    sampler = _sampler_of(pipe, prompt, config)
    return _edit(pipe, sampler, _frames_of(video), config, on_progress or (lambda progress: None))


def edit_videos_together(
    pipe: RVEDiTPipeline,
    videos: Sequence[Frames],
    prompts: Sequence[str],
    config: EditConfig | None = None,
) -> list[Frames]:
    """Edit clips (t, h, w, 3) of equal size and length in one batch, each as if it were edited alone.

    For many short clips on a GPU that one clip does not fill. Raises ValueError for unequal clips and for
    clips longer than a window.
    """
    config = config or EditConfig()
    count, height, width = videos[0].shape[:3]
    if len({video.shape for video in videos}) > 1:
        raise ValueError("only clips of one size and length are edited together")
    if count > pipe.config.window_frames:
        raise ValueError(f"{count} frames are more than a window of {pipe.config.window_frames}")
    size = pipe.model_size(height, width)
    frames = [resize_frames(pad_frames(video), *size) for video in videos]
    source = torch.cat([pipe.encode_video(clip) for clip in frames])
    noise = WindowNoise(WindowPlan.of(pipe), config.seed, pipe.config.shared_noise_ratio)
    latents = pipe(
        frames,
        list(prompts),
        source_latents=source,
        latents=noise.draw((1, *source.shape[1:])).expand(source.shape),
        output_type="latent",
        **_sampling(config),
    ).frames
    edited = _decode_batch(pipe, latents)
    pictures: list[Any] = [None] * len(videos)
    if config.needs_reconstruction:
        pictures = list(_decode_batch(pipe, source))
    finished = []
    for video, seen, edit, picture in zip(videos, frames, edited, pictures, strict=True):
        window = EditedFrames(edit[:count], None if picture is None else picture[:count], seen[:count])
        output = finish([window], video, config, _detail_cell(pipe), pipe._execution_device)
        finished.append(np.stack(list(output)))
    return finished


def count_windows(pipe: Any, num_frames: int, frame_rate: float | None = None) -> int:
    """Return how many windows a clip is edited in."""
    return _plan_of(pipe, EditConfig(frame_rate=frame_rate)).count(num_frames)


class WindowSampler(Protocol):
    """Edits the windows of one clip in their order."""

    plan: WindowPlan

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the model's size for frames of this size."""

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """Edit a window at the model's size; return the frames that it adds."""


class RVEDiTSampler:
    """Each window continues the one before, by its first frame as edited and the latents they share."""

    def __init__(self, pipe: RVEDiTPipeline, prompt: str, config: EditConfig) -> None:
        self.pipe, self.prompt, self.config = pipe, prompt, config
        self.plan = WindowPlan.of(pipe)
        self.size = pipe.model_size
        self.noise = WindowNoise(self.plan, config.seed, pipe.config.shared_noise_ratio)
        self.decoder = StreamDecoder(pipe.vae)
        self.latents: Tensor | None = None
        self.decoded: Frames | None = None  # of the last window

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """See `WindowSampler.edit`."""
        pipe, plan = self.pipe, self.plan
        count = len(window.frames)
        # A short clip is padded to 4k+1 frames only; a later window has to meet the one before.
        frames = pad_frames(window.frames, plan.length if window.index else None)
        source = pipe.encode_video(frames)
        prefix = None
        if self.latents is not None and self.decoded is not None:
            prefix = carry_over(self.latents, pipe.encode_video(self.decoded[plan.stride :][:1]), plan)
        self.latents = pipe(
            frames,
            self.prompt,
            height=frames.shape[1],
            width=frames.shape[2],
            source_latents=source,
            latents=self.noise.draw(tuple(source.shape)),
            prefix_latents=prefix,
            output_type="latent",
            callback_on_step_end=_reporter(report),
            **_sampling(self.config),
        ).frames
        with torch.no_grad():
            new = self.decoder.frames(self.latents, 0 if prefix is None else prefix.shape[2])
            added = slice(window.first_new, count)
            reconstructed = None
            if self.config.needs_reconstruction:
                reconstructed = StreamDecoder(pipe.vae).frames(source)[added]
        earlier = [] if self.decoded is None else [self.decoded[plan.stride :]]
        self.decoded = np.concatenate([*earlier, new])
        return EditedFrames(new[: count - window.first_new], reconstructed, frames[added])


class BaselineSampler:
    """Each window is edited by itself, at the model's native size and frame rate.

    Of a source with more frames per second the model sees every n-th frame; the others are given the edit of
    the nearest one.
    """

    def __init__(self, pipe: Any, spec: BaselineSpec, prompt: str, config: EditConfig) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.prompt = config.description if spec.capabilities.description else prompt
        self.plan = _plan_of(pipe, config)
        self.masks = _read_mask(config.mask)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """See `WindowSampler.size`."""
        grid = self.pipe.vae.config.scale_factor_spatial * self.pipe.transformer.config.patch_size[1]
        return self.spec.native.size(height, width, grid)

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """See `WindowSampler.edit`."""
        step = self.spec.native.frame_step(self.config.frame_rate)
        count = len(window.frames)
        seen = [round(n * step) for n in range(int((count - 1) / step) + 1)]
        masks = [next(self.masks) for _ in range(count)]
        edit = self.edit_seen(window.frames[seen], [masks[n] for n in seen], report)
        nearest = [min(len(seen) - 1, round(number / step)) for number in range(count)]
        return EditedFrames(
            edit.edited[nearest],
            None if edit.reconstructed is None else edit.reconstructed[nearest],
            edit.source[nearest],
        )

    def edit_seen(self, shown: Frames, masks: list[Frames | None], report: StepReport) -> EditedFrames:
        """Edit frames (t, h, w, 3) of the native size and rate, padded to 4k+1."""
        count, height, width = shown.shape[:3]
        frames = pad_frames(shown)
        options = _sampling(self.config)
        if self.spec.capabilities.mask:
            white = np.full((height, width, 3), 255, np.uint8)
            options["mask"] = [
                Image.fromarray(white if mask is None else resize_frames(mask[None], height, width)[0])
                for mask in [*masks, *masks[-1:] * (len(frames) - count)]
            ]
        output = self.pipe(
            prompt=self.prompt,
            video=[Image.fromarray(frame) for frame in frames],
            height=height,
            width=width,
            num_frames=len(frames),
            generator=torch.Generator("cpu").manual_seed(self.config.seed),
            output_type="np",
            callback_on_step_end=_reporter(report),
            **options,
        ).frames[0]
        edited = np.asarray((output[:count] * 255).round().clip(0, 255), np.uint8)
        reconstructed = None
        if self.config.needs_reconstruction:
            with torch.no_grad():
                pixels = to_model_range(frames)[None].to(self.pipe._execution_device)
                latents = encode(self.pipe.vae, pixels)
                reconstructed = StreamDecoder(self.pipe.vae).frames(latents)[:count]
        return EditedFrames(edited, reconstructed, shown)


def _edit(
    pipe: Any,
    sampler: WindowSampler,
    frames: Iterable[Frames],
    config: EditConfig,
    on_progress: Callable[[Progress], None],
) -> Iterator[Frames]:
    source, originals = read_twice(frames) if config.needs_reconstruction else (iter(frames), None)
    first = next(source, None)
    if first is None:
        return
    size = sampler.size(*first.shape[:2])
    resized = (resize_frames(frame[None], *size)[0] for frame in chain([first], source))

    def edited() -> Iterator[EditedFrames]:
        for window in split(resized, sampler.plan):

            def report(step: int, num_steps: int, number: int = window.index + 1) -> None:
                on_progress(Progress(number, step, num_steps))

            yield sampler.edit(window, report)

    # Without a reconstruction nothing of the source is read again but its size.
    again = repeat(first) if originals is None else originals
    yield from finish(edited(), again, config, _detail_cell(pipe), pipe._execution_device)


def _sampler_of(pipe: Any, prompt: str, config: EditConfig) -> WindowSampler:
    capabilities(pipe).check(config)
    if isinstance(pipe, RVEDiTPipeline):
        return RVEDiTSampler(pipe, prompt, config)
    return BaselineSampler(pipe, baseline_spec(pipe), prompt, config)


def _plan_of(pipe: Any, config: EditConfig) -> WindowPlan:
    if isinstance(pipe, RVEDiTPipeline):
        return WindowPlan.of(pipe)
    native = baseline_spec(pipe).native
    span = int((native.num_frames - 1) * native.frame_step(config.frame_rate)) + 1
    return WindowPlan(span, span)


def _frames_of(video: Any) -> Iterable[Frames]:
    """Return the frames (h, w, 3) of a video in any form."""
    if isinstance(video, str | Path):
        return _FileFrames(Path(video))
    is_array = isinstance(video, np.ndarray | Tensor)
    if is_array or (isinstance(video, Sequence) and len(video) and not isinstance(video[0], np.ndarray)):
        clips = as_frames(video)
        if len(clips) > 1:
            raise ValueError(f"video has {len(clips)} clips: edit them one by one")
        frames: Iterable[Frames] = clips[0]
        return frames
    return video


class _FileFrames:
    """The frames of a file, which can be iterated again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Frames]:
        with VideoReader(self.path) as reader:
            for timed in reader:
                yield timed.frame


def _sampling(config: EditConfig) -> dict[str, Any]:
    """Return the pipeline's arguments that a config states."""
    stated = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _reporter(report: StepReport) -> Callable[..., dict[str, Tensor]]:
    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        report(step + 1, pipe.num_timesteps)
        return tensors

    return on_step_end


def _detail_cell(pipe: Any) -> int:
    """Return half of a latent's side in pixels of the model's size, for detail transfer."""
    return int(pipe.vae.config.scale_factor_spatial // 2)


def _decode_batch(pipe: RVEDiTPipeline, latents: Tensor) -> list[Frames]:
    with torch.no_grad():
        parts = [part.float().cpu() for part in StreamDecoder(pipe.vae)(latents)]
    return [to_frames(clip) for clip in torch.cat(parts, dim=2)]


def _read_mask(path: Path | None) -> Iterator[Frames | None]:
    """Yield a mask (h, w, 3) for every frame, the last one repeated; None where everything may change."""
    mask: Frames | None = None
    if path is not None:
        with VideoReader(path) as reader:
            for timed in reader:
                mask = timed.frame
                yield mask
    while True:
        yield mask
