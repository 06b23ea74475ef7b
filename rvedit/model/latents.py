"""Between pixels and the transformer's latents: the VAE's mean, normalised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from jaxtyping import Float
from torch import Tensor

from rvedit.model.offloading import onload
from rvedit.video_tensors import Frames, to_frames


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


def decode_frames(vae: AutoencoderKLWan, latents: Float[Tensor, "1 c f y x"]) -> Iterator[Frames]:
    """As `decode`, some frames (t, h, w, 3) at a time and each to the CPU: no whole clip of floats."""
    for pixels in decode_parts(vae, latents):
        yield to_frames(pixels[0])


def decode_parts(
    vae: AutoencoderKLWan, latents: Float[Tensor, "1 c f y x"]
) -> Iterator[Float[Tensor, "1 3 t h w"]]:
    """The pixels of one latent frame after the other, up to [-1, 1].

    With tiling switched on the library decodes tile by tile, and the clip comes whole.
    """
    mean, std = _statistics(vae, latents)
    latents = (latents.float() * std + mean).to(vae.dtype)
    tile = vae.tile_sample_min_height // vae.spatial_compression_ratio
    if vae.use_tiling and max(latents.shape[-2:]) > tile:
        yield vae.decode(latents).sample
        return
    onload(vae)
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents.to(vae.post_quant_conv.weight.device))
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        part = hidden[:, :, index : index + 1]
        pixels = vae.decoder(part, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0)
        if vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
        yield pixels
    vae.clear_cache()


def decode(vae: AutoencoderKLWan, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 t h w"]:
    """The inverse of `encode`: latents -> pixels in [-1, 1]."""
    mean, std = _statistics(vae, latents)
    pixels: Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype)).sample
    return pixels.float()
