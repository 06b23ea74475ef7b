"""Between pixels and the transformer's latents: the VAE's mean, normalised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from jaxtyping import Float
from torch import Tensor

from rvedit.io.frames import Frames, to_frames
from rvedit.models.offloading import onload


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


class StreamDecoder:
    """Decodes a long clip's latents piece by piece, as if they came at once: the causal VAE's memory is kept.

    Holds a few frames' activations and never the clip. With tiling switched on the library decodes tile by
    tile and keeps no memory: what was decoded before is decoded again there.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self._memory: list[Any] | None = None

    def __call__(
        self, latents: Float[Tensor, "b c f y x"], known: int = 0
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """The pixels of one latent frame after the other, up to [-1, 1], but for the first `known` ones."""
        vae = self.vae
        mean, std = _statistics(vae, latents)
        latents = (latents.float() * std + mean).to(vae.dtype)
        tile = vae.tile_sample_min_height // vae.spatial_compression_ratio
        if vae.use_tiling and max(latents.shape[-2:]) > tile:
            before = 1 + (known - 1) * vae.config.scale_factor_temporal if known else 0
            yield vae.decode(latents).sample[:, :, before:]
            return
        onload(vae)
        hidden = vae.post_quant_conv(latents[:, :, known:].to(vae.post_quant_conv.weight.device))
        for part in hidden.split(1, dim=2):
            is_first = self._memory is None
            if self._memory is None:
                vae.clear_cache()
                self._memory, vae._feat_map = vae._feat_map, None
            pixels = vae.decoder(part, feat_cache=self._memory, feat_idx=[0], first_chunk=is_first)
            if vae.config.patch_size is not None:
                pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
            yield pixels

    def frames(self, latents: Float[Tensor, "1 c f y x"], known: int = 0) -> Frames:
        """The same as frames (t, h, w, 3), each brought to the CPU at once."""
        return np.concatenate([to_frames(pixels[0]) for pixels in self(latents, known)])


def decode(vae: AutoencoderKLWan, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 t h w"]:
    """The inverse of `encode`: latents -> pixels in [-1, 1]."""
    mean, std = _statistics(vae, latents)
    pixels: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype)).sample
    return pixels.float()
