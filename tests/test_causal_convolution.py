"""What the VAE's training turns on changes its cost and its start, not the function."""

import torch
from diffusers import AutoencoderKLWan

from rvedit.models.causal_convolution import start_as_image_autoencoder, use_fast_convolutions
from rvedit.models.presets import NANO_VAE


def test_fast_convolutions_are_the_same_function():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**NANO_VAE).double()
    clips = [torch.randn(2, 3, frames, 32, 32, dtype=torch.float64) for frames in (1, 5, 9)]
    before = [vae(clip).sample for clip in clips]
    keys = list(vae.state_dict())
    use_fast_convolutions(vae)
    after = [vae(clip).sample for clip in clips]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert list(vae.state_dict()) == keys
    gradients = []
    for module in (vae, AutoencoderKLWan(**NANO_VAE).double()):
        module.load_state_dict(vae.state_dict())
        module.zero_grad()
        module(clips[0]).sample.square().sum().backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-6, atol=1e-9)


def test_a_fresh_vae_looks_at_each_frame_alone():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**NANO_VAE)
    start_as_image_autoencoder(vae)
    clip = torch.randn(1, 3, 9, 32, 32)
    changed = clip.clone()
    changed[:, :, 1:5] = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        one, other = (vae.encode(c).latent_dist.mean for c in (clip, changed))
    assert torch.equal(one[:, :, [0, 2]], other[:, :, [0, 2]])
    assert not torch.equal(one[:, :, 1], other[:, :, 1])
