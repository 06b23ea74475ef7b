"""Edit clips of any length and size with any pipeline that takes a video and a prompt.

The source is resized to the model's size and split into windows; a sampler edits each window with its
pipeline; `finish` restores the source's size. Models differ in their samplers: RVEDiT's windows overlap and
continue one another, those of the baselines do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rvedit.compat import execution_device
from rvedit.editing.config import EditConfig, Progress
from rvedit.editing.finish import finish, read_twice
from rvedit.editing.mask import (
    StepCallback,
    hold_source,
    keep_last,
    model_mask,
    with_masks,
)
from rvedit.editing.regions import as_masks
from rvedit.editing.step_callback import StepReport, step_callback
from rvedit.editing.windows import (
    EditedFrames,
    Window,
    WindowNoise,
    WindowPlan,
    carry_over,
    pad_frames,
    split,
)
from rvedit.io.frames import Frames, as_frames, resize_frames, to_frames, to_model_range
from rvedit.io.video import FileFrames, read_image
from rvedit.models.autoencoder import FRAMES_PER_LATENT, StreamDecoder, encode, latent_mask
from rvedit.pipelines.baselines import BaselineSpec, baseline_spec, capabilities
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.pipelines.schedule import scheduler_with
from rvedit.pipelines.sigmas import check_sigmas


def edit_video(
    pipe: Any,
    video: Any,
    prompt: str,
    config: EditConfig | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    callback_on_step_end: StepCallback | None = None,
    **changes: Any,
) -> Iterator[Frames]:
    """Edit a clip of any length and size; yield one frame (h, w, 3) of the source's size per source frame.

    Args:
        pipe: an `RVEDiTPipeline`, or diffusers' `LucyEditPipeline` or `WanVACEPipeline`.
        video: a path, an iterable of frames (h, w, 3) uint8, or any form that `RVEDiTPipeline` takes. An
            iterable is read one window ahead and may be endless. One that can be iterated again is read twice
            instead of being held in memory.
        prompt: the instruction.
        config: settings; single ones may be given as keywords, such as `seed=3`.
        on_progress: called after each denoising step.
        callback_on_step_end: also called after each denoising step, by the pipeline, as in diffusers; such as
            a `Preview`.

    Raises ValueError for settings that the pipeline does not read.
    """
    config = replace(config or EditConfig(), **changes)
    sampler = _sampler_of(pipe, prompt, config, callback_on_step_end)
    return _edit(pipe, sampler, _frames_of(video), config, on_progress or (lambda progress: None))


def edit_videos_together(
    pipe: RVEDiTPipeline, videos: Sequence[Frames], prompts: Sequence[str], config: EditConfig | None = None
) -> list[Frames]:
    """Edit clips (t, h, w, 3) of equal size and length in one batch; return each as if edited alone.

    For many short clips on a GPU that one clip does not fill. Raises ValueError for clips of unequal size or
    length, and for clips longer than a window.
    """
    config = config or EditConfig()
    if config.mask is not None:
        raise ValueError("`mask`: edit videos with masks one by one")
    count, height, width = videos[0].shape[:3]
    if len({video.shape for video in videos}) > 1:
        raise ValueError("videos differ in size or length: edit them one by one")
    if count > pipe.config.window_frames:
        raise ValueError(f"{count} frames exceed a window, {pipe.config.window_frames}: edit them one by one")
    sizes = pipe.sizes
    size = sizes.model_size(height, width)
    shown = [sizes.resize(video, *sizes.mllm_size(height, width)) for video in videos]
    frames = [sizes.resize(clip, *size) for clip in shown]
    source = torch.cat([pipe.encode_video(pad_frames(clip)) for clip in frames])
    noise = WindowNoise(WindowPlan.of(pipe), config.seed, pipe.config.shared_noise_ratio)
    latents = pipe(
        shown,
        list(prompts),
        height=size[0],
        width=size[1],
        source_latents=source,
        latents=noise.draw((1, *source.shape[1:])).expand(source.shape),
        output_type="latent",
        **_sampling(config),
    ).frames
    edited = _decode_batch(pipe, latents, count)
    reads_source = config.needs_reconstruction
    reconstructed = _decode_batch(pipe, source, count) if reads_source else [None] * len(videos)
    outputs = []
    for number, video in enumerate(videos):
        window = EditedFrames(edited[number], reconstructed[number], frames[number])
        output = finish([window], video, config, _detail_cell(pipe), execution_device(pipe))
        outputs.append(np.stack(list(output)))
    return outputs


def count_windows(pipe: Any, num_frames: int, frame_rate: float | None = None) -> int:
    """Return the number of windows that a clip is edited in."""
    return _plan_of(pipe, frame_rate).count(num_frames)


class WindowSampler(Protocol):
    """A sampler for the windows of one clip, in their order."""

    plan: WindowPlan

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (h, w) at which the model edits frames of this size, that of a window's masks."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (h, w) of a window's frames."""

    def resize(self, frames: Frames, height: int, width: int) -> Frames:
        """Resize (t, h, w, 3) frames to `input_size`."""

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """Edit a window; return the frames that no earlier window had, at `size`."""


