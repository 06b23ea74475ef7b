"""Token embeddings mapped from public word vectors: words with similar meanings have similar embeddings.

The file in `words/` is made by `benchmarks/make_word_vectors.py`; its sources and licenses are named there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

WORDS_FILE = Path(__file__).parent / "words" / "words.safetensors"


@dataclass(frozen=True)
class WordVectors:
    """Words, the most frequent first, and their vectors, which are of length 1."""

    words: tuple[str, ...]
    vectors: Float[Tensor, "n v"]

    def embeddings(self, width: int, std: float) -> Float[Tensor, "n d"]:
        """Return the vectors mapped to `width` values with this root mean square, by a fixed rotation."""
        size = self.vectors.shape[1]
        if width < size:
            raise ValueError(f"width {width} is too small for vectors of {size} values")
        random = np.random.default_rng(0).standard_normal((width, size))
        rotation = torch.from_numpy(np.linalg.qr(random)[0].T).float()
        return self.vectors @ rotation * (std * width**0.5)


@cache
def load_word_vectors(path: Path = WORDS_FILE) -> WordVectors:
    """Return the word vectors of the package."""
    with safe_open(path, "pt") as file:
        return WordVectors(tuple(file.metadata()["words"].split()), file.get_tensor("vectors").float())
