"""Editing tokens X_e (section 4.2): outputs of a multimodal LLM for (clip, instruction) at K query positions.

This is Kiwi-Edit's design on transformers' Qwen2.5-VL. The prompt ends with K placeholder tokens whose
embeddings are replaced by learned queries, which attend causally to the frames and the instruction. The last
K hidden states, projected to the transformer's width by a connector, are X_e. As in Kiwi-Edit these are the
last K positions of the whole sequence. The template ends with two more tokens, so that the first two queries
act only through attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from rvedit.compat import onload, smart_resize
from rvedit.io.frames import Frames, pillow_resize, resize_frames

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)
VIDEO_TOKEN, IMAGE_TOKEN = "<|video_pad|>", "<|image_pad|>"
QUERY_TOKEN = "<|object_ref_start|>"
# CLIP's statistics of RGB in [0, 1], which Qwen2.5-VL's vision encoder was trained with.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class EditTokenConnector(ModelMixin, ConfigMixin):
    """The K learned queries, and the projection from the LLM's width to the transformer's.

    Args:
        num_queries: K.
        llm_width: width of the LLM's hidden states.
        width: d, width of the transformer.
        max_frames: maximum number of frames for the LLM, evenly spaced over the clip.
        max_pixels: maximum pixels of each frame.
        system_prompt: system prompt.
        zero_init: initialize the last layer with zeros, so that a pretrained backbone is not disturbed.
        num_image_queries: K for a single frame, which is then an image to the LLM; 0: it is a video too.
        min_pixels: minimum pixels of each frame of a video; 0: the pixels of one token.
        coarse_grid: first resize frames with Pillow to multiples of this many pixels, as Kiwi-Edit does; 0:
        do
            not.
    """

    @register_to_config
    def __init__(
        self,
        num_queries: int = 512,
        llm_width: int = 2048,
        width: int = 3072,
        max_frames: int = 16,
        max_pixels: int = 262_144,
        system_prompt: str = SYSTEM_PROMPT,
        zero_init: bool = True,
        num_image_queries: int = 0,
        min_pixels: int = 0,
        coarse_grid: int = 0,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, llm_width) * 0.02)
        if num_image_queries:
            self.image_queries = nn.Parameter(torch.randn(num_image_queries, llm_width) * 0.02)
        last = nn.Linear(width, width)
        if zero_init:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.connector = nn.Sequential(nn.Linear(llm_width, width), nn.GELU("tanh"), last)

    def forward(self, hidden_states: Float[Tensor, "b k m"]) -> Float[Tensor, "b k d"]:
        """Return X_e from the hidden states at the query positions."""
        tokens: Tensor = self.connector(hidden_states)
        return tokens


@dataclass(frozen=True)
class MLLMFrameProcessor:
    """Samples and resizes the frames of a clip for the multimodal LLM."""

    max_frames: int
    grid: int
    """Side of one token in pixels; heights and widths are multiples of it."""
    max_pixels: int
    """Maximum pixels of each frame."""
    min_pixels: int = 0
    coarse_grid: int = 0
    """First resize with Pillow to multiples of this many pixels; 0: do not."""
    whole_stills: bool = False
    """Keep a single frame near its own size."""

    def sample(self, frames: Frames) -> Frames:
        """Return at most `max_frames` frames, evenly spaced from the first to the last."""
        if len(frames) <= self.max_frames:
            return frames
        return frames[np.round(np.linspace(0, len(frames) - 1, self.max_frames)).astype(int)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) in pixels of the LLM's frames for a clip of this size."""
        if self.coarse_grid:
            height, width = self._coarse_size(height, width)
        return smart_resize(height, width, self.grid, max(self.min_pixels, self.grid**2), self.max_pixels)

    def __call__(self, clip: Frames) -> Frames:
        """Return the frames for the LLM at their size."""
        height, width = clip.shape[1:3]
        if self.whole_stills and len(clip) == 1:
            minimum, maximum = (tokens * self.grid**2 for tokens in _STILL_TOKENS)
            size = smart_resize(height, width, self.grid, minimum, maximum)
            return pillow_resize(clip, *size, Image.Resampling.BICUBIC)
        size = self.size(height, width)
        clip = self.sample(clip)
        if self.coarse_grid:
            clip = pillow_resize(clip, *self._coarse_size(height, width), Image.Resampling.BICUBIC)
        return resize_frames(clip, *size)

    def _coarse_size(self, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self.coarse_grid, 4 * self.coarse_grid**2, self.max_pixels)


_STILL_TOKENS = (4, 16_384)
"""Minimum and maximum tokens of an image in Qwen's tools."""


