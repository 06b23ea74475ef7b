"""Masks: where an edit may change the source (`EditConfig.mask`), for every pipeline.

While a window is denoised, latents outside the mask are replaced after each step by the source's latents at
that noise level (Avrahami et al., "Blended Latent Diffusion", 2023; Lugmayr et al., "RePaint", 2022). In the
output, pixels outside the mask are the source's, with a soft border in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rvedit.editing.config import EditConfig
from rvedit.editing.regions import Box, as_masks
from rvedit.editing.time_range import FrameRange
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames
from rvedit.io.video import PICTURE_SUFFIXES, VideoInfo, VideoReader, VideoWriter, probe

Result = TypeVar("Result")
Mask = NDArray[np.bool_]
"""True where the edit may change a frame: (h, w)."""
BORDER = 1 / 64
"""Width of the soft border, as a fraction of the frame's short side."""
StepCallback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]
"""A `callback_on_step_end` of diffusers: (pipeline, step, timestep, tensors) -> changed tensors."""


def with_masks(
    frames: Iterable[Frames], masks: Iterable[Any], config: EditConfig
) -> Iterator[tuple[Frames, Mask]]:
    """Yield each frame (h, w, 3) with its mask, inverted and grown as the config says.

    A mask of one frame counts for all frames. Raises UserError for a mask of another size or length.
    """
    stream = iter(masks)
    mask: Mask | None = None
    num_frames = num_masks = 0
    for frame in frames:
        num_frames += 1
        following = next(stream, None)
        num_masks += following is not None
        if following is None and num_masks != 1:
            raise UserError(f"`mask` has {num_masks} frames, the video more: give one for each, or a still")
        if following is not None:
            mask = _prepared(following, frame.shape[0], frame.shape[1], config)
        assert mask is not None
        yield frame, mask
    if num_frames and next(stream, None) is not None:
        raise UserError(f"`mask` has more frames than the video, {num_frames}: give one for each, or a still")


def _prepared(given: Any, height: int, width: int, config: EditConfig) -> Mask:
    """Return a frame of a mask as booleans, inverted and grown."""
    pixels = given.mask(height, width) if isinstance(given, Box) else np.asarray(given)
    if pixels.ndim == 3:
        pixels = pixels.max(axis=-1)
    elif pixels.ndim != 2:
        raise UserError(f"`mask` has a frame of shape {pixels.shape}: give masks (h, w)")
    mask = pixels
    if mask.dtype != np.bool_:
        is_binary = np.issubdtype(mask.dtype, np.floating) or mask.max() <= 1
        mask = mask >= (0.5 if is_binary else 128)
    if mask.shape != (height, width):
        sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels, the video {width}x{height}"
        raise UserError(f"`mask` is {sizes}: give a mask of the video's size")
    return grow(mask != config.invert_mask, config.grow)


def keep_last(function: Callable[[Mask], Result]) -> Callable[[Mask], Result]:
    """Return the function with a memory of its last result: masks often are the same for all frames."""
    last: list[Any] = [None, None]

    def remembered(mask: Mask) -> Result:
        if last[0] is not mask:
            last[:] = mask, function(mask)
        return last[1]

    return remembered


def grow(mask: Mask, pixels: int) -> Mask:
    """Return a mask grown by a number of pixels to all sides, also diagonally."""
    pixels = min(pixels, max(mask.shape))
    if not pixels:
        return mask
    return np.asarray(_pool_around(F.max_pool2d, mask, pixels) > 0)


def border_of(height: int, width: int) -> int:
    """Return the width of the soft border in pixels: an even number."""
    return 2 * max(1, round(min(height, width) * BORDER / 2))


def soft_weights(mask: Mask) -> Float[Tensor, "h w"]:
    """Return the weight of the edit: 1 in the mask, falling to 0 over the border around it."""
    radius = border_of(*mask.shape) // 2
    mean = partial(F.avg_pool2d, count_include_pad=False)
    return _pool_around(mean, grow(mask, radius), radius)


def _pool_around(pool: Callable[..., Tensor], mask: Mask, radius: int) -> Float[Tensor, "h w"]:
    """Pool a mask over the square around each pixel: first along columns, then along rows."""
    pooled = pool(torch.from_numpy(mask)[None].float(), (2 * radius + 1, 1), 1, (radius, 0))
    return pool(pooled, (1, 2 * radius + 1), 1, (0, radius))[0]


