"""What one clip and one GPU cost in a recipe's training: of the editor, and of the VAE alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models.edit_tokens import EditTokenEncoder
from rvedit.models.flops import (
    Shape,
    counting_convolutions,
    language_flops,
    step_flops,
    text_encoder_flops,
    vision_flops,
)
from rvedit.training.loop import freeze
from rvedit.training.memory import (
    BF16,
    CACHES_CASTS,
    CHECKPOINTS_LANGUAGE,
    FP32,
    Group,
    build_models,
    build_vae,
    count_parameters,
    held_bytes,
    kept_bytes,
    language_bytes,
    matrices,
    saved_bytes,
    text_encoder_bytes,
    vision_bytes,
    work_bytes,
)
from rvedit.training.recipe import Recipe
from rvedit.training.state import KEPT

WORDS = 64
"""Tokens of template, system prompt and instruction in the language tower, about."""


@dataclass(frozen=True)
class Tokens:
    """Of one clip."""

    sequence: int
    """S, of the noisy latents."""
    edit: int
    """K, of X_e."""
    visual: int
    """Of X_v; none where no block reads them."""
    text: int
    """Of X_l, padded; none where no block reads them."""
    seen_frames: int
    """Frames that the MLLM sees."""
    patches: tuple[int, int, int]
    """Their patches in the vision encoder: pairs of frames, rows, columns."""
    language: int
    """Positions in the language tower."""


class Costs(Protocol):
    """What a plan is made of."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Parameters by part."""

    @property
    def tokens(self) -> Tokens | None:
        """Of the largest clip; none where there is no transformer."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the figures assume."""

    def flops(self) -> dict[str, float]:
        """Of a training step for one clip, by part, in expectation."""

    def memory(self, recipe: Recipe, gpus: int) -> dict[str, float]:
        """Bytes of one GPU, by part; `recipe` may differ in how work is spread and what is computed again."""

    def disk(self) -> dict[str, float]:
        """Bytes, by what is stored."""


def clips_at_once(recipe: Recipe, gpus: int) -> int:
    """Clips that a GPU works off together."""
    clips, rest = divmod(recipe.batch_size, max(1, gpus * recipe.accumulation))
    if gpus < 1 or rest:
        raise UserError(
            f"batch_size is {recipe.batch_size}: it must be a multiple of GPUs x accumulation, "
            f"{gpus} x {recipe.accumulation}"
        )
    return clips


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _written(
    recipe: Recipe, groups: tuple[Group, ...], module: nn.Module, adapters: int = 0
) -> dict[str, float]:
    """Bytes of the checkpoints that are kept (weights, moments, average) and of the model at the end."""
    trained = sum(group.trained for group in groups)
    everything = trained + sum(group.frozen for group in groups) - adapters  # which are merged
    muon = matrices(module, trained=True) if recipe.optimizer.name == "muon" else 0
    checkpoint = FP32 * (trained * (3 + (recipe.ema_decay > 0)) - muon)
    return {
        f"checkpoints ({KEPT} are kept)": float(KEPT * checkpoint),
        "trained model": float(FP32 * everything),
    }


