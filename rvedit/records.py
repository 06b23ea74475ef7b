"""The nouns of the field, as types (leaf: imports nothing of ours)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Category(str, Enum):
    """The four editing categories of the paper's benchmark (Table 1)."""

    CHANGE = "change"
    REMOVE = "remove"
    ADD = "add"
    STYLE = "style"


@dataclass(frozen=True)
class EditSettings:
    """How an edit is sampled; what is none is the model's own default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    reuse_key_values: bool = True
    """Project X_e, X_v and X_l to keys and values once per window, not once per step."""


@dataclass(frozen=True)
class Progress:
    """Where an edit stands; all count from 1."""

    window: int
    step: int
    num_steps: int
