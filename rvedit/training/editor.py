"""The training task of the editor (Algorithm 1): objective, batches, validation and export."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from peft import LoraModel, get_peft_model_state_dict
from torch import Tensor, nn

from rvedit.compat import set_math_attention
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, resize_frames
from rvedit.io.manifest import read_manifest
from rvedit.io.temporary import replace_folder
from rvedit.models.causal_convolution import use_fast_convolutions
from rvedit.models.model_spec import model_spec
from rvedit.pipelines.checkpoints import (
    MODULE_CLASSES,
    add_reference_modules,
    add_text_encoder,
    build_from_scratch,
    find_checkpoint,
    load_checkpoint,
    use_word_vectors,
    with_vae,
    with_weights,
)
from rvedit.pipelines.clip_shapes import check_shapes
from rvedit.pipelines.model_card import PLAYGROUND, WORD_SOURCES, Provenance
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.world import sample_triplet
from rvedit.training.costs import EditorCosts
from rvedit.training.data import editor_samples, held_out_samples
from rvedit.training.dataloader import build_dataloader
from rvedit.training.distributed import Processes, full_state_dict
from rvedit.training.offload import encode_batch, on_device
from rvedit.training.recipe import Recipe
from rvedit.training.samples import Samples, collate
from rvedit.training.step import Loss, TripletBatch, training_losses, with_latents
from rvedit.training.trainable import ADAPTER, choose_trained, store_frozen
from rvedit.training.validation import held_out_losses, validation_clips, write_validation

CORPUS_TRIPLETS = 3_000
DATA_SETS = {"openve": "OpenVE-3M", "reco": "ReCo-Data", "ditto": "Ditto-1M"}
"""Dataset names in the model card, by the name in a manifest."""


class EditorObjective(nn.Module):
    """Eq. 6 as a module with all trained modules, so that DDP and FSDP2 see every use of their weights."""

    pipeline: RVEDiTPipeline

    def __init__(self, pipeline: RVEDiTPipeline, recipe: Recipe):
        super().__init__()
        for name in MODULE_CLASSES:
            if name != "vae" and getattr(pipeline, name) is not None:
                setattr(self, name, getattr(pipeline, name))
        # Not as a child module, so that the frozen VAE is neither wrapped nor saved in checkpoints.
        object.__setattr__(self, "pipeline", pipeline)
        self.recipe = recipe

    def train(self, mode: bool = True) -> EditorObjective:
        """Set the mode; umT5, the one module with dropout, stays in eval mode so that runs resume exactly."""
        super().train(mode)
        if self.pipeline.text_encoder is not None:
            self.pipeline.text_encoder.eval()
        return self

    @property
    def has_idle_parts(self) -> bool:
        """Return whether some steps leave parameters unused: stills, clips and clips with reference images
        have queries of their own."""
        config = self.pipeline.connector.config
        return bool(config.num_image_queries or config.num_reference_queries)

    def forward(self, batch: TripletBatch, step: int, only: Loss | None = None) -> dict[str, Tensor]:
        """Return the losses of a minibatch, or only one of them."""
        recipe = self.recipe
        return training_losses(self.pipeline, batch, recipe.flow, recipe.alignment, recipe.seed, step, only)

    def with_latents(self, batch: TripletBatch) -> TripletBatch:
        """Return the batch with latents, so that several passes encode its clips once."""
        return with_latents(self.pipeline, batch)

    def held_out_losses(
        self, batch_of: Callable[[int], TripletBatch], count: int, processes: Processes
    ) -> dict[str, float]:
        """Return the losses of held-out samples; see `rvedit.training.validation.held_out_losses`."""
        return held_out_losses(self.pipeline, batch_of, count, self.recipe, processes)

    def edit(self, frames: Frames, instruction: str, num_inference_steps: int | None) -> Frames:
        """Return the edit of the first window of the frames with the current weights, at their size."""
        window = frames[: self.pipeline.config.window_frames]
        generator = torch.Generator().manual_seed(0)
        output = self.pipeline(
            window, instruction, num_inference_steps=num_inference_steps, generator=generator
        ).frames[0]
        edited = (output * 255).round().astype(np.uint8)
        return resize_frames(edited, *frames.shape[1:3])


class EditorTask:
    """The task that trains transformer, connector, multimodal LLM and text encoder; the VAE is frozen."""

    costs = EditorCosts

    def __init__(self, recipe: Recipe, processes: Processes):
        self.recipe = recipe
        self.processes = processes
        self.pipeline = processes.from_main(partial(_initial_pipeline, recipe))
        self.pipeline.set_progress_bar_config(disable=True)
        check_shapes(recipe.data.shapes, self.pipeline, recipe.context_parallel)
        if recipe.data.crop:
            raise UserError(
                "data.crop is for task: vae: for an editor set data.height and data.width instead"
            )
        self.objective = EditorObjective(self.pipeline, recipe)
        self.pipeline.vae.requires_grad_(False)
        if not recipe.model.offload:
            processes.receive(self.pipeline.vae)
        use_fast_convolutions(self.pipeline.vae)
        store_frozen(self.pipeline, recipe.model.frozen_weights, recipe.precision, processes.device)
        self.adapters = choose_trained(self.objective, recipe.model, recipe.seed)
        if recipe.model.gradient_checkpointing:
            _checkpoint_layers(self.pipeline)
        processes.share_clips(self.pipeline.transformer)
        if processes.device.type == "cpu" and recipe.context_parallel == 1:
            _use_plain_attention(self.pipeline)
        if recipe.compile:
            for block in self.pipeline.transformer.blocks:
                block.compile()
        self.samples = processes.from_main(partial(editor_samples, recipe, self.pipeline))
        # Large modules that are not needed on the device are no longer part of the objective.
        if recipe.model.offload:
            del self.objective.mllm
        # A validation encodes texts: a sharded model's text encoder has no values but its shards.
        is_idle = self.samples.has_text_embeds and not (processes.is_sharded and recipe.validation.every)
        if is_idle or (recipe.model.offload and self.pipeline.text_encoder is not None):
            del self.objective.text_encoder
        self.unreadable: dict[str, str] = {}
        self.validation_clips = validation_clips(recipe) if recipe.validation.every else []
        self.held_out: tuple[Samples, int] | None = None
        if recipe.validation.every and recipe.validation.timesteps:
            self.held_out = processes.from_main(partial(held_out_samples, recipe, self.pipeline))
        self.collate = partial(
            collate,
            text_length=self.pipeline.config.max_text_length,
            mask_weight=recipe.data.mask_weight,
        )

    def batches(self, numbers: Iterable[list[int]]) -> Generator[TripletBatch, None, None]:
        """Yield the minibatches of the sample numbers, on the device."""
        for batch in build_dataloader(self.samples, numbers, self.recipe.data.workers, self.collate):
            self.unreadable |= batch.unreadable
            yield self._on_device(batch)

    def _on_device(self, batch: TripletBatch) -> TripletBatch:
        device = self.processes.device
        batch = batch.to(device)
        if not self.recipe.model.offload:
            return batch
        with self.processes.autocast():
            return encode_batch(self.pipeline, batch, device, both=self.recipe.alignment.enabled)

    def validate(self, step: int, folder: Path) -> dict[str, float]:
        """Write edits of fixed clips, without detail transfer, as videos and as a contact sheet.

        Return the losses of held-out clips; before the first step, also the mean loss without routing.
        """
        steps, device = self.recipe.validation.num_inference_steps, self.processes.device
        with ExitStack() as stack:
            if self.recipe.model.offload:
                parts = (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.mllm)
                for part in filter(None, parts):
                    stack.enter_context(on_device(part, device))
            stack.enter_context(self.processes.autocast())
            edits = [self.objective.edit(c.source, c.instruction, steps) for c in self.validation_clips]
        if self.processes.is_main:
            write_validation(folder / "validation", step, self.validation_clips, edits)
        if self.held_out is None:
            return {}
        samples, count = self.held_out

        def batch_of(number: int) -> TripletBatch:
            return self.objective.with_latents(self._on_device(self.collate([samples[number]])))

        with torch.no_grad(), self.processes.autocast():
            losses = self.objective.held_out_losses(batch_of, count, self.processes)
            transformer = self.pipeline.transformer
            if step == 0 and transformer.reads_native_tokens:
                # Deep blocks begin to read tokens that the first stage never saw: what does that cost?
                depth = transformer.config.routing_depth
                transformer.register_to_config(routing_depth=len(transformer.blocks))
                unrouted = self.objective.held_out_losses(batch_of, count, self.processes)
                transformer.register_to_config(routing_depth=depth)
                losses["held_out_loss_unrouted"] = unrouted["held_out_loss"]
        return losses

    def export(self, folder: Path) -> None:
        """Write the pipeline, for edits or further training; LoRA weights of the MLLM are merged.

        LoRA weights of the transformer are written instead, in one file with diffusers' name.
        """
        if self.recipe.model.transformer_lora_rank:
            if self.processes.is_main:
                replace_folder(folder, self._save_lora)
            return
        pipeline = self.pipeline
        if self.adapters or self.processes.is_sharded:
            parts = {}
            for name, module in self.objective.named_children():
                state = full_state_dict(module, keep=self.processes.is_main)
                if self.processes.is_main:
                    parts[name] = with_weights(module, merge_lora(state, self.adapters))
            if self.processes.is_main:
                settings = {k: v for k, v in pipeline.config.items() if k not in pipeline.components}
                settings = {k: v for k, v in settings.items() if not k.startswith("_")}
                pipeline = RVEDiTPipeline(**{**pipeline.components, **parts}, **settings)
        if self.processes.is_main:
            pipeline.provenance = self._provenance()
            replace_folder(folder, pipeline.save_pretrained)

    def _save_lora(self, folder: Path) -> None:
        transformer = self.pipeline.transformer
        state = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
        RVEDiTPipeline.save_lora_weights(
            folder,
            {name: tensor.detach().cpu() for name, tensor in state.items()},
            transformer_lora_adapter_metadata=transformer.peft_config[ADAPTER].to_dict(),
        )

    def _provenance(self) -> Provenance:
        initial, recipe = self.pipeline.provenance, self.recipe
        base = initial.base or (("nano",) if recipe.model.preset == "nano" else ())
        data: set[str] = {*initial.data}
        if recipe.data.source == "manifest" and recipe.data.manifest:
            names = {triplet.dataset for triplet in read_manifest(Path(recipe.data.manifest))}
            data |= {DATA_SETS.get(name, name) for name in names}
        else:
            data |= {PLAYGROUND}
        data |= {*WORD_SOURCES} if recipe.model.word_vectors else set()
        return Provenance(base, tuple(sorted(data)), recipe.model_dump(mode="json", exclude={"paper"}))


def _initial_pipeline(recipe: Recipe) -> RVEDiTPipeline:
    """Return the pipeline to train, on the CPU."""
    model, spec = recipe.model, model_spec(recipe.model.preset)
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
    elif vae is not None and spec.from_scratch:
        texts = corpus(recipe.data.seed, recipe.data.realism)
        pipeline = build_from_scratch(spec, texts, vae, model.routing_depth, recipe.flow.shift, recipe.seed)
    elif spec.from_scratch:
        raise UserError("model.vae_from is not set: set it to a VAE's run folder, or set model.init_from")
    else:
        raise UserError(
            f"model.init_from is not set, and {model.preset} cannot be trained from scratch: set it to a "
            "pipeline's folder, or train at nano size: `overlay` recipes/nano_scale.yaml"
        )
    if spec.from_scratch:  # an older nano has other windows and steps
        pipeline.register_to_config(**spec.pipeline)
    # Edits must start from the same noise as training, at the sizes of training.
    pipeline.register_to_config(shared_noise_ratio=recipe.flow.shared_noise_ratio, round_up=False)
    transformer = pipeline.transformer
    blocks = len(transformer.blocks)
    depth = blocks // 2 if model.routing_depth is None else model.routing_depth
    if depth > blocks:
        name = model.init_from or model.preset
        raise UserError(f"model.routing_depth is {depth}: {name} has {blocks} blocks")
    transformer.register_to_config(routing_depth=depth)
    if depth < blocks:
        add_text_encoder(pipeline)
    if model.word_vectors:
        use_word_vectors(pipeline)
    if model.reference_images and not pipeline.reads_reference_images:
        torch.manual_seed(recipe.seed)
        add_reference_modules(pipeline)
    return pipeline


def merge_lora(state: dict[str, Tensor], adapters: LoraModel | None) -> dict[str, Tensor]:
    """Return a state dict with LoRA weights merged, W + s B A, under the layers' original names."""
    if adapters is None:
        return state
    config = adapters.peft_config["default"]
    merged = {}
    for name, tensor in state.items():
        stem, dot, kind = name.partition(".base_layer.")
        if dot and kind == "weight":
            down, up = (state[f"{stem}.lora_{factor}.default.weight"] for factor in "AB")
            tensor = tensor + (config.lora_alpha / config.r) * up @ down
        if ".lora_" not in name:
            merged[f"{stem}.{kind}" if dot else name] = tensor
    return merged


def _checkpoint_layers(pipeline: RVEDiTPipeline) -> None:
    """Store only the inputs of the transformer's and the multimodal LLM's layers for the backward pass."""
    pipeline.transformer.enable_gradient_checkpointing()
    pipeline.mllm.activation_checkpointing_enable()
    pipeline.mllm.disable_input_require_grads()  # only a reentrant checkpoint would need them


def _use_plain_attention(pipeline: RVEDiTPipeline) -> None:
    """Disable flash kernels, whose backward pass is slower on a CPU at nano's sequence lengths."""
    for block in pipeline.transformer.blocks:
        for attention in (block.attn1, block.attn2):
            set_math_attention(attention.processor)
    pipeline.mllm.set_attn_implementation("eager")
    pipeline.mllm.model.visual.set_attn_implementation("eager")


@cache
def corpus(seed: int, realism: float) -> list[str]:
    """Return instructions and captions of the playground, to train the tokenizer on."""
    triplets = [sample_triplet(seed, index, realism=realism) for index in range(CORPUS_TRIPLETS)]
    return [text for t in triplets for text in (t.instruction, t.target_caption)] + ["system\nedit", "user\n"]
