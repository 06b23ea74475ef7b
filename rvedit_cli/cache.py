"""`rvedit prepare cache`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.io.records import ClipShape

_files = partial(console.option, "Output")
_clips = partial(console.option, "Clips")
_run = partial(console.option, "Run")
_BUCKET_HELP = "Use this shape of data.buckets instead of --num-frames, --height and --width. Repeatable."
_RAY_HELP = "Encode on a Ray cluster: its address, auto, or local to start one."


def cache(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Such as mix/manifest.parquet.")],
    out: Annotated[Path, _files("Folder for the shards; set data.cache to it in the training recipe.")],
    num_frames: Annotated[int, _clips("Frames of each clip, 4k+1.")] = 81,
    height: Annotated[int, _clips("Height in pixels; clips are resized and cropped to it.")] = 704,
    width: Annotated[int, _clips("Width in pixels; clips are resized and cropped to it.")] = 1280,
    bucket: Annotated[list[str] | None, _clips(_BUCKET_HELP, metavar="FRAMESxHEIGHTxWIDTH")] = None,
    texts: Annotated[bool, _clips("Also encode instructions and captions.")] = True,
    model: Annotated[
        str, _run("Model whose VAE and text encoder are used.", metavar="nano|DIR|HUB_ID")
    ] = "nano",
    device: Annotated[str | None, _run(console.DEVICE_HELP)] = None,
    workers: Annotated[int, _run("Processes that decode clips ahead, for each device.", min=0)] = 2,
    shard: Annotated[
        str, _run("Encode part I of N, such as 1/4; torchrun divides it further.", metavar="I/N")
    ] = "1/1",
    ray: Annotated[str | None, _run(_RAY_HELP, metavar="ADDRESS")] = None,
    as_json: Annotated[bool, _run(console.JSON_HELP, "--json")] = False,
) -> None:
    """Encode clips, instructions and captions ahead of training."""
    from rvedit.datasets.cache_job import CacheConfig, cache_manifest, report_cache
    from rvedit.io.shards import add_torchrun, read_shard

    part = add_torchrun(read_shard(shard))
    if ray and part != (0, 1):
        raise UserError("--ray: the cluster divides the work: leave out --shard and torchrun")
    console.quiet_libraries()
    shapes = [_parse_shape(text) for text in bucket or [f"{num_frames}x{height}x{width}"]]
    config = CacheConfig(manifest, out, model, tuple(shapes), texts, workers, part)
    with console.progress_bar("encoding") as show:
        for progress in cache_manifest(config, device, ray):
            note = f"{progress.kind}, {progress.failed} failed" if progress.failed else progress.kind
            show(progress.done, progress.total, note, visible=part[0] == 0)
    report = report_cache(config)
    result: dict[str, Any] = {
        "cache": out,
        "cached": report.cached,
        "failed": report.failed,
        "count": report.count,
    }
    line = f"{out}: {report.cached} of {report.count} triplets"
    if report.texts is not None:
        result["texts"] = report.texts
        line += f", {report.texts} texts"
    if report.failed:
        line += f", {report.failed} failed: see {out / 'shard-*.failures.jsonl'}"
    if part[1] > 1:
        line += f" (part {part[0] + 1} of {part[1]} is done)"
    console.print_result(as_json, result, line)


def _parse_shape(text: str) -> ClipShape:
    from rvedit.io.records import ClipShape

    try:
        return ClipShape(*(int(number) for number in text.split("x")))
    except (TypeError, ValueError):
        raise UserError(f"--bucket {text}: give FRAMESxHEIGHTxWIDTH, such as 81x704x1280") from None
