"""Encoding of (clip, instruction) to the transformer's token groups, for training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from rvedit.models.reference_images import ReferenceImages
from rvedit.models.routing import TokenGroups
from rvedit.models.text_tokens import encode_text


def encode_tokens(
    models: Any,
    latents: Float[Tensor, "b c f y x"],
    frames: Sequence[UInt8[np.ndarray, "n h w 3"]],
    prompts: Sequence[str],
    text_states: Float[Tensor, "b m e"] | None = None,
    reference_images: ReferenceImages | None = None,
    edit_tokens: Float[Tensor, "b k d"] | None = None,
) -> TokenGroups:
    """Return X_e, X_v and X_l (Alg. 1, lines 3-4; Alg. 2, line 1) of clips and their instructions.

    `models` is a pipeline, or the part of one that encodes the groups. `latents` are the clips' clean,
    normalized latents, `frames` their frames after `frame_processor`; `text_states`, the text encoder's
    hidden states, and X_e itself are computed if absent.
    """
    transformer = models.transformer
    reference_frames, reference_latents = (
        (reference_images.frames, reference_images.latents) if reference_images else ((), None)
    )
    if edit_tokens is None:
        edit_tokens = models.edit_token_encoder(frames, prompts, reference_frames)
    if not transformer.reads_native_tokens:
        return transformer.embed_tokens(edit_tokens, latents, reference_latents=reference_latents)
    if text_states is None:
        limit = models.config.max_text_length
        text_states = encode_text(models.tokenizer, models.text_encoder, prompts, limit)
    states = text_states.to(edit_tokens.device)
    return transformer.embed_tokens(edit_tokens, latents, states, reference_latents)
