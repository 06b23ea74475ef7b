"""A tiny decoder of latents for previews, with weights in the layout of TAEHV (madebyollin/taehv)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, to_frames

_STAGES = (3, 9, 15)
"""Index, in the file, of the first of the three memory blocks of each stage."""


class TinyDecoder:
    """Decodes one frame per latent frame; sides are enlarged as far as a preview needs.

    Each stage has three blocks that also read the latent frame before, upsampling by 2, and a growth in time,
    of which the last frame is taken. Upsampling is left out where the picture is large enough without it, so
    that the frames are not exactly TAEHV's own.
    """

    def __init__(self, path: Path, latent_channels: int) -> None:
        """Read a safetensors file. Raises UserError if it is damaged or has another layout or VAE."""
        try:
            state = load_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error})") from None
        self.weights = {key.removeprefix("decoder."): x.float() for key, x in state.items()}
        last = self.weights.get("22.weight")
        if "1.weight" not in self.weights or last is None or "3.conv.0.weight" not in self.weights:
            raise UserError(f"{path}: not a decoder of TAEHV's basic kind, such as taew2_2.safetensors")
        channels = self.weights["1.weight"].shape[1]
        if channels != latent_channels:
            raise UserError(
                f"{path}: decodes latents of {channels} channels, but the model's have {latent_channels}"
            )
        self.patch = round((len(last) / 3) ** 0.5)
        try:
            self(torch.zeros(channels, 1, 2, 2), max_side=0)
        except (KeyError, RuntimeError, AssertionError) as error:
            raise UserError(f"{path}: not a complete decoder of TAEHV's basic kind ({error})") from None

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "c f y x"], max_side: int) -> Frames:
        """Return frames (f, h, w, 3) of normalized latents, with sides of at most about `max_side` pixels."""
        x = latents.float().movedim(1, 0)
        x = torch.tanh(x / 3) * 3
        x = F.relu(self._convolve("1", x))
        for first in _STAGES:
            for block in range(first, first + 3):
                x = self._remember(str(block), x)
            if 2 * self.patch * max(x.shape[-2:]) <= max_side:
                x = F.interpolate(x, scale_factor=2)
            grow = self.weights[f"{first + 4}.conv.weight"].to(x.device)
            x = F.conv2d(x, grow[-x.shape[1] :])
            x = self._convolve(str(first + 5), x)
        x = F.pixel_shuffle(self._convolve("22", F.relu(x)), self.patch)
        return to_frames(2 * x.movedim(0, 1) - 1)

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights.get(f"{name}.{part}") for part in ("weight", "bias"))
        assert weight is not None, f"{name} is missing"
        bias = None if bias is None else bias.to(x.device)
        return F.conv2d(x, weight.to(x.device), bias, padding=weight.shape[-1] // 2)

    def _remember(self, name: str, x: Tensor) -> Tensor:
        """Return a block's output for frames (f, c, y, x) and the frames before them."""
        before = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
        y = F.relu(self._convolve(f"{name}.conv.0", torch.cat([x, before], dim=1)))
        y = self._convolve(f"{name}.conv.4", F.relu(self._convolve(f"{name}.conv.2", y)))
        skip = self._convolve(f"{name}.skip", x) if f"{name}.skip.weight" in self.weights else x
        return F.relu(y + skip)
