"""T_l: text encoding of the instruction by the backbone's own text encoder (X_l of section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def encode_text(
    tokenizer: Any, text_encoder: nn.Module, prompts: Sequence[str], max_length: int
) -> Float[Tensor, "b m c"]:
    """Return the text encoder's last hidden states, padded with zeros to `max_length` as in Wan's training.

    Longer prompts are truncated to `max_length` tokens.
    """
    inputs = tokenizer(
        list(prompts),
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    ).to(next(text_encoder.parameters()).device)
    states = text_encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return states * inputs.attention_mask[..., None].to(states.device)


def trim_padding(states: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
    """Return a prompt's hidden states without the zero padding at the end."""
    nonzero = states.abs().amax(dim=-1).nonzero()
    return states[: int(nonzero.max()) + 1 if len(nonzero) else 0]


def pad_text_states(text_states: Sequence[Tensor], length: int) -> Float[Tensor, "b m c"]:
    """Return a batch of hidden states, padded with zeros to `length` tokens."""
    return torch.stack([F.pad(states, (0, 0, 0, length - len(states))) for states in text_states])
