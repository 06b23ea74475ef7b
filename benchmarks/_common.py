"""Common code of the benchmarks: device name, interleaved timing, peak memory, tables and JSON.

Results are ratios of variants timed in one run: one warm-up each, then A, B, A, B, ..., and the median of
each. Peak memory on CUDA is the allocator's. On the CPU it is the process's high-water mark, which is reset
before the call; the call then needs a fresh process, because reused freed memory would not raise the mark.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rvedit.editing.config import EditConfig
from rvedit.editing.long_video import edit_video

Step = Callable[[], Any]


def edit_clip(pipe: Any, video: Any, prompt: str, config: EditConfig | None = None) -> np.ndarray:
    """Edit a clip without a progress bar; return its frames (t, h, w, 3)."""
    pipe.set_progress_bar_config(disable=True)
    return np.stack(list(edit_video(pipe, video, prompt, config)))


def arguments(
    description: str | None, repeats: int | None = None, chooses_device: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with --out, --device if `chooses_device`, and --repeats if it has a default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(device=device)
    if chooses_device:
        parser.add_argument("--device", type=torch.device)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="number of timed calls per variant")
    parser.add_argument("--out", type=Path, help="JSON file; default: only print")
    return parser


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the CPU's model and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_medians(variants: Mapping[str, Step], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the median seconds of each variant, called in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + repeats):
        for name, step in variants.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values[1:]) for name, values in seconds.items()}


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Return the FLOP/s of a large square matrix product on this device."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = interleaved_medians({"matmul": lambda: left @ right}, device, repeats)["matmul"]
    return 2 * size**3 / seconds


def peak_bytes(step: Step, device: torch.device) -> tuple[int, int]:
    """Return the bytes in use before a call, and the peak during it, which includes them."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronize(device)
        return before, torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water_bytes()
    step()
    return before, _high_water_bytes()


def _high_water_bytes() -> int:
    # Not getrusage's ru_maxrss, which is inherited from the parent process.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a module-level function in a new process with the same number of threads; return its result."""
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        return pool.submit(function, *args).result()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the first column left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    for row in (headers, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))


def write_json(args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write results, device, torch version and options to --out, if it is given."""
    if args.out is None:
        return
    # Paths are specific to this machine.
    settings = {k: v for k, v in vars(args).items() if k != "device" and not isinstance(v, Path)}
    about = {"device": device_name(args.device), "torch": torch.__version__, "settings": settings}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**about, **results}, indent=1, default=str) + "\n", encoding="utf-8")
