"""Write the weights of a run into the package as nano, in bf16.

Run `python -m rvedit.playground.bundle runs/nano`. `--vae RUN` takes the VAE of another run, which trained
only its decoder further; `--scores SUMMARY` adds results of `rvedit judge` to the model card.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from rvedit import NANO
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint


def bundle_nano(run: str, package: Path, vae_run: str | None = None, scores: Path | None = None) -> None:
    """Write the pipeline of a run to `package/nano`, with the scores of a `summary.json` of `rvedit judge`.

    Raises ValueError if the encoder of `vae_run` is not the one that the run was trained with.
    """
    pipeline = load_checkpoint(find_checkpoint(run), torch.bfloat16)
    if vae_run:
        folder = find_checkpoint(vae_run)
        vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
        encoder, new_encoder = pipeline.vae.encoder.state_dict(), vae.encoder.state_dict()
        if any(not torch.equal(encoder[name], new_encoder[name]) for name in encoder):
            raise ValueError(f"{vae_run}: its encoder is not that of {run}")
        pipeline.register_modules(vae=vae)
    if scores:
        pipeline.provenance = pipeline.provenance.with_scores(scores)
    pipeline.vae.to(torch.bfloat16)  # loaded in fp32
    folder = package / "nano"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    for path in folder.glob("*/config.json"):  # drop local paths
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--vae", metavar="RUN")
    parser.add_argument("--scores", metavar="SUMMARY", type=Path)
    args = parser.parse_args()
    bundle_nano(args.run, NANO.parent, args.vae, args.scores)
