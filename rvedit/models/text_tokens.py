"""T_l: the instruction as the backbone's own text encoder reads it (X_l of section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
        list(texts),
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    ).to(next(text_encoder.parameters()).device)
    states = text_encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    masked: Tensor = states * inputs.attention_mask[..., None].to(states.device)
    return masked


def trim_padding(states: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
    """A text's states without the zeros behind its end."""
    words = states.abs().amax(dim=-1).nonzero()
    return states[: int(words.max()) + 1 if len(words) else 0]


def pad_texts(texts: Sequence[Tensor], length: int) -> Float[Tensor, "b m c"]:
    """The inverse: a batch of texts with zeros behind their ends."""
    return torch.stack([F.pad(states, (0, 0, 0, length - len(states))) for states in texts])
