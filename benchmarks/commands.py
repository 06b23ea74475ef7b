"""Wall-clock seconds of the commands that a new user runs first, including the start of the process.

python benchmarks/commands.py --out benchmarks/results/commands.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import arguments, print_table, write_json

ROOT = Path(__file__).resolve().parent.parent
PARK, CORGI = str(ROOT / "assets/park.mp4"), "replace the dog with a corgi"
RVEDIT = [sys.executable, "-c", "from rvedit_cli.main import main; main()"]
COMMANDS = {
    "rvedit --help": (["--help"], 0.5),
    "the README's rvedit edit": (["edit", PARK, CORGI, "--guidance", "2"], 10.0),
    "rvedit analyze attention, one clip": (
        ["analyze", "attention", PARK, "--instruction", CORGI, "--out", "found"],
        60.0,
    ),
    "rvedit analyze trace": (["analyze", "trace", PARK, CORGI], 60.0),
}


# The time until the first denoising step of an edit ends, and the share of the imports.
FIRST_STEP = f"""
import os, sys
from diffusers import FlowMatchEulerDiscreteScheduler
FlowMatchEulerDiscreteScheduler.step = lambda *_, **__: os._exit(0)
sys.argv = ["rvedit", "edit", {PARK!r}, {CORGI!r}]
from rvedit_cli.main import main
main()
"""
IMPORTS = """
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from transformers import Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel
"""
PARTS = {"until the first denoising step": (FIRST_STEP, 4.5), "of which diffusers' imports": (IMPORTS, None)}


def seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    args = arguments(__doc__, repeats=3, chooses_device=False).parse_args()
    results = {}
    commands = {name: ([*RVEDIT, *words], bar) for name, (words, bar) in COMMANDS.items()}
    commands |= {name: ([sys.executable, "-c", code], bar) for name, (code, bar) in PARTS.items()}
    for name, (command, bar) in commands.items():
        times = [seconds(command) for _ in range(args.repeats)]
        results[name] = {"seconds": statistics.median(times), "bar": bar}
    rows = [
        (name, f"{row['seconds']:.2f}", "" if row["bar"] is None else f"{row['bar']:.1f}")
        for name, row in results.items()
    ]
    print_table(("command", "median s", "bar s"), rows)
    write_json(args, {"commands": results})


if __name__ == "__main__":
    main()
