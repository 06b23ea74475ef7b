"""Clips and images in a multimodal LLM's prompt: patches, placeholder tokens and positions.

Qwen2.5-VL gets a clip as one volume. Qwen3-VL gets each pair of frames as an image of its own, after its time
in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

VIDEO_TOKEN, IMAGE_TOKEN = "<|video_pad|>", "<|image_pad|>"
QWEN3 = "qwen3_vl"
# Mean and standard deviation of RGB in [0, 1] that the vision encoders were trained with.
_STATISTICS = {QWEN3: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
_CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FRAME_RATE = 24
"""Frame rate that Qwen3-VL's processor assumes for frames without one."""


@dataclass(frozen=True)
class Vision:
    """A batch of clips (b, n, h, w, 3) or images (b, 1, h, w, 3) of one shape, cut to patches."""

    config: Any
    """Config of the multimodal LLM."""
    token: str
    """Stands in the prompt for `spatial_merge_size`² patches, each of `temporal_patch_size` frames."""
    patches: Float[Tensor, "p q"]
    grid: Int[Tensor, "1 3"]
    """Pairs of frames, rows and columns of patches of each clip; p is their product, times b."""

    @classmethod
    def of(cls, clips: UInt8[np.ndarray, "b n h w 3"], token: str, config: Any) -> Vision:
        """Return clips, or images of one frame, of a size from `MLLMFrameProcessor`."""
        return cls(config, token, *patchify(clips, config))

    @property
    def token_id(self) -> int:
        """Return the id of the token."""
        config = self.config
        return int(config.video_token_id if self.token == VIDEO_TOKEN else config.image_token_id)

    @property
    def parts(self) -> list[tuple[int, int, int]]:
        """Return the (pairs, rows, columns) of tokens of each part that has positions of its own."""
        merge = self.config.vision_config.spatial_merge_size
        pairs, rows, columns = self.grid[0].tolist()
        shape = (rows // merge, columns // merge)
        if self.config.model_type == QWEN3:
            return [(1, *shape)] * pairs
        return [(pairs, *shape)]

    @property
    def prompt(self) -> str:
        """Return the placeholder tokens of one clip or image."""
        texts = []
        for number, (pairs, rows, columns) in enumerate(self.parts):
            time = (2 * number + 0.5) / _FRAME_RATE  # between the two frames
            is_timed = self.config.model_type == QWEN3 and self.token == VIDEO_TOKEN
            tokens = self.token * (pairs * rows * columns)
            texts.append(f"{f'<{time:.1f} seconds>' * is_timed}<|vision_start|>{tokens}<|vision_end|>")
        return "".join(texts)

    def inputs(self, batch_size: int, device: torch.device) -> dict[str, Tensor]:
        """Return the arguments of the multimodal LLM."""
        names = ("pixel_values", "image_grid_thw")
        if self.token == VIDEO_TOKEN:
            names = ("pixel_values_videos", "video_grid_thw")
        values = (self.patches, self.grid.expand(batch_size, 3))
        return {name: value.to(device) for name, value in zip(names, values, strict=True)}


def patchify(
    clips: UInt8[np.ndarray, "b n h w 3"], config: Any
) -> tuple[Float[Tensor, "p q"], Int[Tensor, "1 3"]]:
    """Return normalized patches, and the grid (t, h, w) of a clip, as Qwen's processors do.

    The library's video processors need torchvision; this is the same computation without it. Raises
    ValueError for a size that is no multiple of a token's.
    """
    vision = config.vision_config
    patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    _, count, height, width, _ = clips.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"{height} x {width} is no multiple of {patch * merge}: use `frame_processor`")
    pixels = rearrange(torch.from_numpy(clips), "b n h w c -> b n c h w").float()
    statistics = _STATISTICS.get(config.model_type, _CLIP_STATISTICS)
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    pixels = (pixels / 255 - mean) / std
    if missing := -count % temporal:
        pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    patches = rearrange(
        pixels,
        "b (t pt) c (h mh ph) (w mw pw) -> (b t h w mh mw) (c pt ph pw)",
        pt=temporal, mh=merge, mw=merge, ph=patch, pw=patch,
    )  # fmt: skip
    return patches, torch.tensor([[pixels.shape[1] // temporal, height // patch, width // patch]])


def position_ids(
    visions: Sequence[Vision], input_ids: Int[Tensor, "b s"], attention_mask: Int[Tensor, "b s"]
) -> Int[Tensor, "3 b s"]:
    """Return each token's position in time, rows and columns, in prompts padded on the left.

    `visions` are in the order of the prompt. Text after each part follows its largest position on any axis,
    as in Qwen2.5-VL's training and transformers 4; transformers 5 leaves out time, which differs for clips of
    more frames than rows and columns. In Qwen2.5-VL, a pair of frames is one second.
    """
    text = (attention_mask.cumsum(1) - 1).clamp(min=0)
    found: list[tuple[Bool[Tensor, "b s"], Tensor]] = []
    for vision in visions:
        is_vision = input_ids == vision.token_id
        number = is_vision.cumsum(1) - 1
        first = 0
        for part in vision.parts:
            places = torch.stack(torch.meshgrid(*map(torch.arange, part), indexing="ij")).flatten(1)
            places[0] *= getattr(vision.config.vision_config, "tokens_per_second", 1)
            num_tokens, extent = places.shape[1], int(places.max()) + 1
            is_part = is_vision & (number >= first) & (number < first + num_tokens)
            start = text[is_part].view(len(text), num_tokens)[:, 0]
            # Text after the part has counted its tokens.
            text = text + (text >= start[:, None] + num_tokens) * (extent - num_tokens)
            found.append((is_part, (start[:, None] + places.to(start)[:, None]).flatten(1)))
            first += num_tokens
    positions = text.repeat(3, 1, 1)
    for is_part, places in found:
        positions[:, is_part] = places
    return positions
