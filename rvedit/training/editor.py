"""The editor's training task: triplets, the step of Algorithm 1, and what is written at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.attention_dispatch import AttentionBackendName
from peft import LoraConfig, LoraModel
from torch import Tensor, nn

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, resize_frames
from rvedit.io.manifest import read_manifest
from rvedit.io.video import temporary_sibling
from rvedit.models.causal_convolution import use_single_frame_convolutions
from rvedit.pipelines.checkpoints import (
    MODULE_CLASSES,
    add_text_encoder,
    build_nano,
    find_checkpoint,
    load_checkpoint,
    with_vae,
    with_weights,
)
from rvedit.pipelines.clip_shapes import check_shapes
from rvedit.pipelines.model_card import PLAYGROUND, Provenance
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.world import sample_triplet
from rvedit.training.data import build_dataloader, collate, editor_samples
from rvedit.training.distributed import Processes, whole_state
from rvedit.training.loop import freeze
from rvedit.training.recipe import ModelRecipe, Recipe
from rvedit.training.step import TripletBatch, training_losses
from rvedit.training.validation import validation_clips, write_validation

CORPUS_SIZE = 3_000
DATA_SETS = {"openve": "OpenVE-3M", "reco": "ReCo-Data", "ditto": "Ditto-1M"}
"""By a manifest's word for them."""
LANGUAGE_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class EditorObjective(nn.Module):
    """Eq. 6 as a module over all that is trained, so that DDP and FSDP2 see every use of its weights."""

    pipeline: RVEDiTPipeline

    def __init__(self, pipeline: RVEDiTPipeline, recipe: Recipe):
        super().__init__()
        for name in MODULE_CLASSES:
            if name != "vae" and getattr(pipeline, name) is not None:
                setattr(self, name, getattr(pipeline, name))
        # Not a child: the VAE is frozen, and neither wrapped nor saved in checkpoints.
        object.__setattr__(self, "pipeline", pipeline)
        self.recipe = recipe

    def train(self, mode: bool = True) -> EditorObjective:
        """Without dropout, which umT5 alone has: no edit has it, and a resumed run would draw it anew."""
        super().train(mode)
        if self.pipeline.text_encoder is not None:
            self.pipeline.text_encoder.eval()
        return self

    @property
    def has_idle_parts(self) -> bool:
        """Whether steps differ in what they read: stills and clips, where each has queries of its own."""
        return bool(self.pipeline.connector.config.num_image_queries)

    def forward(self, batch: TripletBatch, step: int) -> dict[str, Tensor]:
        """The losses of a minibatch."""
        recipe = self.recipe
        return training_losses(self.pipeline, batch, recipe.flow, recipe.alignment, recipe.seed, step)

    def edit(self, frames: Frames, instruction: str, num_inference_steps: int | None) -> Frames:
        """Edit a window's frames with the current weights; return as many, at their size."""
        seen = frames[: self.pipeline.config.window_frames]
        generator = torch.Generator().manual_seed(0)
        output = self.pipeline(
            seen, instruction, num_inference_steps=num_inference_steps, generator=generator
        ).frames[0]
        edited = (output * 255).round().astype(np.uint8)
        return resize_frames(edited, *frames.shape[1:3])


class EditorTask:
    """Trains transformer, connector, multimodal LLM and text encoder; the VAE is frozen."""

    def __init__(self, recipe: Recipe, processes: Processes):
        self.recipe = recipe
        self.processes = processes
        self.pipeline = _starting_point(recipe)
        check_shapes(recipe.data.shapes, self.pipeline)
        if recipe.data.crop:
            raise UserError(
                "data.crop is for task: vae; an editor learns on whole frames: data.height, width"
            )
        transformer = self.pipeline.transformer
        self.objective = EditorObjective(self.pipeline, recipe)
        self.pipeline.vae.requires_grad_(False).to(processes.device)
        use_single_frame_convolutions(self.pipeline.vae)
        # Parts that no block reads get no gradient, and the optimizer need not carry them.
        for part in (
            self.pipeline.text_encoder,
            transformer.visual_embedder,
            transformer.condition_embedder.text_embedder,
        ):
            if part is not None:
                part.requires_grad_(transformer.reads_native_tokens)
        absent = {name for name in MODULE_CLASSES if getattr(self.pipeline, name) is None}
        freeze(self.objective, [name for name in recipe.model.frozen if name.split(".")[0] not in absent])
        self.adapters = _add_language_lora(self.pipeline, recipe.model) if recipe.model.lora_rank else None
        if recipe.model.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if processes.device.type == "cpu":
            _use_plain_attention(self.pipeline)
        self.samples = editor_samples(recipe, self.pipeline)
        if self.samples.has_text_embeds:
            del self.objective.text_encoder  # need not go to the device: it is large, and not run
        self.shown = validation_clips(recipe) if recipe.validation.every else []

    def batches(self, numbers: Iterable[list[int]]) -> Iterator[TripletBatch]:
        """Yield minibatches on the device."""
        collate_fn = partial(collate, text_length=self.pipeline.config.max_text_length)
        for batch in build_dataloader(self.samples, numbers, self.recipe.data.workers, collate_fn):
            yield batch.to(self.processes.device)

    def validate(self, step: int, folder: Path) -> None:
        """Write edits of fixed clips, as clips and as a contact sheet."""
        # Of the model alone: what detail transfer adds is not learned.
        steps = self.recipe.validation.num_inference_steps
        with torch.autocast(self.processes.device.type, enabled=False):
            edits = [self.objective.edit(clip.source, clip.instruction, steps) for clip in self.shown]
        if self.processes.is_main:
            write_validation(folder / "validation", step, self.shown, edits)

    def export(self, folder: Path) -> None:
        """Write the pipeline, to edit with or to train on from; adapters are merged into their weights."""
        pipeline = self.pipeline
        if self.adapters or self.recipe.parallel == "fsdp2":
            parts = {}
            for name, module in self.objective.named_children():
                state = whole_state(module, keep=self.processes.is_main)
                if self.processes.is_main:
                    parts[name] = with_weights(module, merge_lora(state, self.adapters))
            if self.processes.is_main:
                settings = {k: v for k, v in pipeline.config.items() if k not in pipeline.components}
                settings = {k: v for k, v in settings.items() if not k.startswith("_")}
                pipeline = RVEDiTPipeline(**{**pipeline.components, **parts}, **settings)
        if self.processes.is_main:
            pipeline.provenance = self._provenance()
            part = temporary_sibling(folder)
            pipeline.save_pretrained(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)

    def _provenance(self) -> Provenance:
        before, recipe = self.pipeline.provenance, self.recipe
        base = before.base or (("nano",) if recipe.model.preset == "nano" else ())
        data: set[str] = {*before.data}
        if recipe.data.source == "manifest" and recipe.data.manifest:
            names = {triplet.dataset for triplet in read_manifest(Path(recipe.data.manifest))}
            data |= {DATA_SETS.get(name, name) for name in names}
        else:
            data |= {PLAYGROUND}
        return Provenance(base, tuple(sorted(data)), recipe.model_dump(mode="json", exclude={"paper"}))