class RVEDiTSampler:
    """RVEDiT's sampler. Each window starts with the edited first frame and latents of the window before."""

    def __init__(
        self, pipe: RVEDiTPipeline, prompt: str, config: EditConfig, on_step_end: StepCallback | None
    ) -> None:
        self.pipe, self.prompt, self.config, self.on_step_end = pipe, prompt, config, on_step_end
        self.sampling = _sampling(config)
        self.plan = WindowPlan.of(pipe)
        self.size = pipe.model_size
        self.input_size, self.resize = pipe.sizes.mllm_size, pipe.sizes.resize
        self.noise = WindowNoise(self.plan, config.seed, pipe.config.shared_noise_ratio)
        self.decoder = StreamDecoder(pipe.vae)
        self.latents: Tensor | None = None
        self.decoded: Frames | None = None  # all frames of the previous window

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """See `WindowSampler.edit`."""
        pipe, plan = self.pipe, self.plan
        count = len(window.frames)
        size = pipe.sizes.enlarged_size(*window.frames.shape[1:3])
        # The first window is padded to 4k+1 frames only; later ones need the full length, to overlap.
        frames = pad_frames(self.resize(window.frames, *size), plan.length if window.index else None)
        source = pipe.encode_video(frames)
        prefix = None
        if self.latents is not None and self.decoded is not None:
            prefix = carry_over(self.latents, pipe.encode_video(self.decoded[plan.stride :][:1]), plan)
        noise = self.noise.draw(tuple(source.shape))
        self.latents = pipe(
            window.frames,
            self.prompt,
            height=size[0],
            width=size[1],
            source_latents=source,
            latents=noise,
            prefix_latents=prefix,
            output_type="latent",
            callback_on_step_end=step_callback(
                report, _hold_outside(window.masks, source, noise), self.on_step_end
            ),
            **self.sampling,
        ).frames
        with torch.no_grad():
            new = self.decoder.frames(self.latents, 0 if prefix is None else prefix.shape[2])
            is_new = slice(window.first_new, count)
            reconstructed = None
            if self.config.needs_reconstruction:
                reconstructed = StreamDecoder(pipe.vae).frames(source)[is_new]
        overlap = [] if self.decoded is None else [self.decoded[plan.stride :]]
        self.decoded = np.concatenate([*overlap, new])
        masks = None if window.masks is None else window.masks[is_new]
        return EditedFrames(new[: count - window.first_new], reconstructed, frames[is_new], masks)


class BaselineSampler:
    """A baseline's sampler. Windows are edited independently, at the model's native size and frame rate.

    If the source has a higher frame rate, the model edits every n-th frame, and each other frame repeats the
    edit of the nearest one.
    """

    def __init__(
        self,
        pipe: Any,
        spec: BaselineSpec,
        prompt: str,
        config: EditConfig,
        on_step_end: StepCallback | None,
    ) -> None:
        self.pipe, self.spec, self.config, self.on_step_end = pipe, spec, config, on_step_end
        self.prompt = config.description if spec.capabilities.description else prompt
        self.plan = _plan_of(pipe, config.frame_rate)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """See `WindowSampler.size`."""
        grid = self.pipe.vae.config.scale_factor_spatial * self.pipe.transformer.config.patch_size[1]
        return self.spec.native.size(height, width, grid)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """See `WindowSampler.input_size`."""
        return self.size(height, width)

    def resize(self, frames: Frames, height: int, width: int) -> Frames:
        """See `WindowSampler.resize`."""
        return resize_frames(frames, height, width)

    def edit(self, window: Window, report: StepReport) -> EditedFrames:
        """See `WindowSampler.edit`."""
        step = self.spec.native.frame_step(self.config.frame_rate)
        count = len(window.frames)
        sampled = [round(n * step) for n in range(int((count - 1) / step) + 1)]
        masks = None if window.masks is None else window.masks[sampled]
        edit = self.edit_sampled(window.frames[sampled], masks, report)
        nearest = [min(len(sampled) - 1, round(number / step)) for number in range(count)]
        return EditedFrames(
            edit.edited[nearest],
            None if edit.reconstructed is None else edit.reconstructed[nearest],
            edit.source[nearest],
            window.masks,
        )

    def edit_sampled(
        self, source: Frames, masks: NDArray[np.bool_] | None, report: StepReport
    ) -> EditedFrames:
        """Edit frames (t, h, w, 3) of the native size and rate; they are padded to 4k+1 frames."""
        pipe, device = self.pipe, execution_device(self.pipe)
        count, height, width = source.shape[:3]
        frames = pad_frames(source)
        options = _sampling(self.config)
        shift, sigmas = options.pop("shift", None), options.pop("sigmas", None)
        if sigmas is not None:
            options["num_inference_steps"] = len(check_sigmas(sigmas))
        generator = torch.Generator("cpu").manual_seed(self.config.seed)
        latents = hold = None
        if masks is not None or self.config.needs_reconstruction:
            with torch.no_grad():
                latents = encode(pipe.vae, to_model_range(frames)[None].to(device))
        if masks is not None and latents is not None:
            options["latents"] = torch.randn(latents.shape, generator=generator)
            hold = _hold_outside(masks, latents, options["latents"])
        if self.spec.capabilities.mask:
            allowed = np.ones(frames.shape[:3], bool) if masks is None else pad_frames(masks)
            options["mask"] = [Image.fromarray(mask) for mask in allowed]
        with scheduler_with(pipe, shift, sigmas):
            output = pipe(
                prompt=self.prompt,
                video=[Image.fromarray(frame) for frame in frames],
                height=height,
                width=width,
                num_frames=len(frames),
                generator=generator,
                output_type="np",
                callback_on_step_end=step_callback(report, hold, self.on_step_end),
                **options,
            ).frames[0]
        edited = np.asarray((output[:count] * 255).round().clip(0, 255), np.uint8)
        reconstructed = None
        if self.config.needs_reconstruction and latents is not None:
            with torch.no_grad():
                reconstructed = StreamDecoder(pipe.vae).frames(latents)[:count]
        return EditedFrames(edited, reconstructed, source)


