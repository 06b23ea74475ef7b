"""FLOPs, memory and disk space of a training run, from modules on the meta device, for the dry run.

FLOPs: `rvedit.models.flops` for the transformer and the other stacks, PyTorch's counter for the VAE. Memory:
`rvedit.training.memory`. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rvedit.io.records import ClipShape
from rvedit.models.causal_convolution import use_fast_convolutions
from rvedit.models.edit_tokens import EditTokenEncoder
from rvedit.models.flops import Shape, stack_flops, step_flops, vision_flops
from rvedit.models.model_spec import model_spec
from rvedit.pipelines.checkpoints import add_reference_modules
from rvedit.pipelines.checkpoints.outline import meta_modules
from rvedit.pipelines.clip_shapes import check_shapes
from rvedit.training.limits import clips_at_once
from rvedit.training.memory import (
    BF16,
    FP32,
    Group,
    activation_bytes,
    checkpoint_bytes,
    count_parameters,
    dequantized_bytes,
    frozen_bytes,
    is_sharded,
    matrices,
    saved_bytes,
    state_bytes,
    temporary_bytes,
    tower_bytes,
)
from rvedit.training.recipe import Recipe
from rvedit.training.trainable import PARTS, choose_trained

VAE_PART = "VAE, both clips"
"""Name of the part of the FLOPs that is computed in fp32."""
PROMPT_TOKENS = 64
"""Approximate tokens of template, system prompt and instruction in the language tower."""


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens of one clip."""

    sequence: int
    """S, noisy latents."""
    edit: int
    """K, tokens of X_e."""
    visual: int
    """Tokens of X_v; 0 if no block reads them."""
    text: int
    """Tokens of X_l with padding; 0 if no block reads them."""
    seen_frames: int
    """Frames in the MLLM."""
    patches: tuple[int, int, int]
    """Patches of those frames in the vision encoder: pairs of frames, rows, columns."""
    language: int
    """Positions in the language tower."""


class Costs(Protocol):
    """The costs of a task."""

    groups: tuple[Group, ...]
    """Parameters, by part."""
    tokens: Tokens | None
    """Tokens of the largest clip; None if the task has no transformer."""
    notes: tuple[str, ...]
    """Assumptions."""

    def flops(self) -> dict[str, float]:
        """Return the expected FLOPs of a training step per clip, by part."""

    def memory(self, recipe: Recipe, gpus: int) -> dict[str, float]:
        """Return the bytes on one GPU, by part.

        `recipe` may differ from the task's in parallelism, accumulation and gradient checkpointing.
        """

    def disk(self) -> dict[str, float]:
        """Return the bytes on disk, by part."""


