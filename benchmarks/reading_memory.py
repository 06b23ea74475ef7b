"""Memory of `rvedit analyze attention` for the cross-attention of a block: linear in S instead of S x N.

    python benchmarks/reading_memory.py --out benchmarks/results/reading_memory.json

The context of a deep block has S visual tokens, K editing tokens and the text tokens, so its matrix P grows
with S². Measured is the peak of `attention_statistics` in addition to queries and keys, at S and at 4 S, each
in a fresh process after a small call that loads the libraries. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from _common import arguments, device_name, in_fresh_process, peak_bytes, print_table, write_json

from rvedit.analysis.reading import attention_statistics

OTHER_TOKENS = 512 + 512


def measure(sequence: int, heads: int, width: int, device: torch.device) -> dict[str, Any]:
    def inputs(positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = ((1, n, heads, width) for n in (positions, positions + OTHER_TOKENS))
        query, key = (torch.randn(shape, device=device) for shape in shapes)
        return query, key

    attention_statistics(*inputs(64), [512, 64, 512])  # loads the libraries
    query, key = inputs(sequence)
    gc.collect()
    before, peak = peak_bytes(lambda: attention_statistics(query, key, [512, sequence, 512]), device)
    matrix = 4 * heads * sequence * key.shape[1]
    return {"sequence": sequence, "extra_gb": (peak - before) / 1e9, "matrix_gb": matrix / 1e9}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sequence", type=int, default=18_480, help="4 S")
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--width", type=int, default=128, help="head dimension")
    args = parser.parse_args()
    sizes = (args.sequence // 4, args.sequence)
    rows = [in_fresh_process(measure, n, args.heads, args.width, args.device) for n in sizes]
    print(f"{device_name(args.device)}: {args.heads} heads of {args.width}")
    print_table(
        ("S", "extra GB", "P in fp32, GB"),
        [(str(row["sequence"]), f"{row['extra_gb']:.3f}", f"{row['matrix_gb']:.1f}") for row in rows],
    )
    write_json(args, {"rows": rows})


if __name__ == "__main__":
    main()
