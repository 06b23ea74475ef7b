"""Editing tokens X_e (section 4.2): what a multimodal LLM makes of (clip, instruction) at K query positions.

Kiwi-Edit's scheme on transformers' own Qwen2.5-VL: the prompt closes with K placeholder tokens whose
embeddings are replaced by learned queries; the last K hidden states, through a connector into the
transformer's width, are X_e. These positions attend causally over the frames and the instruction. As in
Kiwi-Edit they are the last K of the whole sequence, which the template closes with two tokens of its own, so
the first two queries act through the others alone.
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
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from rvedit.io.frames import Frames, resize_frames
from rvedit.models.offloading import onload

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)
VIDEO_TOKEN, IMAGE_TOKEN = "<|video_pad|>", "<|image_pad|>"
QUERY_TOKEN = "<|object_ref_start|>"
# What Qwen2.5-VL's vision encoder was trained on (CLIP's statistics of RGB in [0, 1]).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class EditTokenConnector(ModelMixin, ConfigMixin):
    """The K learned queries and the way from the LLM's width to the transformer's.

    Args:
        num_queries: K.
        llm_width: width of the LLM's hidden states.
        width: d, width of the transformer.
        max_frames: frames that the LLM sees, evenly spread over the clip.
        max_pixels: pixels of each of them, at most.
        system_prompt: the system turn before every clip.
        zero_init: start from a last layer of zeros, so that a pretrained backbone is not disturbed.
        num_image_queries: K of a single frame, which is then shown as an image; 0: it is a clip as any other.
        min_pixels: pixels of each frame of a clip, at least; 0: as many as one token sees.
        coarse_grid: frames are first resized by Pillow to multiples of so many pixels, as Kiwi-Edit's helper
            does; 0: they are not.
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
        """Hidden states at the query positions -> X_e."""
        tokens: Tensor = self.connector(hidden_states)
        return tokens


@dataclass(frozen=True)
class MLLMFrameProcessor:
    """What the multimodal LLM sees of a clip."""

    max_frames: int
    grid: int
    """Rows and columns are multiples of so many pixels: what one token sees."""
    max_pixels: int
    """Of each frame."""
    min_pixels: int = 0
    coarse_grid: int = 0
    """Multiples that Pillow resizes to before; 0: it does not."""
    whole_stills: bool = False
    """A single frame is seen at its own size, or nearly."""

    def sample(self, frames: Frames) -> Frames:
        """At most `max_frames`, evenly spread, first and last among them."""
        if len(frames) <= self.max_frames:
            return frames
        return frames[np.round(np.linspace(0, len(frames) - 1, self.max_frames)).astype(int)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns, in pixels, that it sees of a clip's frames."""
        if self.coarse_grid:
            height, width = self._coarse_size(height, width)
        return _fit(height, width, self.grid, max(self.min_pixels, self.grid**2), self.max_pixels)

    def __call__(self, clip: Frames) -> Frames:
        """The frames that it sees, at the size it sees them in."""
        height, width = clip.shape[1:3]
        if self.whole_stills and len(clip) == 1:
            least, most = (tokens * self.grid**2 for tokens in _STILL_TOKENS)
            return _pillow_resize(clip, *_fit(height, width, self.grid, least, most))
        size = self.size(height, width)
        clip = self.sample(clip)
        if self.coarse_grid:
            clip = _pillow_resize(clip, *self._coarse_size(height, width))
        return resize_frames(clip, *size)

    def _coarse_size(self, height: int, width: int) -> tuple[int, int]:
        return _fit(height, width, self.coarse_grid, 4 * self.coarse_grid**2, self.max_pixels)


_STILL_TOKENS = (4, 16_384)
"""Of an image, at least and at most, in Qwen's own tools."""


def _fit(height: int, width: int, grid: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    rows, columns = smart_resize(height, width, grid, min_pixels, max_pixels)
    return int(rows), int(columns)


def _pillow_resize(frames: Frames, height: int, width: int) -> Frames:
    """By Pillow's default filter."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


class EditTokenEncoder:
    """g_phi(v, l) of Alg. 1: (frames, instruction) -> X_e. Holds no weights of its own.

    `device` is where it computes; by default where the queries lie.
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
        """What the LLM sees of a clip."""
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
        """X_e of a batch of clips (of equal frame count and size, as `sight` gives them) and instructions."""
        device = self.device or self.connector.queries.device
        onload(self.mllm)
        is_image = len(frames[0]) == 1 and self.connector.config.num_image_queries > 0
        queries = self.connector.image_queries if is_image else self.connector.queries
        patches, grid = self.patchify(np.stack(frames))
        merge = self.mllm.config.vision_config.spatial_merge_size
        vision_tokens = int(grid.prod()) // merge**2
        texts = [self.prompt(instruction, vision_tokens, is_image) for instruction in instructions]
        # Padding on the left, so that the last K positions of every row are its end.
        inputs = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(device)
        input_ids = inputs.input_ids
        embeddings = self.mllm.get_input_embeddings()(input_ids)
        is_query = input_ids == self.tokenizer.convert_tokens_to_ids(QUERY_TOKEN)
        given = queries.to(embeddings.device, embeddings.dtype).repeat(len(texts), 1)
        embeddings = embeddings.masked_scatter(is_query[..., None], given)
        patches, grids = patches.to(device), grid.expand(len(texts), 3).to(device)
        shown: dict[str, Any]
        if is_image:
            is_vision = input_ids == self.mllm.config.image_token_id
            shown = {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": 1 * is_vision}
        else:
            is_vision = input_ids == self.mllm.config.video_token_id
            # The library's default for the seconds is too short for large batches.
            seconds = torch.ones(len(texts))
            shown = {"pixel_values_videos": patches, "video_grid_thw": grids, "second_per_grid_ts": seconds}
            shown["mm_token_type_ids"] = 2 * is_vision
        states = self.mllm.model(
            input_ids=input_ids,
            inputs_embeds=embeddings,
            attention_mask=inputs.attention_mask,
            use_cache=False,
            **shown,
        ).last_hidden_state
        tokens: Tensor = self.connector(states[:, -len(queries) :])
        return tokens

    def prompt(self, instruction: str, vision_tokens: int, is_image: bool = False) -> str:
        """Qwen's chat template around system prompt, clip, instruction and the K placeholders."""
        config = self.connector.config
        num_queries = config.num_image_queries if is_image else config.num_queries
        vision = (IMAGE_TOKEN if is_image else VIDEO_TOKEN) * vision_tokens
        return (
            f"<|im_start|>system\n{config.system_prompt}<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{vision}<|vision_end|>{_plain(instruction)}"
            f"{QUERY_TOKEN * num_queries}<|im_end|>\n"
        )

    def patchify(self, clips: UInt8[np.ndarray, "b n h w 3"]) -> tuple[Float[Tensor, "p q"], Tensor]:
        """Normalised and cut as Qwen2.5-VL's processor does: patches, and a clip's grid (t, h, w).

        The library's video processor needs torchvision; this is the same arithmetic without it. The frames
        have the size that `sight` gives them.
        """
        vision = self.mllm.config.vision_config
        patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        _, count, height, width, _ = clips.shape
        if height % (patch * merge) or width % (patch * merge):
            raise ValueError(f"frames of {height}x{width} are no multiples of {patch * merge}: apply `sight`")
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


def _plain(instruction: str) -> str:
    """The instruction as words: special tokens written out by a user must not act as such."""
    return instruction.replace("<|", "< |").replace("|>", "| >")
