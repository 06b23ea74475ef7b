"""Editing tokens X_e (section 4.2): outputs of a multimodal LLM for (clip, instruction) at K query positions.

This is Kiwi-Edit's design on transformers' Qwen2.5-VL or Qwen3-VL. The prompt ends with K placeholder tokens
whose embeddings are replaced by learned queries, which attend causally to the frames and the instruction. The
last K hidden states, projected to the transformer's width by a connector, are X_e. As in Kiwi-Edit these are
the last K positions of the whole sequence. The template ends with two more tokens, so that the first two
queries act only through attention.

With a reference image the prompt goes on with a sentence about it and the image itself, and ends with queries
of their own. X_e then starts with the hidden states of the image, projected by a connector of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from rvedit.compat import onload
from rvedit.models.mllm_frames import MLLMFrameProcessor
from rvedit.models.vision_prompt import IMAGE_TOKEN, QWEN3, VIDEO_TOKEN, Vision, position_ids

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)
QUERY_TOKEN = "<|object_ref_start|>"
REFERENCE_SENTENCE = " Use the reference input from last frame."
"""What Kiwi-Edit writes between an instruction and the reference image."""


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
            do not.
        num_reference_queries: K with a reference image; 0: the model reads none.
        max_reference_tokens: maximum tokens of a reference image.
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
        num_reference_queries: int = 0,
        max_reference_tokens: int = 768,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, llm_width) * 0.02)
        if num_image_queries:
            self.image_queries = nn.Parameter(torch.randn(num_image_queries, llm_width) * 0.02)
        self.connector = _projection(llm_width, width, zero_init)
        if num_reference_queries:
            self.add_reference_queries(num_reference_queries, zero_init)

    def add_reference_queries(self, count: int, zero_init: bool) -> None:
        """Add queries for prompts with a reference image, and the projection of the image's states."""
        llm_width, width, like = self.config.llm_width, self.config.width, self.queries
        queries = torch.randn(count, llm_width) * 0.02
        self.reference_queries = nn.Parameter(queries.to(like.device, like.dtype))
        self.reference_connector = _projection(llm_width, width, zero_init).to(like.device, like.dtype)
        self.register_to_config(num_reference_queries=count)

    def forward(
        self,
        hidden_states: Float[Tensor, "b k m"],
        reference_states: Float[Tensor, "b r m"] | None = None,
    ) -> Float[Tensor, "b c d"]:
        """Return X_e from the hidden states at the query positions, and at those of a reference image."""
        tokens: Tensor = self.connector(hidden_states)
        if reference_states is None:
            return tokens
        return torch.cat([self.reference_connector(reference_states), tokens], dim=1)


def _projection(llm_width: int, width: int, zero_init: bool) -> nn.Sequential:
    last = nn.Linear(width, width)
    if zero_init:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(llm_width, width), nn.GELU("tanh"), last)


class EditTokenEncoder:
    """g_phi(v, l) of Alg. 1: maps (frames, instruction) to X_e. It has no weights of its own.

    It computes on `device`, by default the device of the queries.
    """

    def __init__(
        self,
        mllm: Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration,
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
            max_image_tokens=config.max_reference_tokens,
        )

    def __call__(
        self,
        frames: Sequence[UInt8[np.ndarray, "n h w 3"]],
        instructions: Sequence[str],
        reference_images: Sequence[UInt8[np.ndarray, "y x 3"]] = (),
    ) -> Float[Tensor, "b c d"]:
        """Return X_e of a batch of clips, instructions and, if the model reads them, reference images.

        Clips and images come from `frame_processor`; the clips of a batch have one shape, and so have its
        images. Without reference images X_e has K tokens, with them also one for each token of an image.
        """
        device = self.device or self.connector.queries.device
        onload(self.mllm)
        connector = self.connector
        has_reference = len(reference_images) > 0
        is_image = connector.config.num_image_queries > 0 and len(frames[0]) == 1 and not has_reference
        config = self.mllm.config
        visions = [Vision.of(np.stack(frames), IMAGE_TOKEN if is_image else VIDEO_TOKEN, config)]
        queries = connector.image_queries if is_image else connector.queries
        if has_reference:
            visions.append(Vision.of(np.stack(reference_images)[:, None], IMAGE_TOKEN, config))
            queries = connector.reference_queries
        prompts = [self.prompt(text, len(queries), [v.prompt for v in visions]) for text in instructions]
        # Pad on the left, so that the last K positions are the end of every prompt.
        inputs = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(device)
        input_ids = inputs.input_ids
        embeddings = self.mllm.get_input_embeddings()(input_ids)
        is_query = input_ids == self.tokenizer.convert_tokens_to_ids(QUERY_TOKEN)
        repeated = queries.to(embeddings.device, embeddings.dtype).repeat(len(prompts), 1)
        embeddings = embeddings.masked_scatter(is_query[..., None], repeated)
        # Qwen3-VL finds the placeholders by their embeddings, and refuses their ids beside them.
        ids = {} if config.model_type == QWEN3 else {"input_ids": input_ids}
        states = self.mllm.model(
            **ids,
            inputs_embeds=embeddings,
            attention_mask=inputs.attention_mask,
            position_ids=position_ids(visions, input_ids, inputs.attention_mask),
            use_cache=False,
            **{name: x for vision in visions for name, x in vision.inputs(len(prompts), device).items()},
        ).last_hidden_state
        of_images = None
        if has_reference:
            is_reference = input_ids == visions[-1].token_id
            of_images = rearrange(states[is_reference], "(b r) m -> b r m", b=len(prompts))
        tokens: Tensor = connector(states[:, -len(queries) :], of_images)
        return tokens

    def prompt(self, instruction: str, num_queries: int, visions: Sequence[str]) -> str:
        """Return Qwen's chat template with system prompt, clip, instruction, reference image and queries.

        `visions` are the tokens of the clip and, if there is one, of the reference image.
        """
        clip, *reference = visions
        about_it = "".join(f"{REFERENCE_SENTENCE}{image}" for image in reference)
        return (
            f"<|im_start|>system\n{self.connector.config.system_prompt}<|im_end|>\n<|im_start|>user\n"
            f"{clip}{_escape(instruction)}{about_it}{QUERY_TOKEN * num_queries}<|im_end|>\n"
        )


def _escape(instruction: str) -> str:
    """Return an instruction in which special tokens are plain text."""
    return instruction.replace("<|", "< |").replace("|>", "| >")
