"""Two things about the causal convolutions of Wan's VAE that its training on little compute turns on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from jaxtyping import Float
from torch import Tensor, nn


class SingleFrameConv3d(WanCausalConv3d):
    """The same convolution, which computes of a single frame only the tap that meets it.

    Before the first frame there are zeros, so two of three taps add nothing; diffusers computes them.
    """

    def forward(
        self, x: Float[Tensor, "b c t h w"], cache_x: Float[Tensor, "b c p h w"] | None = None
    ) -> Float[Tensor, "b d t h w"]:
        """See `WanCausalConv3d`."""
        if cache_x is not None or x.shape[2] > 1:
            output: Tensor = super().forward(x, cache_x)
            return output
        left, _, top, _, _, _ = self._padding
        return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=(top, left)).unsqueeze(2)


def use_single_frame_convolutions(vae: AutoencoderKLWan) -> None:
    """Let stills, and the first frame of clips, cost a third; the function is the same."""
    for module in vae.modules():
        if type(module) is WanCausalConv3d and module.stride == (1, 1, 1):
            module.__class__ = SingleFrameConv3d


@torch.no_grad()
def start_as_image_autoencoder(vae: AutoencoderKLWan) -> None:
    """Let a fresh VAE look at each frame alone, so that what stills teach holds for clips from the start.

    Wan's own VAE is first trained on images and then inflated to video; here the inflated form is the
    initial one. Taps of the past start at zero, halving the frame rate takes the later of two frames, and
    doubling it repeats them.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] == 1:
            continue
        module.weight[:, :, :-1] = 0
        if name.endswith("time_conv"):
            nn.init.zeros_(module.bias)
            identity = torch.eye(module.in_channels)
            repeats = module.out_channels // module.in_channels
            module.weight[:, :, -1, 0, 0] = identity.repeat(repeats, 1)
