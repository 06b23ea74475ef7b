"""Encoding of pixels to normalized VAE latents, and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from jaxtyping import Bool, Float
from torch import Tensor

from rvedit.compat import new_feature_cache, onload, unpatchify
from rvedit.io.frames import Frames, to_frames

FRAMES_PER_LATENT = 4
"""Frames of each latent frame but the first, which stands for one frame."""


def _statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of the latents, each (c, 1, 1, 1)."""
    mean, std = (torch.tensor(x, device=device) for x in (vae.config.latents_mean, vae.config.latents_std))
    return mean[:, None, None, None], std[:, None, None, None]


def _denormalize(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    mean, std = _statistics(vae, latents.device)
    return (latents.float() * std + mean).to(vae.dtype)


def encode(vae: AutoencoderKLWan, clip: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c f y x"]:
    """Return normalized latents, (mu - mean) / std, of pixels in [-1, 1]."""
    latents = vae.encode(clip.to(vae.dtype)).latent_dist.mean.float()
    mean, std = _statistics(vae, latents.device)
    return (latents - mean) / std


def latent_mask(masks: Bool[np.ndarray, "t h w"], height: int, width: int) -> Bool[Tensor, "f y x"]:
    """Return the masks of 4k+1 frames at the size of their latents: True where any of its pixels is."""
    cells = F.adaptive_max_pool2d(torch.from_numpy(masks).float(), (height, width)) > 0
    later = cells[1:].unflatten(0, (-1, FRAMES_PER_LATENT)).any(dim=1)
    return torch.cat([cells[:1], later])


class StreamDecoder:
    """Decoder of a long clip in chunks that keeps the causal VAE's feature cache between calls.

    The result equals decoding the whole clip at once, but only a few frames' activations are in memory. With
    VAE tiling enabled, diffusers decodes tile by tile without a feature cache, so a call also decodes the
    latents of earlier calls again.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self._feature_cache: list[Any] | None = None

    def __call__(
        self, latents: Float[Tensor, "b c f y x"], num_decoded: int = 0
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """Yield the pixels, about [-1, 1], of each latent frame after the first `num_decoded`."""
        vae = self.vae
        latents = _denormalize(vae, latents)
        tile = vae.tile_sample_min_height // vae.spatial_compression_ratio
        if vae.use_tiling and max(latents.shape[-2:]) > tile:
            skip = 1 + (num_decoded - 1) * vae.config.scale_factor_temporal if num_decoded else 0
            yield vae.decode(latents).sample[:, :, skip:]
            return
        onload(vae)
        hidden = vae.post_quant_conv(latents[:, :, num_decoded:].to(vae.post_quant_conv.weight.device))
        for part in hidden.split(1, dim=2):
            is_first = self._feature_cache is None
            if self._feature_cache is None:
                self._feature_cache = new_feature_cache(vae)
            pixels = vae.decoder(part, feat_cache=self._feature_cache, feat_idx=[0], first_chunk=is_first)
            if vae.config.patch_size is not None:
                pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
            yield pixels

    def frames(self, latents: Float[Tensor, "1 c f y x"], num_decoded: int = 0) -> Frames:
        """Return the same pixels as uint8 frames (t, h, w, 3), moved to the CPU chunk by chunk."""
        return np.concatenate([to_frames(pixels[0]) for pixels in self(latents, num_decoded)])


def decode(vae: AutoencoderKLWan, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 t h w"]:
    """Return the pixels, in [-1, 1], of normalized latents."""
    pixels: Tensor = vae.decode(_denormalize(vae, latents)).sample
    return pixels.float()
