"""The time of nano's VAE with `use_fast_convolutions`, against torch's 3-D convolutions.

    python benchmarks/cpu_convolutions.py --out benchmarks/results/cpu_convolutions.json

Encoding and streamed decoding of a clip of 21 frames of 112x144 pixels, as an edit of the README's clip does
them, and one training step of encoder and decoder on 4 clips of 9 frames of 64x64.
"""

from __future__ import annotations

import torch
from _common import arguments, interleaved_medians, print_table, write_json
from diffusers import AutoencoderKLWan

from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.models.causal_convolution import use_fast_convolutions
from rvedit.models.presets import NANO_VAE


def main() -> None:
    args = arguments(__doc__, repeats=5).parse_args()
    vaes = {}
    for name in ("torch", "fast"):
        torch.manual_seed(0)
        vaes[name] = AutoencoderKLWan(**NANO_VAE).to(args.device)
    use_fast_convolutions(vaes["fast"])
    clip = torch.rand(1, 3, 21, 112, 144, device=args.device) * 2 - 1
    crops = torch.rand(4, 3, 9, 64, 64, device=args.device) * 2 - 1
    with torch.no_grad():
        latents = encode(vaes["torch"], clip)

    def encodes(vae: AutoencoderKLWan) -> None:
        with torch.no_grad():
            encode(vae, clip)

    def decodes(vae: AutoencoderKLWan) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(list(StreamDecoder(vae)(latents)), dim=2)

    def trains(vae: AutoencoderKLWan) -> None:
        vae(crops).sample.square().mean().backward()

    difference = (decodes(vaes["fast"]) - decodes(vaes["torch"])).abs().max().item()
    ratios = {}
    for name, step in {"encoding": encodes, "decoding": decodes, "training step": trains}.items():
        variants = {kind: lambda vae=vae, step=step: step(vae) for kind, vae in vaes.items()}
        seconds = interleaved_medians(variants, args.device, args.repeats)
        ratios[name] = seconds["fast"] / seconds["torch"]
    print_table(("part", "time, fast / torch"), [(name, f"{ratio:.2f}") for name, ratio in ratios.items()])
    write_json(args, {"time_ratio": ratios, "largest_difference": difference})


if __name__ == "__main__":
    main()
