"""The training task of nano's VAE: an evidence lower bound with a Laplace likelihood."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset

from rvedit.io.errors import UserError
from rvedit.io.frames import to_model_range
from rvedit.io.temporary import replace_folder
from rvedit.models.causal_convolution import start_as_image_autoencoder, use_fast_convolutions
from rvedit.models.model_spec import model_spec
from rvedit.pipelines.checkpoints import find_checkpoint
from rvedit.playground.degrade import degrade
from rvedit.playground.world import render, sample_triplet
from rvedit.training.buckets import is_still
from rvedit.training.data import sample_realism
from rvedit.training.dataloader import build_dataloader
from rvedit.training.distributed import Processes
from rvedit.training.loop import freeze
from rvedit.training.recipe import Recipe
from rvedit.training.recipe_sections import DataRecipe
from rvedit.training.step import sample_noise_and_timesteps
from rvedit.training.vae_costs import VAECosts

STATISTICS_BATCHES = 16
"""Batches that the latents' statistics are measured on."""


@dataclass(frozen=True)
class ClipBatch:
    """Clips (b, 3, t, h, w) in [-1, 1] and their numbers in the run."""

    clips: Tensor
    numbers: list[int]

    @staticmethod
    def collate(samples: list[tuple[int, Tensor]]) -> ClipBatch:
        """Return the minibatch of crops of one shape."""
        numbers, clips = zip(*samples, strict=True)
        return ClipBatch(torch.stack(clips), list(numbers))


class ClipCrops(Dataset[tuple[int, Tensor]]):
    """Random crops of source and target clips: (number, crop (3, t, crop, crop) in [-1, 1])."""

    def __init__(self, recipe: DataRecipe, batch_size: int):
        self.recipe = recipe
        self.batch_size = batch_size

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        data = self.recipe
        still = is_still(data, index // self.batch_size)
        rng = np.random.default_rng([data.seed, index])
        realism, degradation = sample_realism(data, index)
        triplet = sample_triplet(data.seed, index % data.count, realism=realism)
        is_target = rng.random() < 0.6
        scene = triplet.target if is_target else triplet.source
        count = 1 if still else data.num_frames
        frames = render(scene, count, data.height, data.width, first_frame=int(rng.integers(24)))
        if not is_target:
            frames = degrade(frames, degradation, data.degrade)
        if data.crop:
            top, left = (int(rng.integers(n - data.crop + 1)) for n in (data.height, data.width))
            frames = frames[:, top : top + data.crop, left : left + data.crop]
        return index, to_model_range(frames)


class VAEObjective(nn.Module):
    """The evidence lower bound as a module, so that DDP sees every use of the weights."""

    def __init__(self, vae: AutoencoderKLWan, recipe: Recipe):
        super().__init__()
        self.vae = vae
        self.recipe = recipe

    def forward(self, batch: ClipBatch, step: int) -> dict[str, Tensor]:
        """Return `loss`, `l1`, `psnr` and `kl` (per pixel value) of a minibatch.

        The loss adds the L1 errors of pixels, of differences between frames and of each frame's mean change,
        and the KL divergence.
        """
        clip, config = batch.clips, self.recipe.vae_loss
        posterior = self.vae.encode(clip).latent_dist
        level, noise, decoder_noise = (
            x.to(clip.device)
            for x in sample_noise_and_timesteps(self.recipe.seed, batch.numbers, posterior.mean.shape[1:])
        )
        latents = posterior.mean + posterior.std * noise
        if config.latent_noise:
            # An editor's latents have small errors; training on noisy latents keeps them out of the frames.
            scale = torch.tensor(self.vae.config.latents_std, device=clip.device)
            strength = config.latent_noise * level
            latents = latents + torch.einsum("b, c, b c f y x -> b c f y x", strength, scale, decoder_noise)
        decoded = self.vae.decode(latents).sample.float()
        error = decoded - clip
        divergence = posterior.kl().sum() / clip.numel()
        loss = error.abs().mean() + config.kl_weight * divergence
        if config.change_weight and clip.shape[2] > 1:
            changes = error.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))
            changes[:: self.vae.config.scale_factor_temporal] *= config.border_weight
            loss = loss + config.change_weight * changes.mean()
        if config.motion_weight and clip.shape[2] > 1:
            loss = loss + config.motion_weight * (_motion(decoded) - _motion(clip)).abs().mean()
        return {
            "loss": loss,
            "l1": error.abs().mean(),
            "psnr": -10 * torch.log10(error.square().mean() / 4),
            "kl": divergence,
        }


def _motion(clip: Tensor) -> Tensor:
    """Return the mean change from each frame to the next, (b, t - 1), of clips (b, c, t, h, w).

    The L1 error alone is lowest without uncertain motion: then the last frame of each group that shares a
    latent frame lags behind, and the video jumps at the start of the next group.
    """
    return clip.diff(dim=2).abs().mean(dim=(1, 3, 4))


class VAETask:
    """The task that trains `AutoencoderKLWan` on playground clips."""

    costs = VAECosts

    def __init__(self, recipe: Recipe, processes: Processes):
        for key in ("data.buckets", "data.manifest", "data.cache", "data.operations", "data.new_things",
                    "model.lora_rank", "model.gradient_checkpointing", "validation.every"):  # fmt: skip
            section, name = key.split(".")
            if getattr(getattr(recipe, section), name):
                raise UserError(f"{key} is for task: editor: remove it; a VAE is trained on playground clips")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.processes = processes
        if recipe.model.init_from:
            folder = find_checkpoint(recipe.model.init_from, "model.init_from")
            vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
        else:
            vae = AutoencoderKLWan(**model_spec(recipe.model.preset).vae)
            start_as_image_autoencoder(vae)
        use_fast_convolutions(vae)
        self.objective = VAEObjective(vae, recipe)
        freeze(vae, recipe.model.frozen)

    @property
    def unreadable(self) -> dict[str, str]:
        """Return nothing: all clips are rendered."""
        return {}

    def batches(self, numbers: Iterable[list[int]]) -> Generator[ClipBatch, None, None]:
        """Yield the minibatches of the sample numbers, on the device."""
        crops = ClipCrops(self.recipe.data, self.recipe.batch_size)
        for batch in build_dataloader(crops, numbers, self.recipe.data.workers, ClipBatch.collate):
            yield ClipBatch(batch.clips.to(self.processes.device), batch.numbers)

    def validate(self, step: int, folder: Path) -> None:
        """Do nothing: the metrics suffice."""

    def export(self, folder: Path) -> None:
        """Measure the mean of each latent channel and one scale, then write `folder/vae`.

        The scale is common to all channels: whitening would amplify channels with little information, and the
        transformer's loss would be spent on invisible detail.
        """
        if not self.processes.is_main:
            return
        vae = self.objective.vae
        if any(p.requires_grad for p in vae.encoder.parameters()):  # otherwise the statistics are unchanged
            size = self.recipe.batch_size
            steps = range(10**7, 10**7 + STATISTICS_BATCHES)  # beyond the steps of any run
            numbers = [list(range(step * size, (step + 1) * size)) for step in steps]
            with torch.no_grad():
                means = [vae.encode(batch.clips).latent_dist.mean for batch in self.batches(numbers)]
            values = torch.cat([rearrange(m, "b c f y x -> (b f y x) c") for m in means])
            mean = values.mean(dim=0)
            scale = (values - mean).square().mean().sqrt().item()
            statistics: dict[str, Any] = {"latents_mean": mean.tolist(), "latents_std": [scale] * len(mean)}
            vae.register_to_config(**statistics)
        replace_folder(folder, lambda part: vae.save_pretrained(part / "vae"))
