"""Pipelines of nano's size with many whole words, which learn from word vectors what they do not know."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rvedit.models.nano_tokenizer import WORD_START, build_word_tokenizer
from rvedit.models.word_vectors import WordVectors, load_word_vectors
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline


def use_word_vectors(pipeline: RVEDiTPipeline) -> None:
    """Give a pipeline a token for each word of the word vectors.

    Words that were one token before keep their embeddings, and the others get embeddings from those, by
    similarity. All other weights stay, as do the embeddings of special tokens, bytes and pieces that the old
    tokenizer has too. A pipeline that has these words already stays as it is.
    """
    words = load_word_vectors()
    tokenizer = build_word_tokenizer(words.words)
    for name, tokenizer_name in (("mllm", "mllm_tokenizer"), ("text_encoder", "tokenizer")):
        module, old = getattr(pipeline, name), getattr(pipeline, tokenizer_name)
        if module is None or old.get_vocab() == tokenizer.get_vocab():
            continue
        table = _embeddings(module.get_input_embeddings().weight.detach(), old, tokenizer, words)
        module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        module.get_input_embeddings().weight.data.copy_(table)
        pipeline.register_modules(**{tokenizer_name: tokenizer})


def _embeddings(
    old_table: Float[Tensor, "m d"], old: Any, tokenizer: Any, words: WordVectors
) -> Float[Tensor, "n d"]:
    """Return the embeddings of all tokens; pieces that the old tokenizer lacks are random."""
    scale = float(old_table.square().mean().sqrt())
    shape = (len(tokenizer), old_table.shape[1])
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    old_ids = old.get_vocab()
    for token, index in tokenizer.get_vocab().items():
        if token in old_ids:
            table[index] = old_table[old_ids[token]]
    # Single letters were pieces of other words.
    known = [i for i, word in enumerate(words.words) if len(word) > 1 and f"{WORD_START}{word}" in old_ids]
    values = old_table[[old_ids[f"{WORD_START}{words.words[i]}"] for i in known]]
    table[len(table) - len(words.words) :] = words.interpolate(known, values)
    return table
