"""`rvedit prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.datasets.mix import Mix
    from rvedit.datasets.prepare import Report, Survey
    from rvedit.io.records import ClipShape

prepare = typer.Typer(
    no_args_is_help=True, help="Prepare triplets for training and evaluation.", rich_markup_mode=None
)

_AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print counts and the disk needed; write nothing.")]
_Workers = Annotated[int | None, typer.Option(help="Processes; by default one per core.")]


@prepare.callback()
def _group() -> None:
    """Prepare triplets for training and evaluation."""


@prepare.command()
def playground(
    out: Annotated[Path, typer.Option(help="Folder for the clips and the manifest.")],
    count: Annotated[int, typer.Option(help="Number of triplets.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the world; equal seeds give equal triplets.")] = 0,
    split: Annotated[
        str,
        typer.Option(
            help="train, test, test_phrasing (unseen wordings) or test_pair (unseen noun and colour)."
        ),
    ] = "train",
    num_frames: Annotated[int, typer.Option(help="Frames of each clip.")] = 33,
    height: Annotated[int, typer.Option(help="Pixels.")] = 128,
    width: Annotated[int, typer.Option(help="Pixels.")] = 128,
    workers: _Workers = None,
    as_json: _AsJson = False,
) -> None:
    """Render triplets of the procedural world."""
    from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

    config = PlaygroundConfig(count, seed, split, num_frames, height, width)  # type: ignore[arg-type]
    with console.progress_bar() as bar:
        task = bar.add_task("rendering", total=count, note="")
        for done in prepare_playground(config, out, workers):
            bar.update(task, completed=done)
    manifest = out / "manifest.parquet"
    typer.echo(
        json.dumps({"manifest": str(manifest), "count": count})
        if as_json
        else f"{manifest}: {count} triplets"
    )


def _add_dataset(name: str, title: str) -> None:
    """A command for one training set; all take the same options."""

    @prepare.command(name, help=f"Read {title} as its authors publish it, probe its clips, write a manifest.")
    def dataset(
        folders: Annotated[
            list[Path],
            typer.Argument(metavar="SOURCE_DIR...", help="Folders with its metadata, its clips, or both."),
        ],
        out: Annotated[Path, typer.Option(help="Folder for manifest.parquet, .jsonl and .failures.jsonl.")],
        category: Annotated[
            list[str] | None,
            typer.Option(help="Only these: change, remove, add, style, or the set's own words; repeatable."),
        ] = None,
        min_frames: Annotated[int, typer.Option(help="Frames that both clips must have.")] = 81,
        probe: Annotated[
            str,
            typer.Option(
                help="header (every packet, first frame), decode (and the last frame) or full (every frame)."
            ),
        ] = "decode",
        limit: Annotated[
            int | None,
            typer.Option(help="Pairs to probe per category: those that a mix with this --seed draws first."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Of the mix that --limit looks ahead to.")] = 0,
        workers: _Workers = None,
        ray: Annotated[
            str | None,
            typer.Option(metavar="ADDRESS", help="Probe on a Ray cluster; auto, or local to start one."),
        ] = None,
        dry_run: _DryRun = False,
        as_json: _AsJson = False,
    ) -> None:
        from rvedit.datasets.prepare import DatasetConfig, measure_clips, survey_dataset, write_dataset

        config = DatasetConfig(
            name,
            tuple(folders),
            out,
            tuple(category or ()),
            min_frames,
            probe,  # type: ignore[arg-type]
            limit,
            seed,
            workers,
            ray,
        )
        survey = survey_dataset(config)
        for archive in survey.archives:
            console.say(f"note: not extracted: {archive}")
        if dry_run:
            _print_survey(survey, as_json)
            return
        with console.progress_bar() as bar:
            task = bar.add_task("probing clips", total=len(survey.clips), note="")
            for done in measure_clips(survey):
                bar.update(task, completed=done)
        _print_report(write_dataset(survey), as_json)


for _name, _title in (
    ("openve", "OpenVE-3M"),
    ("reco", "ReCo-Data"),
    ("ditto", "Ditto-1M"),
    ("kiwi", "Kiwi-Edit's training metadata"),
):
    _add_dataset(_name, _title)


@prepare.command()
def mix(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/data.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the manifest and mix.json.")],
    dry_run: _DryRun = False,
    as_json: _AsJson = False,
) -> None:
    """Draw a stratified sample from manifests: so many triplets per category and data set."""
    from rvedit.datasets.mix import draw_mix, write_mix
    from rvedit.datasets.stratify import load_mix

    drawn = draw_mix(load_mix(recipe), out)
    if not dry_run:
        write_mix(drawn)
    _print_mix(drawn, dry_run, as_json)


def _shape(text: str) -> ClipShape:
    """A shape as users write it."""
    from rvedit.io.records import ClipShape

    try:
        return ClipShape(*(int(number) for number in text.split("x")))
    except (TypeError, ValueError):
        raise UserError(f"{text}: not FRAMESxHEIGHTxWIDTH, such as 81x704x1280") from None


def _print_survey(survey: Survey, as_json: bool) -> None:
    from collections import Counter

    reasons = Counter(failure.reason for failure in survey.failures)
    there = Counter(
        (row.dataset_category, row.category.value if row.category else "") for row in survey.candidates
    )
    rows = [
        {"word": word, "category": ours or None, "read": read, "to_probe": there[word, ours]}
        for (word, ours), read in sorted(survey.read.items())
    ]
    result: dict[str, Any] = {
        "dry_run": True,
        "categories": rows,
        "reasons": dict(reasons.most_common()),
        "archives": survey.archives,
        "clips": len(survey.clips),
        "clip_bytes": survey.clip_bytes,
        "output_bytes": survey.output_bytes,
    }
    if as_json:
        typer.echo(json.dumps(result))
        return
    _table("pairs", rows, ("read", "to_probe"))
    _reasons(result["reasons"])
    typer.echo(
        f"{len(survey.clips)} clips of {_size(survey.clip_bytes)} stay where they are; "
        f"{survey.config.out} needs about {_size(survey.output_bytes)}; nothing was written"
    )


def _print_report(report: Report, as_json: bool) -> None:
    from dataclasses import asdict

    from rvedit.io.manifest import failures_path

    failures = failures_path(report.manifest)
    if as_json:
        paths = {"manifest": str(report.manifest), "failures": str(failures)}
        typer.echo(json.dumps({**asdict(report), **paths}))
        return
    _table("pairs", report.categories, ("read", "probed", "usable"))
    _reasons(report.reasons)
    failed = sum(report.reasons.values())
    typer.echo(f"{report.manifest}: {report.count} triplets; {failed} rows failed, see {failures}")


def _print_mix(drawn: Mix, dry_run: bool, as_json: bool) -> None:
    summary = {**drawn.summary(), "dry_run": dry_run}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    _table("drawn", summary["strata"], totals=("available", "duplicates", "taken", "wanted", "short"))
    size = _size(drawn.output_bytes)
    end = f"would need about {size}; nothing was written" if dry_run else "written"
    typer.echo(f"{summary['manifest']}: {summary['count']} triplets, {end}")


def _reasons(reasons: dict[str, int]) -> None:
    if reasons:
        _table("failed", [{"reason": reason, "rows": count} for reason, count in reasons.items()])


def _table(title: str, rows: list[dict[str, Any]], totals: tuple[str, ...] = ()) -> None:
    """A table on stdout, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_footer=bool(totals))
    for name in rows[0]:
        is_number = isinstance(rows[0][name], int)
        footer = f"{sum(row[name] for row in rows):,}" if name in totals else ""
        table.add_column(name.replace("_", " "), footer, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell or "-") for cell in row.values()))
    Console().print(table)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@prepare.command()