def _starting_point(recipe: Recipe) -> RVEDiTPipeline:
    """The pipeline to train, on the CPU."""
    model = recipe.model
    vae = None
    if model.vae_from:
        vae = AutoencoderKLWan.from_pretrained(
            find_checkpoint(model.vae_from, "model.vae_from"), subfolder="vae"
        )
    if model.init_from:
        pipeline = load_checkpoint(find_checkpoint(model.init_from, "model.init_from"))
        if vae is not None:
            torch.manual_seed(recipe.seed)
            pipeline = with_vae(pipeline, vae)
    elif vae is not None and model.preset == "nano":
        words = corpus(recipe.data.seed)
        pipeline = build_nano(words, vae, model.routing_depth, recipe.flow.shift, recipe.seed)
    elif model.preset == "nano":
        raise UserError("model.vae_from is not set: give the folder of a VAE's run, or model.init_from")
    else:
        raise UserError(
            f"model.init_from is not set, and the weights of {model.preset} are not here: give the folder of "
            "a pipeline, or train at nano size with --overlay recipes/nano_scale.yaml"
        )
    # Edits begin as trainings do, and in sizes that they were trained in.
    pipeline.register_to_config(shared_noise_ratio=recipe.flow.shared_noise_ratio, round_up=False)
    transformer = pipeline.transformer
    blocks = len(transformer.blocks)
    depth = blocks // 2 if model.routing_depth is None else model.routing_depth
    if depth > blocks:
        raise UserError(f"model.routing_depth is {depth}: the model in {model.init_from} has {blocks} blocks")
    transformer.register_to_config(routing_depth=depth)
    if depth < blocks:
        add_text_encoder(pipeline)
    return pipeline


def _add_language_lora(pipeline: RVEDiTPipeline, model: ModelRecipe) -> LoraModel:
    """Low-rank adapters in the language tower, whose own weights are frozen (section 5)."""
    tower = pipeline.mllm.model.language_model
    tower.requires_grad_(False)
    config = LoraConfig(r=model.lora_rank, lora_alpha=model.lora_rank, target_modules=LANGUAGE_LAYERS)
    return LoraModel(tower, config, "default")


def merge_lora(state: dict[str, Tensor], adapters: LoraModel | None) -> dict[str, Tensor]:
    """W + s B A for every adapted layer of a state, and the names that the layers had before."""
    if adapters is None:
        return state
    rank = adapters.peft_config["default"]
    merged = {}
    for name, tensor in state.items():
        stem, dot, kind = name.partition(".base_layer.")
        if dot and kind == "weight":
            down, up = (state[f"{stem}.lora_{side}.default.weight"] for side in "AB")
            tensor = tensor + (rank.lora_alpha / rank.r) * up @ down
        if ".lora_" not in name:
            merged[f"{stem}.{kind}" if dot else name] = tensor
    return merged


def _use_plain_attention(pipeline: RVEDiTPipeline) -> None:
    """Matrices instead of flash kernels: at nano's sequence lengths their backward is faster on a CPU.

    Set at each processor: diffusers' `set_attention_backend` would change all models of the process.
    """
    for block in pipeline.transformer.blocks:
        for attention in (block.attn1, block.attn2):
            attention.processor._attention_backend = AttentionBackendName._NATIVE_MATH
    pipeline.mllm.set_attn_implementation("eager")
    pipeline.mllm.model.visual.set_attn_implementation("eager")


def corpus(seed: int) -> list[str]:
    """The playground's language, for the tokenizer."""
    triplets = [sample_triplet(seed, index) for index in range(CORPUS_SIZE)]
    return [text for t in triplets for text in (t.instruction, t.target_caption)] + ["system\nedit", "user\n"]