def _edit(
    pipe: Any,
    sampler: WindowSampler,
    frames: Iterable[Frames],
    config: EditConfig,
    on_progress: Callable[[Progress], None],
) -> Iterator[Frames]:
    source, originals = read_twice(frames) if config.needs_source else (iter(frames), None)
    first = next(source, None)
    if first is None:
        return
    source = chain([first], source)
    # If the source's pixels are not needed again, any frame of its size will do.
    originals = repeat(first) if originals is None else originals
    pairs: Iterable[tuple[Frames, Any]] = zip(source, repeat(None), strict=False)
    masks = None
    if config.mask is not None:
        given, given_again = read_twice(as_masks(config.mask))
        pairs = with_masks(source, given, config)
        masks = (mask for _, mask in with_masks(repeat(first), given_again, config))
    height, width = sampler.size(*first.shape[:2])
    input_size = sampler.input_size(*first.shape[:2])
    small_mask = keep_last(partial(model_mask, height=height, width=width))
    resized = (
        (sampler.resize(frame[None], *input_size)[0], None if mask is None else small_mask(mask))
        for frame, mask in pairs
    )

    def edited() -> Iterator[EditedFrames]:
        for window in split(resized, sampler.plan):

            def report(step: int, num_steps: int, number: int = window.index + 1) -> None:
                on_progress(Progress(number, step, num_steps))

            yield sampler.edit(window, report)

    yield from finish(edited(), originals, config, _detail_cell(pipe), execution_device(pipe), masks)


def _hold_outside(masks: NDArray[np.bool_] | None, source: Tensor, noise: Tensor) -> StepCallback | None:
    """Return `hold_source` for the masks (t, h, w) of a window's frames before they are padded."""
    if masks is None:
        return None
    num_latents, height, width = source.shape[2:]
    padded = pad_frames(masks, 1 + (num_latents - 1) * FRAMES_PER_LATENT)
    return hold_source(source, noise, latent_mask(padded, height, width))


def _sampler_of(
    pipe: Any, prompt: str, config: EditConfig, on_step_end: StepCallback | None
) -> WindowSampler:
    capabilities(pipe).check(config)
    if isinstance(pipe, RVEDiTPipeline):
        return RVEDiTSampler(pipe, prompt, config, on_step_end)
    return BaselineSampler(pipe, baseline_spec(pipe), prompt, config, on_step_end)


def _plan_of(pipe: Any, frame_rate: float | None) -> WindowPlan:
    if isinstance(pipe, RVEDiTPipeline):
        return WindowPlan.of(pipe)
    native = baseline_spec(pipe).native
    span = int((native.num_frames - 1) * native.frame_step(frame_rate)) + 1
    return WindowPlan(span, span)


def _frames_of(video: Any) -> Iterable[Frames]:
    """Return the frames (h, w, 3) of a video in any form."""
    if isinstance(video, str | Path):
        return FileFrames(video)
    is_array = isinstance(video, np.ndarray | Tensor)
    if is_array or (isinstance(video, Sequence) and len(video) and not isinstance(video[0], np.ndarray)):
        clips = as_frames(video)
        if len(clips) > 1:
            raise ValueError(f"video has {len(clips)} clips: edit them one by one")
        video = clips[0]
    return video


def _sampling(config: EditConfig) -> dict[str, Any]:
    """Return the pipeline's sampling arguments, without those left at the model's default."""
    names = ("num_inference_steps", "guidance_scale", "shift", "sigmas", "reference_image")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if isinstance(given.get("reference_image"), str | Path):
        given["reference_image"] = read_image(given["reference_image"])
    return given


def _detail_cell(pipe: Any) -> int:
    """Return the `cell` of `DetailTransfer`: half of a latent's side in pixels at the model's size."""
    return int(pipe.vae.config.scale_factor_spatial // 2)


def _decode_batch(pipe: RVEDiTPipeline, latents: Tensor, count: int) -> list[Frames]:
    with torch.no_grad():
        parts = [part.float().cpu() for part in StreamDecoder(pipe.vae)(latents)]
    return [to_frames(clip)[:count] for clip in torch.cat(parts, dim=2)]
