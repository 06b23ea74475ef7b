"""The nouns of the field, as types (leaf: imports nothing of ours)."""

from __future__ import annotations

from enum import Enum


class Category(str, Enum):
    """The four editing categories of the paper's benchmark (Table 1)."""

    CHANGE = "change"
    REMOVE = "remove"
    ADD = "add"
    STYLE = "style"