def cache(
    manifest: Annotated[Path, typer.Argument(help="A manifest, such as mix/manifest.parquet.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; give it to training as data.cache.")],
    model: Annotated[str, typer.Option(metavar="nano|DIR|HUB_ID", help="Whose VAE encodes.")] = "nano",
    num_frames: Annotated[int, typer.Option(help="Frames of each clip, 4k+1.")] = 81,
    height: Annotated[int, typer.Option(help="Pixels; clips are scaled to cover them and cropped.")] = 704,
    width: Annotated[int, typer.Option(help="Pixels.")] = 1280,
    bucket: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAMESxHEIGHTxWIDTH", help="A shape of data.buckets, instead; repeatable."),
    ] = None,
    texts: Annotated[bool, typer.Option(help="Encode instructions and captions, too.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default what is there.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Encode the clips' latents and the texts once, so that training need not do it in every epoch."""
    from rvedit.datasets.cache_job import CacheConfig, cache_manifest

    console.quiet_libraries()
    shapes = [_shape(text) for text in bucket or [f"{num_frames}x{height}x{width}"]]
    config = CacheConfig(manifest, out, model, tuple(shapes), texts)
    last = {}
    with console.progress_bar() as bar:
        task = bar.add_task("encoding", total=None, note="")
        for progress in cache_manifest(config, device):
            last[progress.what] = progress
            note = f"{progress.what}, {progress.failed} failed" if progress.failed else progress.what
            bar.update(task, completed=progress.done, total=progress.total, note=note)
    clips = last["triplets"]
    report = {"cache": str(out), "cached": clips.done, "failed": clips.failed, "count": clips.total}
    line = f"{out}: {clips.done} of {clips.total} triplets"
    if "texts" in last:
        report["texts"] = last["texts"].done
        line += f", {last['texts'].done} texts"
    if clips.failed:
        line += f", {clips.failed} failed: see {out / 'cache.failures.jsonl'}"
    typer.echo(json.dumps(report) if as_json else line)