def model_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask with its border at the model's size: True where any of its pixels is."""
    grown = torch.from_numpy(grow(mask, border_of(*mask.shape)))[None].float()
    return np.asarray(F.adaptive_max_pool2d(grown, (height, width))[0] > 0)


def hold_source(
    source: Float[Tensor, "b c f y x"], noise: Float[Tensor, "b c f y x"], mask: Bool[Tensor, "f y x"]
) -> StepCallback:
    """Return a `callback_on_step_end` that keeps latents outside the mask on the source's path.

    They become (1 - sigma) z_source + sigma noise, with the sigma that the step has reached. `noise` is the
    initial noise. For any pipeline with a flow-matching scheduler.
    """

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, sigma = tensors["latents"], pipe.scheduler.sigmas[step + 1]
        held = (1 - sigma) * source.to(latents.device) + sigma * noise.to(latents.device)
        return {**tensors, "latents": torch.where(mask.to(latents.device), latents, held.to(latents.dtype))}

    return on_step_end


def check_mask(config: EditConfig, info: VideoInfo) -> None:
    """Raise UserError if a mask file or a box does not fit a clip, or allows no change anywhere."""
    if isinstance(config.mask, Path):
        _check_file(config.mask, info)
    blank = np.broadcast_to(np.uint8(0), (info.height, info.width, 3))
    frames = repeat(blank, info.num_frames)
    if not any(mask.any() for _, mask in with_masks(frames, as_masks(config.mask), config)):
        raise UserError(f"`mask` {config.mask}: allows no change in any frame: white is what may change")


def _check_file(path: Path, info: VideoInfo) -> None:
    try:
        own = probe(path)
    except UserError as error:
        raise UserError(f"`mask` {error}") from None
    if (own.width, own.height) != (info.width, info.height):
        raise UserError(
            f"`mask` {path}: is {own.width}x{own.height} pixels, the clip {info.width}x{info.height}: give a "
            "mask of the clip's size"
        )
    if own.num_frames not in (1, info.num_frames):
        raise UserError(
            f"`mask` {path}: has {own.num_frames} frames, the clip {info.num_frames}: give as many, or one"
        )
    if own.kind == "image" and not own.streams:
        with Image.open(path) as image:
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            if alpha and np.asarray(alpha).min() < 255:
                raise UserError(f"`mask` {path}: is partly transparent: give a picture in black and white")


def write_mask(
    path: Path,
    reader: VideoReader,
    config: EditConfig,
    part: FrameRange | None = None,
    overwrite: bool = False,
) -> None:
    """Write the mask that an edit uses: white where it may change the clip, black outside `part`.

    The same mask for all frames may also be written as a picture.
    """
    blank = np.broadcast_to(np.uint8(0), (reader.info.height, reader.info.width, 3))
    masks = (mask for _, mask in with_masks(repeat(blank), as_masks(config.mask), config))
    with mask_writer(path, reader.info, config, overwrite) as writer:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            writer.write(_as_picture(next(masks)), 0)
            return
        first, stop = (part.first, part.stop) if part else (0, reader.info.num_frames)
        # Masks of words end with the range.
        pictures = chain(map(_as_picture, islice(masks, stop)), repeat(blank))
        for number, (timed, picture) in enumerate(zip(reader, pictures, strict=False)):
            writer.write(picture if number >= first else blank, timed.pts, timed.duration)


def mask_writer(path: Path, info: VideoInfo, config: EditConfig, overwrite: bool) -> VideoWriter:
    """Return the writer of `write_mask`. Raises UserError if `path` cannot be written."""
    mask = config.mask
    is_still = isinstance(mask, Box) or (isinstance(mask, Path) and probe(mask).num_frames == 1)
    is_picture = is_still and path.suffix.lower() in PICTURE_SUFFIXES
    like = replace(info.without_source(), num_frames=1 if is_picture else info.num_frames)
    try:
        return VideoWriter(path, like=like, overwrite=overwrite)
    except UserError as error:
        raise UserError(f"`save_mask` {error}") from None


def _as_picture(mask: Mask) -> Frames:
    return np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
