"""The time of AdamW's step on sharded tensors: fused on local shards, against the loop and fused on DTensors.

    python benchmarks/sharded_optimizer.py --out benchmarks/results/sharded_optimizer.json

The 5B has 1,338 trained tensors. Here 400 small ones are sharded over one process, so that the time is that
of the calls and not that of the arithmetic.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from _common import arguments, interleaved_medians, print_table, write_json
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import OptimizerRecipe


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--tensors", type=int, default=400)
    parser.add_argument("--size", type=int, default=32, help="rows and columns of a tensor")
    args = parser.parse_args()
    backend = "nccl" if args.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(args.device.type, (1,))

    def model() -> nn.ParameterList:
        torch.manual_seed(0)
        whole = (torch.randn(args.size, args.size, device=args.device) for _ in range(args.tensors))
        parameters = nn.ParameterList(nn.Parameter(distribute_tensor(x, mesh, [Shard(0)])) for x in whole)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return parameters

    recipe = OptimizerRecipe()
    ours = model()
    optimizer = NamedOptimizer(ours, recipe)
    gradients = {name: p.grad for name, p in ours.named_parameters()}

    def step_on_shards() -> None:
        for name, parameter in ours.named_parameters():  # a step clears them
            parameter.grad = gradients[name]
        optimizer.step(1.0)

    variants = {"fused, local shards": step_on_shards}
    for name, fused in (("loop, DTensors", False), ("fused, DTensors", True)):
        variants[name] = torch.optim.AdamW(model(), lr=recipe.learning_rate, fused=fused).step
    seconds = interleaved_medians(variants, args.device, args.repeats)
    fastest = seconds["fused, local shards"]
    ratios = {name: value / fastest for name, value in seconds.items()}
    print_table(("step", "time / fused on local shards"), [(n, f"{r:.1f}") for n, r in ratios.items()])
    write_json(args, {"time_ratio": ratios})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
