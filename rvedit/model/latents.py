"""Between pixels and the transformer's latents: the VAE's mean, normalised."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(x, device=like.device) for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean[:, None, None, None], std[:, None, None, None]


def encode(vae: AutoencoderKLWan, clip: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c f y x"]:
    """Pixels in [-1, 1] -> latents of about unit scale: (mu - mean) / std."""
    latents = vae.encode(clip.to(vae.dtype)).latent_dist.mean.float()
    mean, std = _statistics(vae, latents)
    return (latents - mean) / std


def decode(vae: AutoencoderKLWan, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 t h w"]:
    """The inverse of `encode`: latents -> pixels in [-1, 1]."""
    mean, std = _statistics(vae, latents)
    pixels: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype)).sample
    return pixels.float()
