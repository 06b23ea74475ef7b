"""The judge's wall time on as many items as the paper's benchmark has, against the server's latency.

    python benchmarks/judge_throughput.py --out benchmarks/results/judge_throughput.json

249 items of five and five frames, asked by the command itself of a stand-in server on this machine that
takes 200 ms a reply, with 16 requests in flight; then the same command again, which should send nothing.
Start-up is measured apart: the same command on a single item, less the one reply that it waits for. It holds
connecting, and the request for one token that finds out whether the model takes pictures. Each is the best of
three runs in folders of their own.
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
    """Clips that differ, their edits, and the list."""
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
    """Seconds of the command."""
    command = [sys.executable, "-m", "rvedit_cli", "judge", "edits", "--bench", "bench.csv", "--out", out]
    command += ["--base-url", url, "--concurrency", str(CONCURRENCY), *options]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "NO_COLOR": "1"})
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, write."""
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
    print(f"{device_name(args.device)}: {args.count} items, {LATENCY} s a reply, {flight}")
    share = (first - start_up) / bound
    rows = [
        ("start-up", f"{start_up:.2f}", ""),
        ("first run", f"{first:.2f}", f"{share:.2f} of what the latency takes, {bound:.2f} s"),
        ("second run", f"{second:.2f}", f"{sent} requests sent"),
    ]
    print_table(("", "seconds", ""), rows)
    values = {"start_up": start_up, "first": first, "second": second, "bound": bound, "sent_again": sent}
    write_json(args, {**values, "ratio": share, "items": args.count})


if __name__ == "__main__":
    main()
