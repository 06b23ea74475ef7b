"""The cross-attention of a routed block: K/V reuse over steps, and the trace A^(i) of Eqs. 4-5.

A diffusers block passes its `encoder_hidden_states` to `attn2` unchanged, so each block receives a
`BlockContext` there: the tokens of Eq. 3, the cached keys and values, and the trace. The modules themselves
store nothing; each clip has its own contexts, so no cached value can be out of date.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class Trace:
    """Storage for A^(i): the output of a cross-attention, before the residual sum.

    Not a dataclass: FSDP2 copies dataclass arguments, so a value set inside a block would be lost.
    """

    value: Float[Tensor, "b s d"] | None = None


@dataclass
class BlockContext:
    """The input of one block's cross-attention, its cached keys and values, and its trace."""

    tokens: Float[Tensor, "b c d"]
    """C^(i) of Eq. 3."""
    reuse: bool = False
    """Cache the projected keys and values for later steps: the tokens do not depend on the step."""
    key_value: tuple[Tensor, Tensor] | None = None
    """Cached keys and values, each (b, c, heads, head_dim)."""
    trace: Trace | None = None
    """Receives A^(i); None: it is not stored."""


class RoutedCrossAttnProcessor:
    """Stateless attention processor: Wan's cross-attention with a `BlockContext`."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "b s d"],
        encoder_hidden_states: BlockContext,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Float[Tensor, "b s d"]:
        """Return the attention output, with the video's positions as queries and the context's as keys."""
        context = encoder_hidden_states
        query = rearrange(attn.norm_q(attn.to_q(hidden_states)), "b s (h d) -> b s h d", h=attn.heads)
        key, value = context.key_value or self._project(attn, context.tokens)
        if context.reuse:
            context.key_value = (key, value)
        attended = self.attend(query, key, value)
        output = attn.to_out[0](rearrange(attended, "b s h d -> b s (h d)").type_as(query))
        output = attn.to_out[1](output)
        if context.trace is not None:
            context.trace.value = output
        return output

    def attend(
        self, query: Float[Tensor, "b s h e"], key: Float[Tensor, "b n h e"], value: Float[Tensor, "b n h e"]
    ) -> Float[Tensor, "b s h e"]:
        """Return softmax attention over all heads, computed by the selected backend."""
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend)

    @staticmethod
    def _project(attn: WanAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
        key, value = attn.norm_k(attn.to_k(tokens)), attn.to_v(tokens)
        key, value = (rearrange(x, "b c (h d) -> b c h d", h=attn.heads) for x in (key, value))
        return key, value


def block_trace(
    block: WanTransformerBlock,
    hidden_states: Float[Tensor, "b s d"],
    context: BlockContext,
    timestep_proj: Float[Tensor, "b 6 d"],
    rotary_emb: tuple[Tensor, Tensor],
) -> Float[Tensor, "b s d"]:
    """Return A^(i) of a block: run its self-attention and cross-attention, but not its feed-forward layer.

    The reference branch stops here.
    """
    shift, scale, gate = (block.scale_shift_table + timestep_proj.float()).chunk(6, dim=1)[:3]
    modulated = (block.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
    attended = block.attn1(modulated, None, None, rotary_emb)
    hidden_states = (hidden_states.float() + attended * gate).type_as(hidden_states)
    return block.attn2(block.norm2(hidden_states.float()).type_as(hidden_states), context, None, None)