class EditTokenEncoder:
    """g_phi(v, l) of Alg. 1: maps (frames, instruction) to X_e. It has no weights of its own.

    It computes on `device`, by default the device of the queries.
    """

    def __init__(
        self,
        mllm: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Any,
        connector: EditTokenConnector,
        device: torch.device | None = None,
    ):
        self.device = device
        self.mllm = mllm
        self.tokenizer = tokenizer
        self.connector = connector

    @property
    def frame_processor(self) -> MLLMFrameProcessor:
        """Return the processor that prepares frames for `__call__`."""
        vision, config = self.mllm.config.vision_config, self.connector.config
        return MLLMFrameProcessor(
            config.max_frames,
            vision.patch_size * vision.spatial_merge_size,
            config.max_pixels,
            config.min_pixels,
            config.coarse_grid,
            whole_stills=config.num_image_queries > 0,
        )

    def __call__(
        self, frames: Sequence[UInt8[np.ndarray, "n h w 3"]], instructions: Sequence[str]
    ) -> Float[Tensor, "b k d"]:
        """Return X_e of a batch of clips, from `frame_processor` and of one shape, and instructions."""
        device = self.device or self.connector.queries.device
        onload(self.mllm)
        is_image = len(frames[0]) == 1 and self.connector.config.num_image_queries > 0
        queries = self.connector.image_queries if is_image else self.connector.queries
        patches, grid = self.patchify(np.stack(frames))
        merge = self.mllm.config.vision_config.spatial_merge_size
        vision_tokens = int(grid.prod()) // merge**2
        prompts = [self.prompt(instruction, vision_tokens, is_image) for instruction in instructions]
        # Pad on the left, so that the last K positions are the end of every prompt.
        inputs = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(device)
        input_ids = inputs.input_ids
        embeddings = self.mllm.get_input_embeddings()(input_ids)
        is_query = input_ids == self.tokenizer.convert_tokens_to_ids(QUERY_TOKEN)
        repeated = queries.to(embeddings.device, embeddings.dtype).repeat(len(prompts), 1)
        embeddings = embeddings.masked_scatter(is_query[..., None], repeated)
        patches, grids = patches.to(device), grid.expand(len(prompts), 3).to(device)
        vision: dict[str, Any]
        if is_image:
            is_vision = input_ids == self.mllm.config.image_token_id
            vision = {"pixel_values": patches, "image_grid_thw": grids}
        else:
            is_vision = input_ids == self.mllm.config.video_token_id
            vision = {"pixel_values_videos": patches, "video_grid_thw": grids}
        states = self.mllm.model(
            input_ids=input_ids,
            inputs_embeds=embeddings,
            attention_mask=inputs.attention_mask,
            position_ids=self._position_ids(is_vision, inputs.attention_mask, grid),
            use_cache=False,
            **vision,
        ).last_hidden_state
        tokens: Tensor = self.connector(states[:, -len(queries) :])
        return tokens

    def prompt(self, instruction: str, vision_tokens: int, is_image: bool = False) -> str:
        """Return Qwen's chat template with system prompt, clip, instruction and the K placeholders."""
        config = self.connector.config
        num_queries = config.num_image_queries if is_image else config.num_queries
        vision = (IMAGE_TOKEN if is_image else VIDEO_TOKEN) * vision_tokens
        return (
            f"<|im_start|>system\n{config.system_prompt}<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{vision}<|vision_end|>{_escape(instruction)}"
            f"{QUERY_TOKEN * num_queries}<|im_end|>\n"
        )

    def _position_ids(
        self, is_vision: Bool[Tensor, "b s"], attention_mask: Int[Tensor, "b s"], grid: Int[Tensor, "1 3"]
    ) -> Int[Tensor, "3 b s"]:
        """Return each token's position in time, rows and columns, in prompts padded on the left.

        Text after the clip follows its largest position on any axis, as in Qwen2.5-VL's training and
        transformers 4; transformers 5 leaves out time, which differs for clips of more frames than rows and
        columns. A pair of frames is one second.
        """
        config = self.mllm.config.vision_config
        merged = grid[0] // torch.tensor([1, config.spatial_merge_size, config.spatial_merge_size])
        axes = (torch.arange(length) for length in merged.tolist())
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        places[0] *= config.tokens_per_second
        num_tokens, extent = places.shape[1], int(places.max()) + 1
        text = (attention_mask.cumsum(1) - 1).clamp(min=0)
        start = text[is_vision].view(len(text), num_tokens)[:, 0]
        # Text after the clip has counted its tokens.
        text = text + (text >= start[:, None] + num_tokens) * (extent - num_tokens)
        positions = text.repeat(3, 1, 1)
        positions[:, is_vision] = (start[:, None] + places.to(start)[:, None]).flatten(1)
        return positions

    def patchify(self, clips: UInt8[np.ndarray, "b n h w 3"]) -> tuple[Float[Tensor, "p q"], Tensor]:
        """Return normalized patches, and the grid (t, h, w) of a clip, as Qwen2.5-VL's processor does.

        The library's video processor needs torchvision; this is the same computation without it. The frames
        come from `frame_processor`.
        """
        vision = self.mllm.config.vision_config
        patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        _, count, height, width, _ = clips.shape
        if height % (patch * merge) or width % (patch * merge):
            raise ValueError(f"{height} x {width} is no multiple of {patch * merge}: use `frame_processor`")
        pixels = rearrange(torch.from_numpy(clips), "b n h w c -> b n c h w").float()
        mean, std = (torch.tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
        pixels = (pixels / 255 - mean) / std
        if missing := -count % temporal:
            pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        patches = rearrange(
            pixels,
            "b (t pt) c (h mh ph) (w mw pw) -> (b t h w mh mw) (c pt ph pw)",
            pt=temporal, mh=merge, mw=merge, ph=patch, pw=patch,
        )  # fmt: skip
        return patches, torch.tensor([[pixels.shape[1] // temporal, height // patch, width // patch]])


def _escape(instruction: str) -> str:
    """Return an instruction in which special tokens are plain text."""
    return instruction.replace("<|", "< |").replace("|>", "| >")
