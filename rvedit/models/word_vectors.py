"""Public word vectors: values that some words have, such as token embeddings, are extended to other words.

The file in `words/` is made by `benchmarks/make_word_vectors.py`; its sources and licenses are named there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

SHARPNESS, RIDGE = 2.0, 1e-3  # chosen by how often a synonym's nearest term is its own (docs/nano.md)
WORDS_FILE = Path(__file__).parent / "words" / "words.safetensors"


@dataclass(frozen=True)
class WordVectors:
    """Words, the most frequent first, and their vectors, which are of length 1."""

    words: tuple[str, ...]
    vectors: Float[Tensor, "n v"]

    def interpolate(self, known: Sequence[int], values: Float[Tensor, "k d"]) -> Float[Tensor, "n d"]:
        """Return values of all words, given those of some: similar words get similar values.

        Kernel ridge regression with the kernel exp(s (cos - 1)) of two words' vectors; the values of the
        given words change by less than their rounding in bf16.
        """
        vectors = self.vectors[list(known)]
        regularized = _kernel(vectors, vectors) + RIDGE * torch.eye(len(vectors))
        return _kernel(self.vectors, vectors) @ torch.linalg.solve(regularized, values)


def _kernel(left: Float[Tensor, "m v"], right: Float[Tensor, "n v"]) -> Float[Tensor, "m n"]:
    return torch.exp(SHARPNESS * (left @ right.T - 1))


@cache
def load_word_vectors(path: Path = WORDS_FILE) -> WordVectors:
    """Return the word vectors of the package."""
    with safe_open(path, "pt") as file:
        return WordVectors(tuple(file.metadata()["words"].split()), file.get_tensor("vectors").float())
