"""Peak memory and time of 4K edits of several lengths, with and without detail transfer.

    python benchmarks/detail_memory.py --out benchmarks/results/detail_memory.json

A synthetic clip of noise over moving bands is edited from file to file as by `rvedit edit`, each edit in a
fresh process. A longer clip needs more memory only if something is not streamed.
"""

from __future__ import annotations

import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from _common import arguments, in_fresh_process, peak_bytes, print_table, write_json

from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import edit_file
from rvedit.io.video import VideoReader
from rvedit.pipelines.loading import load_pipeline


def write(path: Path, count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 32, (height, width, 3), np.uint8)
    bands = (np.arange(width) // 64 % 2 * 120 + 40).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(noise + np.roll(bands, 4 * index)[None, :, None])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def edit(clip: str, model: str, steps: int | None, detail: float | str, threads: int) -> dict[str, float]:
    """Return the peak bytes and the seconds per frame of one edit."""
    torch.set_num_threads(threads)
    editor = load_pipeline(model, "cpu")
    started = time.perf_counter()

    def run() -> None:
        settings = EditConfig(num_inference_steps=steps, detail=detail)
        with VideoReader(clip) as reader:
            edit_file(
                reader, "make it sepia", Path(clip).with_suffix(".out.mp4"), editor, settings, overwrite=True
            )

    _, peak = peak_bytes(run, torch.device("cpu"))
    with VideoReader(clip) as reader:
        return {
            "peak_bytes": peak,
            "seconds_a_frame": (time.perf_counter() - started) / reader.info.num_frames,
        }


def main() -> None:
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size", type=int, nargs=2, default=(2160, 3840), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--frames", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.frames:
            clip = Path(folder) / f"{count}.mp4"
            write(clip, count, *args.size)
            for name, detail in (("plain", 0), ("detail", "auto")):
                threads = torch.get_num_threads()
                row = in_fresh_process(edit, str(clip), args.model, args.steps, detail, threads)
                results[f"{count} frames/{name}"] = row
                print(count, name, row, flush=True)
    cells = [
        (name, f"{row['peak_bytes'] / 1e6:.0f}", f"{row['seconds_a_frame']:.2f}")
        for name, row in results.items()
    ]
    print_table(("", "peak MB", "seconds per frame"), cells)
    least, most = min(args.frames), max(args.frames)
    for name in ("plain", "detail"):
        ratio = (
            results[f"{most} frames/{name}"]["peak_bytes"] / results[f"{least} frames/{name}"]["peak_bytes"]
        )
        print(f"{name}: {most} frames need {ratio:.3f} x the memory of {least}")
    write_json(args, {"edits": results})


if __name__ == "__main__":
    main()