class EditorCosts:
    """Transformer, connector, multimodal LLM and text encoder; the VAE is frozen."""

    notes = (
        "FLOPs: matrix products and convolutions; the backward pass as two forward passes, the reference "
        "branch at the mean depth,",
        f"  the MLLM roughly, with {WORDS} tokens of text; both branches of it and of the text encoder",
        "memory: activations by formula for flash attention; without the allocator's fragments and what the "
        "VAE takes while it encodes",
        "disk: latents and text states in bf16, texts padded; checkpoints and model in fp32",
    )

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.models = build_models(recipe)
        self.groups = self.models.groups
        # Whole batches are stills or clips; the larger ones decide about memory.
        self.kinds = recipe.data.expected_shapes()
        largest = max(self.kinds, key=lambda clip: self.shape_of(clip).sequence)
        self.tokens: Tokens = self.tokens_of(largest)
        self.shape = self.shape_of(largest)

    def shape_of(self, clip: ClipShape) -> Shape:
        """The transformer and a clip."""
        vae, part = self.models.vae.config, self.models.part
        grid = (
            1 + (clip.num_frames - 1) // vae.scale_factor_temporal,
            clip.height // vae.scale_factor_spatial,
            clip.width // vae.scale_factor_spatial,
        )
        config: Mapping[str, Any] = part("transformer").config
        text = self.models.max_text_length if self.models.reads_native_tokens else 0
        return Shape(dict(config), grid, part("connector").config.num_queries, text)

    def tokens_of(self, clip: ClipShape) -> Tokens:
        """The tokens of a clip."""
        shape = self.shape_of(clip)
        mllm, connector = self.models.part("mllm"), self.models.part("connector")
        vision = mllm.config.vision_config
        size = EditTokenEncoder(mllm, None, connector).frame_processor.size(clip.height, clip.width)
        rows, columns = (length // vision.patch_size for length in size)
        seen = min(clip.num_frames, connector.config.max_frames)
        pairs = -(-seen // vision.temporal_patch_size)
        merged = pairs * rows * columns // vision.spatial_merge_size**2
        return Tokens(
            sequence=shape.sequence,
            edit=shape.edit_tokens,
            visual=shape.sequence if self.models.reads_native_tokens else 0,
            text=shape.text_tokens,
            seen_frames=seen,
            patches=(pairs, rows, columns),
            language=merged + shape.edit_tokens + WORDS,
        )

    def flops(self) -> dict[str, float]:
        """See `Costs.flops`."""
        expected: dict[str, float] = {}
        for clip, share in self.kinds.items():
            for name, flops in self._flops(clip).items():
                expected[name] = expected.get(name, 0.0) + share * flops
        return expected

    def _flops(self, clip: ClipShape) -> dict[str, float]:
        recipe, models = self.recipe, self.models
        shape, tokens = self.shape_of(clip), self.tokens_of(clip)
        aligned, again = recipe.alignment.weight > 0, recipe.model.gradient_checkpointing
        step = step_flops(shape, range(1, shape.blocks + 1) if aligned else (), again)
        mllm, text_encoder = models.part("mllm").config, models.part("text_encoder")
        branches = 1 + aligned
        language = branches + self._language_backward() + (again and CHECKPOINTS_LANGUAGE)
        return {
            "transformer, forward": step.forward,
            "transformer, backward": step.backward,
            "transformer, recomputed": step.recomputation,
            "reference branch, expected": step.reference,
            "alignment loss": step.alignment,
            "MLLM, roughly": language * language_flops(mllm.text_config, tokens.language)
            + (branches + 2 * _trains(models.vision)) * vision_flops(mllm.vision_config, tokens.patches),
            "text encoder": (branches + 2 * _trains(text_encoder))
            * text_encoder_flops(text_encoder.config, tokens.text),
            "VAE, both clips": 0.0 if recipe.data.cache else 2 * self.encode_flops(clip),
        }

    def _language_backward(self) -> int:
        """Forward passes that the tower's backward costs: through it to the queries, and for its weights."""
        weights = _trains(self.models.language)
        through = weights or self.models.adapters or _trains(self.models.part("connector"))
        return 1 + weights if through else 0

    def encode_flops(self, shape: ClipShape) -> float:
        """Encoding a clip: its first frame, then four at a time. Convolutions alone; attention adds 0.4%."""
        vae = self.models.vae

        def count(number: int) -> float:
            clip = torch.empty(1, 3, number, shape.height, shape.width, device="meta")
            with torch.no_grad(), counting_convolutions(vae) as calls:
                vae.encode(clip)
            return sum(calls)

        first = count(1)
        return first + (count(5) - first) * (shape.num_frames - 1) / 4 if shape.num_frames > 1 else first

    def memory(self, recipe: Recipe, gpus: int) -> dict[str, float]:
        """See `Costs.memory`."""
        models, shape, tokens = self.models, self.shape, self.tokens
        clips, bf16 = clips_at_once(recipe, gpus), recipe.precision == "bf16"
        again = recipe.model.gradient_checkpointing
        transformer, text_encoder = models.part("transformer"), models.part("text_encoder")
        config = models.part("mllm").config
        copied, mllm, text = 0 if again else matrices(transformer), 0.0, 0.0
        if self._language_backward():
            rank, language_again = recipe.model.lora_rank, again and CHECKPOINTS_LANGUAGE
            mllm += language_bytes(config.text_config, tokens.language, bf16, rank, language_again)
            copied += 0 if language_again else matrices(models.language) + models.adapters
        if _trains(models.vision):
            pairs, rows, columns = tokens.patches
            mllm += vision_bytes(config.vision_config, pairs * rows * columns, bf16)
            copied += matrices(models.vision)
        if _trains(text_encoder):
            text += text_encoder_bytes(text_encoder.config, tokens.text, bf16)
            copied += matrices(text_encoder)
        forward, backward = (clips * work for work in work_bytes(shape, again, bf16))
        if again and CACHES_CASTS:
            forward += BF16 * bf16 * matrices(transformer, trained=True)
        vae = count_parameters("VAE", models.vae).frozen
        return {
            **held_bytes(recipe, models.objective, models.adapters, vae, gpus),
            "activations, transformer": clips * kept_bytes(shape, again, recipe.alignment.weight > 0, bf16),
            "activations, MLLM": clips * mllm,
            "activations, text encoder": clips * text,
            "weights in bf16, kept": float(BF16 * bf16 * copied),
            "work for a while": max(forward, backward),
        }

    def disk(self) -> dict[str, float]:
        """See `Costs.disk`; the cache is of all sources and targets, instructions and captions."""
        models, count = self.models, self.recipe.data.count
        latents = torch.Size(self.shape.latents).numel()
        text = models.max_text_length * models.part("text_encoder").config.d_model
        return {
            "cache, latents": float(2 * BF16 * latents * count),
            "cache, text states": float(2 * BF16 * text * count) if models.reads_native_tokens else 0.0,
            **_written(self.recipe, self.groups, models.objective, models.adapters),
        }


class VAECosts:
    """The VAE alone, on crops."""

    tokens = None
    notes = ("FLOPs: convolutions; memory: activations as if all were fp32, an upper bound under bf16",)

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.vae = build_vae(recipe)
        freeze(self.vae, recipe.model.frozen)
        self.groups = (count_parameters("VAE", self.vae),)
        data = recipe.data
        size = (data.crop, data.crop) if data.crop else (data.height, data.width)
        frames = {n: s for n, s in ((1, data.still_share), (data.num_frames, 1 - data.still_share)) if s}
        costs = {
            n: (s, *self._reconstruct(torch.empty(1, 3, n, *size, device="meta"))) for n, s in frames.items()
        }
        self.encoding = sum(share * encoder for share, encoder, _, _ in costs.values())
        self.decoding = sum(share * decoder for share, _, decoder, _ in costs.values())
        self.kept = costs[max(costs)][3]

    def _reconstruct(self, clip: torch.Tensor) -> tuple[float, float, int]:
        """FLOPs of encoder and decoder, and the bytes that are kept for their backward pass."""
        vae: Any = self.vae
        call: Callable[[], Any] = lambda: vae.decode(vae.encode(clip).latent_dist.mean).sample  # noqa: E731
        with counting_convolutions(vae.encoder) as encoder, counting_convolutions(vae.decoder) as decoder:
            kept = saved_bytes(call, vae)
        return sum(encoder), sum(decoder), kept

    def flops(self) -> dict[str, float]:
        """See `Costs.flops`."""
        encoder, decoder = (_trains(part) for part in (self.vae.encoder, self.vae.decoder))
        return {
            "encoder, forward": self.encoding,
            "encoder, backward": 2 * self.encoding * encoder,
            "decoder, forward": self.decoding,
            "decoder, backward": (encoder + decoder) * self.decoding,
        }

    def memory(self, recipe: Recipe, gpus: int) -> dict[str, float]:
        """See `Costs.memory`."""
        held = held_bytes(recipe, self.vae, 0, 0, gpus)
        return {**held, "activations": float(clips_at_once(recipe, gpus) * self.kept)}

    def disk(self) -> dict[str, float]:
        """See `Costs.disk`."""
        return _written(self.recipe, self.groups, self.vae)
