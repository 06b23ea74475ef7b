"""Maps of words that the instruction does not contain (ConceptAttention, Helbling et al. 2025).

Concepts are observers: the attention's output is compared with their values, and the edit does not see them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.models.text_tokens import encode_text
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline


def checked_concepts(concepts: Sequence[str]) -> tuple[str, ...]:
    """Return concepts without surrounding whitespace; none are allowed.

    Raises UserError for an empty one, for one that is given twice, and for a single one.
    """
    words = tuple(concept.strip() for concept in concepts)
    if "" in words:
        raise UserError("`concepts`: one is empty: give words separated by commas, such as dog,grass,sky")
    if repeated := next((word for word in words if words.count(word) > 1), None):
        raise UserError(f"`concepts`: {repeated} is given twice: give each concept once")
    if len(words) == 1:
        raise UserError(f"`concepts` {words[0]}: concepts compete for each place: give at least two")
    return words


def check_concept_blocks(blocks: Sequence[int], num_blocks: int, routing_depth: int) -> None:
    """Raise UserError if none of the blocks reads text (Eq. 3)."""
    if routing_depth == num_blocks:
        raise UserError(f"`concepts`: none of this model's {num_blocks} blocks reads text: leave it out")
    if max(blocks) <= routing_depth:
        raise UserError(
            f"`concepts`: blocks up to {routing_depth} do not read text: add one of {routing_depth + 1} to "
            f"{num_blocks} to `blocks`"
        )


@torch.no_grad()
def concept_tokens(pipeline: RVEDiTPipeline, concepts: Sequence[str]) -> list[Float[Tensor, "n d"]]:
    """Return the text tokens of each concept, encoded by itself as an instruction is; no special tokens.

    Raises UserError for a concept of which the tokenizer leaves nothing.
    """
    limit = pipeline.config.max_text_length
    inputs = pipeline.tokenizer(
        list(concepts), truncation=True, max_length=limit, return_special_tokens_mask=True
    )
    own = [[i for i, special in enumerate(mask) if not special] for mask in inputs["special_tokens_mask"]]
    if empty := next((concept for concept, at in zip(concepts, own, strict=True) if not at), None):
        raise UserError(f"`concepts` {empty}: the text encoder has no token for it: choose another word")
    states = encode_text(pipeline.tokenizer, pipeline.text_encoder, concepts, limit)
    tokens = pipeline.transformer.embed_tokens(text_states=states).text_tokens
    return [row[at] for row, at in zip(tokens, own, strict=True)]


def concept_values(attention: WanAttention, tokens: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "c h e"]:
    """Return each concept's value vectors in a cross-attention, mean over its tokens."""
    values = torch.stack([attention.to_v(each).mean(dim=0) for each in tokens])
    return rearrange(values, "c (h e) -> c h e", h=attention.heads)


def concept_shares(output: Float[Tensor, "s h e"], values: Float[Tensor, "c h e"]) -> Float[Tensor, "s c"]:
    """Return the share of each concept at each position; shares sum to 1 over the concepts.

    In each head the concepts compete by a softmax over sqrt(e) cos(o(s), v(c)), where o(s) is the head's
    attention output at position s and v(c) the concept's value; the shares are means over heads, in fp32.
    The paper takes dot products with the concepts' own outputs, which cross-attention does not have.
    """
    with torch.autocast(output.device.type, enabled=False):
        cosine = einsum(
            F.normalize(output.float(), dim=-1), F.normalize(values.float(), dim=-1), "s h e, c h e -> s h c"
        )
        return (math.sqrt(output.shape[-1]) * cosine).softmax(dim=-1).mean(dim=1)
