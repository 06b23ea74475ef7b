"""T_l: the instruction as the backbone's own text encoder reads it (X_l of section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def encode_text(
    tokenizer: Any, text_encoder: nn.Module, texts: Sequence[str], max_length: int
) -> Float[Tensor, "b m c"]:
    """Last hidden states of the text encoder, zero behind the end of each text, as Wan was trained.

    All rows are `max_length` tokens long, since that is what the backbone's attention knows; longer texts are
    cut.
    """
    inputs = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    ).to(next(text_encoder.parameters()).device)
    states = text_encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    masked: Tensor = states * inputs.attention_mask[..., None]
    return masked
