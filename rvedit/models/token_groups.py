"""From a premise (clip, words) to the transformer's conditioning, for training and inference alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from rvedit.models.edit_tokens import EditTokenEncoder
from rvedit.models.routing import TokenGroups
from rvedit.models.text_tokens import encode_text


@runtime_checkable
class TokenEncoders(Protocol):
    """What the three token groups are made with."""

    transformer: Any
    text_encoder: Any
    tokenizer: Any
    config: Any

    @property
    def edit_token_encoder(self) -> EditTokenEncoder:
        """g_phi of Alg. 1."""


def encode_tokens(
    models: TokenEncoders,
    latents: Float[Tensor, "b c f y x"],
    frames: Sequence[UInt8[np.ndarray, "n h w 3"]],
    texts: Sequence[str],
    states: Float[Tensor, "b m e"] | None = None,
) -> TokenGroups:
    """X_e, X_v and X_l (Alg. 1, lines 3-4; Alg. 2, line 1) of clips and their words.

    `latents` are the clips' own, clean and normalised; `frames` are what the multimodal LLM sees of them;
    `states` are those of the text encoder, where they are known already.
    """
    transformer = models.transformer
    edit_tokens = models.edit_token_encoder(frames, texts)
    if not transformer.reads_native_tokens:
        return transformer.embed_tokens(edit_tokens, latents)
    if states is None:
        states = encode_text(models.tokenizer, models.text_encoder, texts, models.config.max_text_length)
    return transformer.embed_tokens(edit_tokens, latents, states.to(edit_tokens.device))
