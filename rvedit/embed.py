"""Put a run's weights into the package as the embedded nano, in bf16: `python -m rvedit.embed runs/nano`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from rvedit.checkpoints import find_checkpoint, load_pipeline


def embed(run: str, package: Path) -> None:
    """Write the pipeline of a run to `package/nano`."""
    pipeline = load_pipeline(find_checkpoint(run), torch.bfloat16)
    folder = package / "nano"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    embed(sys.argv[1], Path(__file__).parent)