class EditorCosts:
    """Costs of training transformer, connector, multimodal LLM and text encoder; the VAE is frozen."""

    notes = (
        "FLOPs: matrix products, attention and convolutions; the backward pass as two forward passes, the "
        f"reference branch at the mean depth; the MLLM is approximate, with {PROMPT_TOKENS} tokens of text",
        "memory: activations by formula for flash attention, without fragmentation and VAE encoding",
        "disk: latents and padded text states in bf16; checkpoints and model in fp32",
    )

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        spec = model_spec(recipe.model.preset)
        depth = recipe.model.routing_depth
        modules = meta_modules(spec, spec.num_layers // 2 if depth is None else depth)
        objective: Any = nn.ModuleDict({name: modules[name] for name in PARTS})
        self.objective = objective
        with torch.device("meta"):
            if recipe.model.reference_images:
                add_reference_modules(objective)
            choose_trained(self.objective, recipe.model)
        self.vae = modules["vae"].requires_grad_(False)
        use_fast_convolutions(self.vae)
        self.transformer: Any = objective.transformer
        self.mllm: Any = objective.mllm
        self.text_encoder: Any = objective.text_encoder
        self.language: Any = objective.mllm.model.language_model
        self.vision: Any = objective.mllm.model.visual
        self.max_text_length: int = spec.pipeline["max_text_length"]
        models = SimpleNamespace(vae=self.vae, transformer=self.transformer)
        check_shapes(recipe.data.shapes, models, recipe.context_parallel)
        self.groups = self._groups()
        self._counted: dict[tuple[int, int, int], float] = {}
        # A batch has only stills or only clips; the largest shape determines the memory.
        self.kinds = recipe.data.expected_shapes()
        largest = max(self.kinds, key=lambda clip: self.shape_of(clip).sequence)
        self.tokens: Tokens | None = self.tokens_of(largest)
        self.largest, self.shape = self.tokens_of(largest), self.shape_of(largest)

    def _groups(self) -> tuple[Group, ...]:
        lora = sum(p.numel() for name, p in self.language.named_parameters() if ".lora_" in name)
        tower = count_parameters("MLLM language tower", self.language)
        groups = [
            *self._transformer_groups(),
            count_parameters("connector and queries", self.objective.connector),
            Group(tower.name, tower.trained - lora, tower.frozen),
            *([Group("MLLM LoRA weights", lora, 0)] if lora else []),
            count_parameters("MLLM vision encoder", self.vision),
            count_parameters("text encoder", self.text_encoder),
            count_parameters("VAE", self.vae),
        ]
        return tuple(groups)

    def _transformer_groups(self) -> list[Group]:
        group = count_parameters("transformer", self.transformer)
        if not self.recipe.model.transformer_lora_rank:
            return [group]
        return [Group(group.name, 0, group.frozen), Group("transformer LoRA weights", group.trained, 0)]

    def shape_of(self, clip: ClipShape) -> Shape:
        """Return the sizes of the transformer's inputs for a clip."""
        vae = self.vae.config
        grid = (
            1 + (clip.num_frames - 1) // vae.scale_factor_temporal,
            clip.height // vae.scale_factor_spatial,
            clip.width // vae.scale_factor_spatial,
        )
        text = self.max_text_length if self.transformer.reads_native_tokens else 0
        connector = self.objective.connector.config
        edit_tokens = connector.num_queries
        if connector.num_reference_queries:  # every batch is counted with a picture
            edit_tokens = connector.num_reference_queries + connector.max_reference_tokens
            grid = (grid[0] + 1, *grid[1:])
        shared_by = self.recipe.context_parallel
        return Shape(dict(self.transformer.config), grid, edit_tokens, text, shared_by)

    def tokens_of(self, clip: ClipShape) -> Tokens:
        """Return the tokens of a clip."""
        shape, connector = self.shape_of(clip), self.objective.connector
        vision = self.mllm.config.vision_config
        size = EditTokenEncoder(self.mllm, None, connector).frame_processor.size(clip.height, clip.width)
        rows, columns = (length // vision.patch_size for length in size)
        frames = min(clip.num_frames, connector.config.max_frames)
        pairs = -(-frames // vision.temporal_patch_size)
        merged = pairs * rows * columns // vision.spatial_merge_size**2
        visual = shape.sequence if self.transformer.reads_native_tokens else 0
        language = merged + shape.edit_tokens + PROMPT_TOKENS
        return Tokens(
            shape.sequence,
            shape.edit_tokens,
            visual,
            shape.text_tokens,
            frames,
            (pairs, rows, columns),
            language,
        )

    def flops(self) -> dict[str, float]:
        """See `Costs.flops`."""
        expected: dict[str, float] = {}
        for clip, share in self.kinds.items():
            for name, flops in self._flops(clip).items():
                expected[name] = expected.get(name, 0.0) + share * flops
        return expected

    def _flops(self, clip: ClipShape) -> dict[str, float]:
        shape, tokens = self.shape_of(clip), self.tokens_of(clip)
        aligned = self.recipe.alignment.enabled
        depths = range(1, shape.blocks + 1) if aligned else ()
        checkpointing = self.recipe.model.gradient_checkpointing
        is_lora = self.recipe.model.transformer_lora_rank > 0
        step = step_flops(shape, depths, checkpointing, frozen=is_lora)
        again = self.recipe.alignment.ratio is not None  # each loss has passes of its own
        if again:
            passes = 3 + checkpointing
            step["editing branch to the traced block"] = passes * step["reference branch, expected"]
        language, branches = self.mllm.config.text_config, 1 + aligned + again
        # With checkpointing, a backward pass computes the layers once more.
        back = self._language_backward()
        towers = (branches + (1 + again) * (back + checkpointing * bool(back))) * stack_flops(
            self.language, tokens.language, tokens.language, language.hidden_size, language.num_hidden_layers
        )
        towers += (branches + (1 + again) * (2 + checkpointing) * is_trained(self.vision)) * vision_flops(
            self.vision, tokens.patches
        )
        text = self.text_encoder.config
        encoders = {
            "MLLM, roughly": towers,
            "text encoder": (branches + 2 * (1 + again) * is_trained(self.text_encoder))
            * stack_flops(
                self.text_encoder, tokens.text, tokens.text, text.num_heads * text.d_kv, text.num_layers
            ),
            VAE_PART: 0.0 if self.recipe.data.cache else 2 * self.encode_flops(clip),
        }
        # Processes that share a clip all encode it.
        return {**step, **{part: shape.shared_by * flops for part, flops in encoders.items()}}

    def _language_backward(self) -> int:
        """Return the cost of the language tower's backward pass in forward passes: 0, 1 or 2."""
        weights = any(p.requires_grad for name, p in self.language.named_parameters() if ".lora_" not in name)
        return 1 + weights if is_trained(self.language) or is_trained(self.objective.connector) else 0

    def encode_flops(self, shape: ClipShape) -> float:
        """Return the FLOPs of encoding a clip: the first frame, then groups of four frames."""

        short, long = sorted((shape.height, shape.width))  # a portrait needs as many as a landscape
        first = self._count(1, short, long)
        if shape.num_frames == 1:
            return first
        return first + (self._count(5, short, long) - first) * (shape.num_frames - 1) / 4

    def _count(self, num_frames: int, height: int, width: int) -> float:
        """Return the counted FLOPs of encoding so many frames; the shapes of a recipe share sizes."""
        key = num_frames, height, width
        if key not in self._counted:
            clip = torch.empty(1, 3, *key, device="meta")
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.vae.encode(clip)
            self._counted[key] = float(counter.get_total_flops())
        return self._counted[key]

    def memory(self, recipe: Recipe, gpus: int, clip: ClipShape | None = None) -> dict[str, float]:
        """See `Costs.memory`; `clip` is another shape than the largest of the recipe."""
        clips, bf16 = clips_at_once(recipe, gpus), recipe.precision == "bf16"
        checkpointing, aligned = recipe.model.gradient_checkpointing, recipe.alignment.enabled
        mllm, text, tokens = self.mllm.config, self.text_encoder.config, self.largest
        shape = self.shape
        if clip is not None:
            tokens, shape = self.tokens_of(clip), self.shape_of(clip)
        layers: list[Any] = [self.transformer]  # whose layers checkpointing recomputes
        cast, towers, recomputed, encoder = 0, 0.0, 0.0, 0.0
        if self._language_backward():
            config = mllm.text_config
            towers, recomputed = tower_bytes(
                "language", config, config.num_hidden_layers, tokens.language, bf16, checkpointing
            )
            layers.append(self.language)
        if is_trained(self.vision):
            config, patches = mllm.vision_config, torch.Size(tokens.patches).numel()
            saved, again = tower_bytes("vision", config, config.depth, patches, bf16, checkpointing)
            towers, recomputed = towers + saved, max(recomputed, again)
            layers.append(self.vision)
        if is_trained(self.text_encoder):
            layer = activation_bytes("text_encoder", tokens.text, text.d_model, text.d_ff, bf16)
            scores = (FP32 * text.num_heads + 8) * tokens.text**2  # umT5's attention is not fused
            encoder = text.num_layers * (layer + scores)
            cast = matrices(self.text_encoder)
        is_lora = recipe.model.transformer_lora_rank > 0
        forward, backward = (clips * size for size in temporary_bytes(shape, checkpointing, bf16, is_lora))
        saved = clips * saved_bytes(shape, checkpointing, aligned, bf16, is_lora)
        # Autocast copies fp32 weights; sharded ones are gathered in bf16.
        copy = BF16 * (bf16 and not is_sharded(recipe, gpus))
        if checkpointing:  # copies of trained weights are cached until the end of the forward pass
            forward += copy * sum(matrices(module, trained=True) for module in layers)
        else:
            cast += sum(matrices(module) for module in layers)
        state = state_bytes(recipe, self.objective, count_parameters("VAE", self.vae).frozen, gpus)
        if recipe.alignment.ratio is not None:
            state["gradient of alignment"] = state["gradients"]
        activations = {
            "activations, transformer": saved,
            "activations, MLLM": clips * towers,
            "activations, text encoder": clips * encoder,
            "weights in bf16, kept": float(copy * cast),
            "temporary": max(forward, backward, clips * recomputed),
        }
        if is_lora:
            state["frozen weights"], encoders = self._frozen_bytes(recipe)
            if recipe.model.frozen_weights != "fp32":
                block = self.transformer.blocks[0]
                backward += dequantized_bytes(block, shape.blocks, checkpointing, bf16)
            activations["temporary"] = max(forward, backward)
            if recipe.model.offload:  # encoders are on the device while there are no activations
                at_once = sum(encoders) + forward if recipe.validation.every else max(encoders)
                space = sum(activations.values())
                activations["encoders, beyond the activations"] = max(0.0, at_once - space)
            else:
                state["frozen weights"] += sum(encoders)
        return {**state, **activations}

    def _frozen_bytes(self, recipe: Recipe) -> tuple[float, list[float]]:
        """Return the bytes of the frozen weights of transformer and connector, and of each encoder."""
        children = dict(self.objective.named_children())
        if not self.transformer.reads_native_tokens:
            del children["text_encoder"]  # it is not loaded
        held = sum(frozen_bytes(recipe, name, children.pop(name)) for name in ("connector", "transformer"))
        encoders = [frozen_bytes(recipe, name, module) for name, module in children.items()]
        return held, [*encoders, float(FP32 * count_parameters("VAE", self.vae).frozen)]

    def disk(self) -> dict[str, float]:
        """See `Costs.disk`; the cache has all sources and targets, instructions and captions."""
        count = self.recipe.data.count
        latents = torch.Size(self.shape.latents).numel()
        text = self.max_text_length * self.text_encoder.config.d_model
        return {
            "cache, latents": float(2 * BF16 * latents * count),
            "cache, text states": float(2 * BF16 * text * count) if self.largest.text else 0.0,
            **checkpoint_bytes(self.recipe, self.groups, self.objective),
        }


def is_trained(module: nn.Module) -> bool:
    """Return whether any parameter of a module is trained."""
    return any(p.requires_grad for p in module.parameters())
