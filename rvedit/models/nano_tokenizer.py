"""Nano's tokenizers, which accept any text: byte-level BPE of the playground's words, or whole words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
)
WORD_START = "Ġ"
"""The space before a word, as byte-level BPE writes it."""


def train_tokenizer(corpus: Iterable[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen's special tokens, trained on `corpus`."""
    tokenizer = _byte_level(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.train_from_iterator(corpus, _trainer(vocabulary))
    return _as_pretrained(tokenizer)


def build_word_tokenizer(words: Sequence[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each of `words` is one token, in any place of a sentence.

    Other words are divided into bytes and pieces, of which there are at most `vocabulary` with the special
    tokens. The words' tokens follow them, in order.
    """
    pieces = _byte_level(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    pieces.train_from_iterator(words, _trainer(vocabulary))
    trained = json.loads(pieces.to_str())["model"]
    tokens: dict[str, int] = trained["vocab"]
    tokens |= {WORD_START + word: len(tokens) + index for index, word in enumerate(words)}
    # A word is looked up before it is divided.
    model = models.BPE(vocab=tokens, merges=[(a, b) for a, b in trained["merges"]], ignore_merges=True)
    # Each word gets a space before it, so that "black-and-white" or "(dog)" have the tokens of their words.
    parts = pre_tokenizers.Split(Regex(r"'\p{L}+| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    spaces = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer = _byte_level(model, pre_tokenizers.Sequence([parts, spaces]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return _as_pretrained(tokenizer)


def _byte_level(model: models.BPE, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    # Users write "Replace the dog."; the playground's instructions are of the form "replace the dog".
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!?]+\s*$"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(vocabulary: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=4096
    )
