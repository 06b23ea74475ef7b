"""Faster convolutions and an initialization for training Wan's VAE with little compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from jaxtyping import Float
from torch import Tensor, nn

from rvedit.compat import causal_padding


class FastCausalConv3d(WanCausalConv3d):
    """`WanCausalConv3d` as one 2-D convolution of all frames, with the temporal taps stacked as channels.

    On CPUs, torch's 3-D convolution is several times slower than its 2-D convolution. A single frame is
    convolved with the last temporal tap only, on every device: the other taps see the zero padding before the
    first frame, which diffusers computes nevertheless.
    """

    def forward(
        self, x: Float[Tensor, "b c t h w"], cache_x: Float[Tensor, "b c p h w"] | None = None
    ) -> Float[Tensor, "b d s h w"]:
        """Convolve as `WanCausalConv3d` does; sums are rounded in another order."""
        num_padded, *padding = causal_padding(self)
        is_single = cache_x is None and x.shape[2] == 1 and num_padded == self.kernel_size[0] - 1
        if x.device.type != "cpu" and not is_single:
            return super().forward(x, cache_x)
        if cache_x is not None and num_padded:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            num_padded -= cache_x.shape[2]
        weight, taps, step = self.weight, self.kernel_size[0], self.stride[0]
        if is_single:
            weight, taps, num_padded = weight[:, :, -1:], 1, 0
        frames = F.pad(x, (0, 0, 0, 0, num_padded, 0)).transpose(1, 2)
        num_frames = (frames.shape[1] - taps) // step + 1
        windows = [frames[:, tap : tap + (num_frames - 1) * step + 1 : step] for tap in range(taps)]
        stacked = torch.cat(windows, dim=2).flatten(0, 1)
        kernel = weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(stacked, kernel, self.bias, stride=self.stride[1:], padding=padding)
        return y.unflatten(0, (-1, num_frames)).transpose(1, 2)


def use_fast_convolutions(vae: AutoencoderKLWan) -> None:
    """Compute images at a third of the cost, and clips on a CPU several times faster.

    The results stay the same, up to rounding.
    """
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = FastCausalConv3d


@torch.no_grad()
def start_as_image_autoencoder(vae: AutoencoderKLWan) -> None:
    """Initialize a VAE so that it treats each frame alone: training on images then also helps clips.

    Wan's own VAE is trained on images and then inflated to video; this starts from the inflated form. The
    taps on past frames start at zero, temporal downsampling takes the later of two frames, and temporal
    upsampling repeats each frame.
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
