"""A small animated picture of an edit that is being sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rvedit.compat import execution_device
from rvedit.editing.tiny_decoder import TinyDecoder
from rvedit.io.frames import Frames, to_frames
from rvedit.io.temporary import atomic_path
from rvedit.models.autoencoder import FRAMES_PER_LATENT, encode

_UPDATES = 4
"""Number of pictures that are written while one window is sampled."""
_MAX_SIDE = 192
_FIELD_SIDE = 8
"""Side in latents of the pictures that the colors of latents are fitted to."""


class Preview:
    """A `callback_on_step_end` of any pipeline that writes a picture of the edit every few steps.

    It shows the latents that the model predicts at the step's sigma, x - sigma v, by a linear map from
    latents to colors or by a tiny decoder. The velocity v is that between the last two steps. The file is
    replaced at once, so that it is whole at any moment.
    """

    def __init__(
        self, pipe: Any, path: str | Path, frame_rate: float = 24.0, decoder: str | Path | None = None
    ) -> None:
        """Fit the colors of `pipe`'s latents, or read a tiny decoder; `path` ends in .gif or .webp.

        `frame_rate` is that of the frames that the model sees, per second; `decoder` is a file for
        `TinyDecoder`. Raises UserError if that does not fit the pipeline's VAE.
        """
        self.path = Path(path)
        self.seconds_per_latent = FRAMES_PER_LATENT / frame_rate
        self.decoder = None if decoder is None else TinyDecoder(Path(decoder), pipe.vae.config.z_dim)
        self.factors = color_factors(pipe) if self.decoder is None else None
        self._last: Tensor | None = None

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write the picture of a step, counted from 0, if it is the turn of one; change nothing."""
        latents = tensors["latents"].float()
        sigma, reached = (float(level) for level in pipe.scheduler.sigmas[step : step + 2])
        is_last = step + 1 == pipe.num_timesteps
        if is_last or (step > 0 and (step + 1) % -(-pipe.num_timesteps // _UPDATES) == 0):
            predicted = latents
            if reached > 0 and self._last is not None:
                predicted = latents - reached * (latents - self._last) / (reached - sigma)
            if self.decoder is not None:
                self.write(self.decoder(predicted[0], 2 * _MAX_SIDE))
            else:
                assert self.factors is not None
                self.write(latent_colors(predicted[0], self.factors))
        self._last = None if is_last else latents
        return tensors

    def write(self, frames: Frames) -> None:
        """Write frames (t, h, w, 3), enlarged, as an animated picture. Raises UserError."""
        factor = max(1, _MAX_SIDE // max(frames.shape[1:3]))
        size = (factor * frames.shape[2], factor * frames.shape[1])
        pictures = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
        if self.path.suffix.lower() == ".gif":  # Pillow's own choice of colors takes 50 ms a frame
            pictures = [picture.quantize(method=Image.Quantize.FASTOCTREE) for picture in pictures]
        with atomic_path(self.path) as temporary:
            pictures[0].save(
                temporary,
                save_all=True,
                append_images=pictures[1:],
                duration=round(1000 * self.seconds_per_latent),
                loop=0,
                method=0,  # of WebP: the fastest
            )


def color_factors(pipe: Any) -> Float[Tensor, "channels+1 3"]:
    """Return the linear map from normalized latents, and a constant 1, to colors in [-1, 1].

    It is fitted by least squares to what the pipeline's VAE makes of fields of random colors.
    """
    vae = pipe.vae
    side = _FIELD_SIDE * vae.config.scale_factor_spatial
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(1, 3, n, n, generator=generator) for n in (2, 4, 6, 8)]
    fields = torch.cat([F.interpolate(field, (side, side), mode="bicubic") for field in coarse])
    fields = (2 * fields - 1).clamp(-1, 1)
    clips = fields[:, :, None].expand(-1, -1, 1 + FRAMES_PER_LATENT, -1, -1)
    with torch.no_grad():
        latents = encode(vae, clips.to(execution_device(pipe)))
    colors = F.avg_pool2d(fields, vae.config.scale_factor_spatial)[:, :, None].expand(-1, -1, 2, -1, -1)
    known = _with_one(latents.cpu())
    return torch.linalg.lstsq(known.flatten(0, 3), colors.movedim(1, -1).flatten(0, 3)).solution


def latent_colors(latents: Float[Tensor, "c f y x"], factors: Float[Tensor, "channels+1 3"]) -> Frames:
    """Return the colors (f, y, x, 3) of normalized latents, uint8."""
    colors = _with_one(latents) @ factors.to(latents.device)
    return to_frames(colors.movedim(-1, 0))


def _with_one(latents: Tensor) -> Tensor:
    """Return latents (..., c, f, y, x) as (..., f, y, x, c + 1)."""
    last = latents.movedim(-4, -1)
    return torch.cat([last, torch.ones_like(last[..., :1])], dim=-1)
