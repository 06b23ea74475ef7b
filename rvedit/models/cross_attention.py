"""The cross-attention of a routed block: K/V reuse over steps, and the trace A^(i) of Eqs. 4-5.

A block of diffusers hands its `encoder_hidden_states` on to `attn2` untouched, so what a block reads travels
as a `BlockContext`: the tokens of Eq. 3, and the two things that are kept about reading them. Nothing is
stored in the modules; a new clip has new contexts, so nothing can go stale.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class Trace:
    """A place for A^(i): the output of a cross-attention, before the residual sum.

    No dataclass: FSDP2 hands a block copies of the dataclasses that it is called with.
    """

    value: Float[Tensor, "b s d"] | None = None


@dataclass
class BlockContext:
    """What one block reads in its cross-attention, and what is kept about it."""

    tokens: Float[Tensor, "b c d"]
    """C^(i) of Eq. 3."""
    reuse: bool = False
    """Keep the projected keys and values for the next step: the tokens do not depend on the step."""
    key_value: tuple[Tensor, Tensor] | None = None
    """Kept keys and values, each (b, c, heads, head_dim)."""
    trace: Trace | None = None
    """Where to keep A^(i), if it is wanted."""


class RoutedCrossAttnProcessor:
    """Wan's cross-attention, reading a `BlockContext`. Stateless."""

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
        """Attend from the video's positions to the context's tokens."""
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
        """Softmax attention of all heads, by the chosen kernels."""
        attended: Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attended

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
    """A^(i) of a block without the rest of it: its self-attention, then its cross-attention.

    The reference branch needs no more, and stops here.
    """
    shift, scale, gate = (block.scale_shift_table + timestep_proj.float()).chunk(6, dim=1)[:3]
    modulated = (block.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
    attended = block.attn1(modulated, None, None, rotary_emb)
    hidden_states = (hidden_states.float() + attended * gate).type_as(hidden_states)
    trace: Tensor = block.attn2(
        block.norm2(hidden_states.float()).type_as(hidden_states), context, None, None
    )
    return trace
