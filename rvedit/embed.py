"""Put a run's weights into the package as the embedded nano, in bf16.

`python -m rvedit.embed runs/nano runs/nano_decoder` takes the VAE of a second run, whose encoder is the same.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from rvedit.checkpoints import load_module, load_pipeline


def embed(run: Path, package: Path, vae_run: Path | None = None) -> None:
    """Write the pipeline of a run, with the VAE of another one if given, to `package/nano`."""
    pipeline = load_pipeline(run, torch.bfloat16)
    if vae_run is not None:
        pipeline.vae = load_module("vae", vae_run / "vae", torch.bfloat16)
    folder = package / "nano"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    run, *others = map(Path, sys.argv[1:])
    embed(run, Path(__file__).parent, *others)
