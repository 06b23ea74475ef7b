"""Put a run's weights into the package as the embedded nano, in bf16.

`python -m rvedit.playground.bundle runs/nano`; `--vae` takes another run's VAE, whose decoder was trained
further; `--scores` puts the results of `rvedit judge` into the model card.
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
    """Write the pipeline of a run to `package/nano`, with the scores of a judged folder's `summary.json`.

    Raises ValueError where the VAE of `vae_run` has other latents than the run was trained on.
    """
    pipeline = load_checkpoint(find_checkpoint(run), torch.bfloat16)
    if vae_run:
        folder = find_checkpoint(vae_run)
        vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
        before, after = pipeline.vae.encoder.state_dict(), vae.encoder.state_dict()
        if any(not torch.equal(before[name], after[name]) for name in before):
            raise ValueError(f"{vae_run}: its encoder is not that of {run}")
        pipeline.register_modules(vae=vae)
    if scores:
        pipeline.provenance = pipeline.provenance.with_scores(scores)
    pipeline.vae.to(torch.bfloat16)  # it is read in fp32
    folder = package / "nano"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    for path in folder.glob("*/config.json"):  # where its parts lay is nobody else's business
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
