"""Memory of Eq. 5 at full size: streamed (limit: 0.5 GB), and with the whole S x S matrix.

    python benchmarks/alignment_memory.py

Measured is the peak of the loss and its backward pass in addition to the two traces: the returned gradient,
copies of the traces, chunks of similarities and the libraries' workspace. Each variant runs in a fresh
process after a small call that loads the libraries. On the CPU the process's high-water mark is used, on CUDA
the allocator's peak. Both variants get the same traces, so their losses and gradients must agree. Traces are
in bf16, as with autocast, and in fp32. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.nn.functional as F
from _common import arguments, device_name, in_fresh_process, peak_bytes, print_table, write_json
from torch import Tensor

from rvedit.losses.alignment import alignment_loss

BAR_GB = 0.5
GRADIENT_ROWS = 64  # compared between the variants
TEMPERATURE = 0.07


def materialized_loss(trace: Tensor, reference: Tensor) -> Tensor:
    """Return Eq. 5 by autograd over the whole matrix of similarities."""
    rows, columns = (F.normalize(x.float(), dim=-1)[0] for x in (trace, reference))
    logits = rows @ columns.T / TEMPERATURE
    diagonal = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal))


def random_traces(
    sequence: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return two similar traces, of which the first requires a gradient."""
    torch.manual_seed(0)
    reference = torch.randn(1, sequence, width, device=device, dtype=dtype)
    trace = torch.randn(1, sequence, width, device=device, dtype=dtype).mul_(4).add_(reference)
    return trace.requires_grad_(), reference


def measure(kind: str, sequence: int, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the additional bytes at the peak, the loss and rows of its gradient."""
    loss_of = materialized_loss if kind == "materialised" else alignment_loss
    result: dict[str, Any] = {}

    def run(trace: Tensor, reference: Tensor) -> None:
        loss = loss_of(trace, reference)
        loss.backward()
        result.update(loss=loss.item(), gradient=trace.grad[0, :GRADIENT_ROWS].float().cpu())

    run(*random_traces(64, width, dtype, device))  # loads the libraries
    traces = random_traces(sequence, width, dtype, device)
    gc.collect()
    before, peak = peak_bytes(lambda: run(*traces), device)
    return {**result, "extra_bytes": peak - before}


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--sequence", type=int, default=18_480, help="S")
    parser.add_argument("--width", type=int, default=3072, help="d")
    parser.add_argument("--materialised-sequence", type=int, help="S of the whole matrix; default: S")
    args = parser.parse_args()
    at_most = args.materialised_sequence or args.sequence

    print(f"{device_name(args.device)}: d {args.width}")
    rows, table = [], []
    for dtype in (torch.bfloat16, torch.float32):
        results = {}
        for kind, sequence in {("streamed", args.sequence), ("streamed", at_most), ("materialised", at_most)}:
            results[kind, sequence] = in_fresh_process(
                measure, kind, sequence, args.width, dtype, args.device
            )
        one, other = (results[kind, at_most] for kind in ("streamed", "materialised"))
        error = (one["gradient"] - other["gradient"]).norm() / other["gradient"].norm()
        apart = {
            "loss_difference": abs(one["loss"] - other["loss"]) / other["loss"],
            "gradient_difference": float(error),
        }
        for (kind, sequence), result in sorted(results.items(), reverse=True):
            gigabytes = result["extra_bytes"] / 1e9
            about = {"kind": kind, "traces": str(dtype).removeprefix("torch."), "sequence": sequence}
            shares = {"extra_gb": gigabytes, "of_one_matrix": gigabytes * 1e9 / (4 * sequence**2)}
            rows.append({**about, **shares, "loss": result["loss"], **apart})
            table.append([*map(str, about.values()), f"{gigabytes:.2f}", f"{shares['of_one_matrix']:.2f}"])
        print(
            f"{about['traces']} traces at S {at_most}: loss differs by {apart['loss_difference']:.1e}, "
            f"its gradient by {apart['gradient_difference']:.1e} (relative)"
        )
    print_table(("Eq. 5 and its gradient", "traces", "S", "extra GB", "in S x S fp32"), table)
    worst = max(r["extra_gb"] for r in rows if r["kind"] == "streamed" and r["sequence"] == args.sequence)
    print(f"{'within' if worst <= BAR_GB else 'ABOVE'} the limit of {BAR_GB} GB: {worst:.2f} GB")
    write_json(args, {"bar_gb": BAR_GB, "streamed_extra_gb": worst, "rows": rows})


if __name__ == "__main__":
    main()
