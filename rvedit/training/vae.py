"""The small VAE's training: an evidence lower bound with a Laplace likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rvedit.data.playground import render, sample_triplet
from rvedit.model.presets import NANO_VAE
from rvedit.recipes import DataRecipe, Recipe
from rvedit.training.loop import freeze, per_step
from rvedit.video_tensors import to_model_range


class ClipCrops(Dataset[Tensor]):
    """Random crops of source and target clips: (3, t, crop, crop) in [-1, 1]."""

    def __init__(self, recipe: DataRecipe):
        self.recipe = recipe

    def __getitem__(self, index: int) -> Tensor:
        data = self.recipe
        rng = np.random.default_rng([data.seed, index])
        triplet = sample_triplet(data.seed, index % data.count)
        scene = triplet.target if rng.random() < 0.6 else triplet.source
        frames = render(scene, data.num_frames, data.height, data.width, first_frame=int(rng.integers(24)))
        if data.crop:
            top, left = (int(rng.integers(n - data.crop + 1)) for n in (data.height, data.width))
            frames = frames[:, top : top + data.crop, left : left + data.crop]
        return to_model_range(frames)


class VAETask:
    """Trains `AutoencoderKLWan` on playground clips."""

    def __init__(self, recipe: Recipe, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        if recipe.model.init_from:
            self.model = AutoencoderKLWan.from_pretrained(recipe.model.init_from, subfolder="vae").to(device)
        else:
            self.model = AutoencoderKLWan(**NANO_VAE).to(device)
        freeze(self.model, recipe.model.frozen)

    def batches(self, first_step: int) -> Iterator[Tensor]:
        """Yield clips (b, 3, t, h, w)."""
        data = self.recipe.data
        loader: DataLoader[Tensor] = DataLoader(
            ClipCrops(data),
            batch_sampler=per_step(first_step, self.recipe.batch_size),
            num_workers=data.workers,
        )
        return iter(loader)

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        """L1 error, and the KL divergence per value scaled by the error's expected size."""
        clip = batch.to(self.device)
        posterior = self.model.encode(clip).latent_dist
        generator = torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + step)
        latents = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=generator, device=self.device
        )
        error = self.model.decode(latents).sample.float() - clip
        divergence = posterior.kl().sum() / clip.numel()
        return {
            "loss": error.abs().mean() + self.recipe.kl_weight * divergence,
            "l1": error.abs().mean(),
            "psnr": -10 * torch.log10(error.square().mean() / 4),
            "kl": divergence,
        }

    def export(self, folder: Path) -> None:
        """Measure the latents' mean per channel and one common scale, then write `folder/vae`.

        One scale for all channels, not one each: whitening would blow up the channels that carry little,
        and the transformer would spend its loss on detail that nobody sees.
        """
        if not any(p.requires_grad for p in self.model.encoder.parameters()):  # the latents are as they were
            self.model.save_pretrained(folder / "vae")
            return
        batches = self.batches(first_step=10**9)
        with torch.no_grad():
            latents = torch.cat(
                [self.model.encode(next(batches).to(self.device)).latent_dist.mean for _ in range(16)]
            )
        mean = latents.mean(dim=(0, 2, 3, 4))
        scale = (latents - mean[None, :, None, None, None]).square().mean().sqrt().item()
        statistics: dict[str, Any] = {"latents_mean": mean.tolist(), "latents_std": [scale] * len(mean)}
        self.model.register_to_config(**statistics)
        self.model.save_pretrained(folder / "vae")
