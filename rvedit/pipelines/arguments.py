"""Checks of a pipeline's arguments, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from rvedit.io.frames import Frames

OUTPUT_TYPES = ("np", "pil", "pt", "latent")


def check_clips(clips: Frames, prompts: Sequence[str], negatives: Sequence[str], window_frames: int) -> None:
    """Raise ValueError for clips longer than a window, and for other than one text for each."""
    if clips.shape[1] > window_frames:
        raise ValueError(
            f"`video` has {clips.shape[1]} frames, more than a window of {window_frames}: edit it with "
            "rvedit.edit_video"
        )
    for name, texts in (("prompt", prompts), ("negative_prompt", negatives)):
        if len(texts) != len(clips):
            raise ValueError(f"`{name}` has {len(texts)} texts for {len(clips)} clips: give one for each")


def check_sampling(
    height: int | None, width: int | None, grid: int, num_steps: int, guidance: float, output_type: str
) -> None:
    """Raise ValueError for values out of range."""
    if (height is None) != (width is None):
        raise ValueError("`height` and `width`: give both or neither")
    if height is not None and width is not None and (height % grid or width % grid):
        raise ValueError(f"`height` and `width` are {height} and {width}: give multiples of {grid}")
    if num_steps < 1:
        raise ValueError(f"`num_inference_steps` is {num_steps}: give at least 1")
    if guidance < 0:
        raise ValueError(f"`guidance_scale` is {guidance}: give 0 or more; 1 disables guidance")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {output_type}: choose one of {', '.join(OUTPUT_TYPES)}")
