"""Clips per second of a nano run, and the share of time spent waiting for data.

    python benchmarks/training_throughput.py --out benchmarks/results/training_throughput.json

The same steps run with three sources of data: rendered clips, clips decoded from a manifest's files, and
cached latents. The first steps are not counted. Each run is a complete one in its own process, so that
training and the dataloader worker share the cores, as in normal use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _common import arguments, device_name, in_fresh_process, print_table, write_json

SIZE = {"num_frames": 9, "height": 128, "width": 128}
UNCOUNTED = 2


def measure(folder: Path, name: str, steps: int, batch_size: int, settings: list[str]) -> dict[str, float]:
    """Train at nano's size; return the clips per second and the share of time waiting for data."""
    from rvedit.training.recipe import load_recipe
    from rvedit.training.run import train

    path = folder / f"{name}.yaml"
    path.write_text("model: {preset: nano, routing_depth: 4, init_from: nano}\nalignment: {weight: 0.02}\n")
    size = [f"data.{key}={value}" for key, value in SIZE.items()]
    run = [f"steps={steps + UNCOUNTED}", f"batch_size={batch_size}", "checkpoint_every=1000000"]
    recipe = load_recipe(path, assignments=[*size, *run, *settings])
    records = list(train(recipe, folder))[UNCOUNTED:]
    seconds = sum(record["seconds"] for record in records)
    waited = sum(record["waited"] for record in records)
    return {"clips_per_second": batch_size * len(records) / seconds, "waiting_share": waited / seconds}


def main() -> None:
    """Run the benchmark."""
    from rvedit.datasets.cache_job import CacheConfig, cache_manifest
    from rvedit.io.records import ClipShape
    from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=32, help="number of triplets in the manifest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        list(prepare_playground(PlaygroundConfig(args.count, **SIZE), folder / "triplets"))
        manifest = folder / "triplets" / "manifest.parquet"
        list(
            cache_manifest(CacheConfig(manifest, folder / "cache", shapes=(ClipShape(**SIZE),), texts=False))
        )
        files = ["data.source=manifest", f"data.manifest={manifest}"]
        sources = {
            "rendered": [],
            "decoded from files": files,
            "cached latents": [*files, f"data.cache={folder / 'cache'}"],
        }
        results = {
            source: in_fresh_process(
                measure, folder, source.split()[0], args.steps, args.batch_size, settings
            )
            for source, settings in sources.items()
        }
    print(f"{device_name(args.device)}: {args.steps} steps of {args.batch_size} clips, 9 x 128 x 128")
    rows = [
        (source, f"{row['clips_per_second']:.2f}", f"{row['waiting_share']:.1%}")
        for source, row in results.items()
    ]
    print_table(("data", "clips/s", "waiting"), rows)
    write_json(args, results)


if __name__ == "__main__":
    main()
