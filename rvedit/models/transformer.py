"""The routed diffusion transformer: Wan's blocks with a context that depends on depth (section 4.2)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, WanTransformer3DModel  # noqa: F401 (diffusers looks ModelMixin up here)
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rvedit.compat import onload
from rvedit.models.context_parallel import all_rows, own_rows
from rvedit.models.cross_attention import BlockContext, RoutedCrossAttnProcessor, Trace, block_trace
from rvedit.models.routing import TokenGroups, route
from rvedit.models.visual_tokens import flatten_tokens, position_embedding


@dataclass
class RoutedOutput:
    """The output of a forward pass."""

    sample: Float[Tensor, "b c f h w"] | None
    """The velocity eps - x_1; None with `stop_at_trace`."""
    trace: Float[Tensor, "b s d"] | None = None
    """A^(i) of block `trace_depth`."""


class RoutedWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` whose blocks attend to the tokens of Eq. 3.

    Args (in addition to Wan's):
        routing_depth: L_s, in blocks; blocks 1 ... L_s attend to X_e alone.
        source_position: add absolute position embeddings to the source tokens. Rotary embeddings encode
            relative positions alone, so nano, trained from scratch, needs this for instructions such as "in
            the top left"; pretrained backbones do not use it.
        rounds_timesteps: round timesteps to bf16 before their embedding, as in Kiwi-Edit's training.
        reads_reference_images: have an embedder for the latents of reference images.
        reference_first: put the tokens of a reference image before the video's instead of after them.
    """

    # `forward` splits the sequence itself: traces and stopped passes must be gathered, too.
    _cp_plan: ClassVar[dict[str, Any]] = {}

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 48,
        out_channels: int = 48,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        routing_depth: int = 15,
        source_position: bool = False,
        rounds_timesteps: bool = False,
        reads_reference_images: bool = False,
        reference_first: bool = False,
    ) -> None:
        # `register_to_config` has stored the arguments in the config.
        wan_arguments = inspect.signature(WanTransformer3DModel).parameters
        super().__init__(**{name: self.config[name] for name in wan_arguments})
        width = num_attention_heads * attention_head_dim
        p_t, p_h, p_w = patch_size
        patch = (p_t, p_h, p_w)
        self.source_embedder = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.visual_embedder = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        if reads_reference_images:
            self.add_reference_embedder()
        for block in self.blocks:
            block.attn2.set_processor(RoutedCrossAttnProcessor())

    def add_reference_embedder(self) -> None:
        """Add the embedder of reference images, with random weights."""
        patch = self.patch_embedding
        self.reference_embedder = nn.Conv3d(
            patch.in_channels, patch.out_channels, patch.kernel_size, patch.stride
        ).to(patch.weight.device, patch.weight.dtype)
        self.register_to_config(reads_reference_images=True)

    @property
    def reads_native_tokens(self) -> bool:
        """Whether any block attends to X_v and X_l (Eq. 3), that is L_s < L."""
        return bool(self.config.routing_depth < len(self.blocks))

    def embed_tokens(
        self,
        edit_tokens: Float[Tensor, "b k d"] | None = None,
        source_latents: Float[Tensor, "b c f h w"] | None = None,
        text_states: Float[Tensor, "b m e"] | None = None,
        reference_latents: Float[Tensor, "b c 1 h w"] | None = None,
    ) -> TokenGroups:
        """Return X_e, X_v and X_l in the transformer's width; call it once per clip.

        X_v is left out if no block attends to it.

        `source_latents` are the source's clean latents, of the shape of the noisy ones; `text_states` are
        the text encoder's hidden states; `reference_latents` are those of a reference image, of the clip's
        height and width.
        """
        onload(self)
        visual = source = text = reference = None
        if source_latents is not None:
            volume = self.source_embedder(source_latents)
            source = flatten_tokens(volume)
            if self.config.source_position or self.reads_native_tokens:
                position = position_embedding(volume).to(source.dtype)
                source = source + position if self.config.source_position else source
            if self.reads_native_tokens:
                visual = flatten_tokens(self.visual_embedder(source_latents)) + position
        if text_states is not None:
            text = self.condition_embedder.text_embedder(text_states)
        if reference_latents is not None:
            reference = flatten_tokens(self.reference_embedder(reference_latents))
        return TokenGroups(edit_tokens, visual, text, source, reference)

    def reuse_pays(self, groups: TokenGroups) -> bool:
        """Return whether to keep keys and values over steps.

        If every block attends to X_e alone and the clip has many tokens, they are less than 2% of a step's
        computation, but 190 MB in the 5B.
        """
        source, edit = groups.source_tokens, groups.edit_tokens
        is_small = source is None or edit is None or source.shape[1] <= 8 * edit.shape[1]
        return self.reads_native_tokens or is_small

    def contexts(self, groups: TokenGroups, reuse: bool = False) -> list[BlockContext]:
        """Return each block's context (Eq. 3). `reuse`: cache the projected keys and values over steps."""
        routed = route(groups, len(self.blocks), self.config.routing_depth)
        return [BlockContext(tokens=tokens, reuse=reuse) for tokens in routed]

    def forward(
        self,
        hidden_states: Float[Tensor, "b c f h w"],
        timestep: Float[Tensor, " b"],
        groups: TokenGroups,
        contexts: list[BlockContext] | None = None,
        trace_depth: int | None = None,
        stop_at_trace: bool = False,
    ) -> RoutedOutput:
        """Return the predicted velocity eps - x_1 of noisy latents, and the trace if requested.

        Args:
            hidden_states: noisy latents x_t.
            timestep: 1000 t, one per clip.
            groups: from `embed_tokens`.
            contexts: from `contexts`, to reuse keys and values over steps; by default without reuse.
            trace_depth: block (1 ... L) whose cross-attention output is returned as the trace.
            stop_at_trace: return after that cross-attention, without a sample.
        """
        contexts = contexts or self.contexts(groups)
        volume = self.patch_embedding(hidden_states)
        grid = volume.shape[2:]
        tokens = flatten_tokens(volume)
        if groups.source_tokens is not None:
            sigma = (timestep / 1000).to(tokens.dtype)[:, None, None]
            tokens = tokens + groups.source_tokens * sigma
        temb, timestep_proj = self._embed_time(timestep, tokens.dtype)
        tokens, is_video, num_frames = self._with_reference(tokens, groups.reference_tokens, grid)
        # The rotary embedding depends on the shape alone.
        rotary_emb = self.rope(hidden_states[:, :, :1].expand(-1, -1, num_frames, -1, -1))
        tokens = own_rows(self, tokens)
        rotary_emb = tuple(own_rows(self, table) for table in rotary_emb)

        trace = Trace()
        for depth, (block, context) in enumerate(zip(self.blocks, contexts, strict=True), start=1):
            if depth == trace_depth and stop_at_trace:
                # A block sharded by FSDP2 has a `trace` method that gathers its weights first.
                run = getattr(block, "trace", None) or partial(block_trace, block)
                value = run(tokens, context, timestep_proj, rotary_emb)
                return RoutedOutput(None, all_rows(self, value)[:, is_video])
            context.trace = trace if depth == trace_depth else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, context, timestep_proj, rotary_emb)
            else:
                tokens = block(tokens, context, timestep_proj, rotary_emb)

        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        p_t, p_h, p_w = self.config.patch_size
        sample = rearrange(
            all_rows(self, self.proj_out(tokens))[:, is_video],
            "b (f h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)",
            f=grid[0], h=grid[1], w=grid[2], pt=p_t, ph=p_h, pw=p_w,
        )  # fmt: skip
        value = trace.value
        return RoutedOutput(sample, None if value is None else all_rows(self, value)[:, is_video])

    def _with_reference(
        self, tokens: Tensor, reference: Tensor | None, grid: Sequence[int]
    ) -> tuple[Tensor, slice, int]:
        """Return tokens with a reference image's, the video's place, and the number of latent frames.

        The image is the first or the last latent frame for the rotary embedding. No source tokens are added
        to it, and neither the sample nor the trace has it.
        """
        frames, rows, columns = grid
        p_t = self.config.patch_size[0]
        if reference is None:
            return tokens, slice(None), frames * p_t
        num_frames = (frames + reference.shape[1] // (rows * columns)) * p_t
        if self.config.reference_first:
            return torch.cat([reference, tokens], dim=1), slice(reference.shape[1], None), num_frames
        return torch.cat([tokens, reference], dim=1), slice(tokens.shape[1]), num_frames

    def _embed_time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the time embedding (b, d) and its six modulations (b, 6, d).

        Under autocast they are fp32, as Wan computes them.
        """
        device = timestep.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._embed_time(timestep, torch.float32)
        embedder = self.condition_embedder
        if self.config.rounds_timesteps:
            timestep = timestep.bfloat16().to(timestep.dtype)
        frequencies = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        temb = embedder.time_embedder(frequencies).to(dtype)
        return temb, rearrange(embedder.time_proj(embedder.act_fn(temb)), "b (n d) -> b n d", n=6)
