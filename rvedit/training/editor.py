"""The editor's training task: triplets of the playground, the step, and what is written at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rvedit.checkpoints import MODULE_CLASSES, build_nano, load_pipeline
from rvedit.data.playground import render, sample_triplet
from rvedit.errors import UserError
from rvedit.model.presets import NANO_CONNECTOR
from rvedit.pipeline import RVEDiTPipeline
from rvedit.recipes import DataRecipe, Recipe
from rvedit.training.loop import freeze, per_step
from rvedit.training.step import Premise, TripletBatch, training_losses
from rvedit.video_tensors import resize_frames, to_model_range

CORPUS_SIZE = 3_000


@dataclass(frozen=True)
class _Sample:
    source: Tensor
    target: Tensor
    source_frames: Any
    target_frames: Any
    instruction: str
    caption: str


class PlaygroundSamples(Dataset[_Sample]):
    """Triplet number i as tensors, and the frames that the LLM sees of it."""

    def __init__(self, recipe: DataRecipe, batch_size: int, llm_frames: int, llm_side: int):
        self.recipe = recipe
        self.batch_size = batch_size
        self.llm_frames = llm_frames
        self.llm_side = llm_side

    def __getitem__(self, index: int) -> _Sample:
        data = self.recipe
        # Whole batches are stills or clips, so that they stack.
        still = np.random.default_rng([data.seed, index // self.batch_size, 1]).random() < data.still_share
        rng = np.random.default_rng([data.seed, index, 2])
        triplet = sample_triplet(data.seed, index % data.count)
        start = int(rng.integers(24))
        count = 1 if still else data.num_frames
        source, target = (
            render(scene, count, data.height, data.width, start) for scene in (triplet.source, triplet.target)
        )
        seen = np.unique(np.linspace(0, count - 1, self.llm_frames).round().astype(int))
        side = (self.llm_side, self.llm_side)
        return _Sample(
            source=to_model_range(source),
            target=to_model_range(target),
            source_frames=resize_frames(source[seen], *side),
            target_frames=resize_frames(target[seen], *side),
            instruction="" if rng.random() < data.instruction_dropout else triplet.instruction,
            caption=triplet.target_caption,
        )


def collate(samples: list[_Sample]) -> TripletBatch:
    """Samples of one shape -> a minibatch."""
    editing = Premise(
        clips=torch.stack([s.source for s in samples]),
        frames=[s.source_frames for s in samples],
        texts=[s.instruction for s in samples],
    )
    reference = Premise(
        clips=torch.stack([s.target for s in samples]),
        frames=[s.target_frames for s in samples],
        texts=[s.caption for s in samples],
    )
    return TripletBatch(editing, reference)


class EditorTask:
    """Trains transformer, connector, multimodal LLM and text encoder; the VAE is frozen."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        model = recipe.model
        if model.preset != "nano":
            raise UserError(
                f"model.preset is {model.preset}: its weights are not here: "
                "train at nano size with --set model.preset=nano"
            )
        for key in ("init_from", "vae_from"):
            folder = getattr(model, key)
            if folder and not Path(folder).is_dir():
                raise UserError(
                    f"model.{key} is {folder}: no such folder: train the recipe of that name first"
                )
        if model.init_from:
            self.pipeline = load_pipeline(Path(model.init_from))
            if model.routing_depth is not None:
                self.pipeline.transformer.register_to_config(routing_depth=model.routing_depth)
        elif model.vae_from:
            vae = AutoencoderKLWan.from_pretrained(model.vae_from, subfolder="vae")
            self.pipeline = build_nano(
                corpus(recipe.data.seed), vae, model.routing_depth, recipe.flow.shift, recipe.seed
            )
        else:
            raise UserError("model.vae_from is not set: give the folder of a VAE's run, or model.init_from")
        trained = {name: getattr(self.pipeline, name).to(device) for name in MODULE_CLASSES}
        trained.pop("vae").requires_grad_(False)
        transformer = self.pipeline.transformer
        # Parts that no block reads get no gradient, and the optimizer need not carry them.
        deep = transformer.config.routing_depth < len(transformer.blocks)
        self.pipeline.text_encoder.requires_grad_(deep)
        transformer.visual_embedder.requires_grad_(deep)
        transformer.condition_embedder.text_embedder.requires_grad_(deep)
        if device.type == "cpu":
            _use_plain_attention(self.pipeline)
        self.model = nn.ModuleDict(trained)
        freeze(self.model, recipe.model.frozen)

    def batches(self, first_step: int) -> Iterator[TripletBatch]:
        """Yield minibatches on the CPU."""
        data, size = self.recipe.data, self.recipe.batch_size
        side = round(NANO_CONNECTOR["max_pixels"] ** 0.5)
        loader: DataLoader[_Sample] = DataLoader(
            PlaygroundSamples(data, size, self.pipeline.connector.config.max_frames, side),
            batch_sampler=per_step(first_step, size),
            num_workers=data.workers,
            collate_fn=collate,
        )
        return iter(loader)

    def losses(self, batch: TripletBatch, step: int) -> dict[str, Tensor]:
        """Eq. 6."""
        editing, reference = (
            Premise(side.clips.to(self.device), side.frames, side.texts)
            for side in (batch.editing, batch.reference)
        )
        recipe = self.recipe
        return training_losses(
            self.pipeline, TripletBatch(editing, reference), recipe.flow, recipe.alignment, recipe.seed, step
        )

    def export(self, folder: Path) -> None:
        """Write the pipeline, to edit with or to train on from."""
        self.pipeline.save_pretrained(folder)


def _use_plain_attention(pipeline: RVEDiTPipeline) -> None:
    """Matrices instead of flash kernels: at nano's sequence lengths their backward is faster on a CPU."""
    pipeline.transformer.set_attention_backend("_native_math")
    pipeline.mllm.set_attn_implementation("eager")
    pipeline.mllm.model.visual.set_attn_implementation("eager")


def corpus(seed: int) -> list[str]:
    """The playground's language, for the tokenizer."""
    triplets = [sample_triplet(seed, index) for index in range(CORPUS_SIZE)]
    return [text for t in triplets for text in (t.instruction, t.target_caption)] + ["system\nedit", "user\n"]
