"""Wall-clock time of `rvedit judge` on 249 items, the size of the paper's benchmark.

    python benchmarks/judge_throughput.py --out benchmarks/results/judge_throughput.json

The command judges 249 items, with five frames of source and edit, on a local test server that takes 200 ms
per reply, with 16 requests in flight. The same command then runs again, which should send no requests.
Startup is measured separately, as the time on a single item minus its one reply; it includes the connection
and the request for one token that tests whether the model accepts images. All times are the best of three
runs in new folders.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import arguments, device_name, print_table, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LATENCY, CONCURRENCY = 0.2, 16
RUNS = 3


def make_bench(folder: Path, count: int) -> None:
    """Write different clips, edits and the benchmark's CSV."""
    from rvedit.io.video import write_clip

    rows = [("edited_type", "prompt", "original_video")]
    kinds = ("local_change", "local_remove", "local_add", "global_style")
    for number in range(count):
        for name in (f"videos/{number:03d}.mp4", f"edits/{number:03d}_edited.mp4"):
            (folder / name).parent.mkdir(exist_ok=True)
            levels = np.random.default_rng([number, len(name)]).integers(0, 256, (9, 6, 8, 3), np.uint8)
            write_clip(folder / name, levels.repeat(16, 1).repeat(16, 2), 12)
        rows.append((kinds[number % 4], f"edit number {number}", f"videos/{number:03d}.mp4"))
    with (folder / "bench.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def judge(folder: Path, url: str, out: str, *options: str) -> float:
    """Return the seconds that the command takes."""
    command = [sys.executable, "-m", "rvedit_cli", "judge", "edits", "--bench", "bench.csv", "--out", out]
    command += ["--base-url", url, "--concurrency", str(CONCURRENCY), *options]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "NO_COLOR": "1"})
    return time.perf_counter() - started


def main() -> None:
    """Run the benchmark."""
    from chat_server import ChatServer

    from rvedit.evaluation.judges import QWEN
    from rvedit.evaluation.scores import AXIS_LABELS

    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--count", type=int, default=249)
    args = parser.parse_args()
    reply = "\n".join(["Brief reasoning: fine.", *(f"{label}: 70" for label in AXIS_LABELS.values())])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bench(folder, args.count)
        with ChatServer(latency=LATENCY, models=(QWEN,), say=lambda asked: reply) as server:
            one = ("--limit", "1", "--category", "change")
            start_up = min(judge(folder, server.url, f"one{n}", *one) for n in range(RUNS)) - LATENCY
            first = min(judge(folder, server.url, f"out{n}") for n in range(RUNS))
            asked = len(server.headers)
            second = min(judge(folder, server.url, f"out{n}") for n in range(RUNS))
            sent = len(server.headers) - asked
            most = server.most_in_flight
    bound = args.count * LATENCY / CONCURRENCY
    flight = f"{CONCURRENCY} in flight (most seen: {most})"
    print(f"{device_name(args.device)}: {args.count} items, {LATENCY} s per reply, {flight}")
    share = (first - start_up) / bound
    rows = [
        ("start-up", f"{start_up:.2f}", ""),
        ("first run", f"{first:.2f}", f"{share:.2f} x the time of the latency alone, {bound:.2f} s"),
        ("second run", f"{second:.2f}", f"{sent} requests sent"),
    ]
    print_table(("", "seconds", ""), rows)
    values = {"start_up": start_up, "first": first, "second": second, "bound": bound, "sent_again": sent}
    write_json(args, {**values, "ratio": share, "items": args.count})


if __name__ == "__main__":
    main()
