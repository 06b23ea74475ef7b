"""`rvedit prepare`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit_cli import console
from rvedit_cli.cache import cache

if TYPE_CHECKING:
    from rvedit.datasets.survey import Survey

prepare = typer.Typer(no_args_is_help=True, help="Prepare triplets for training and evaluation.")

_files = partial(console.option, "Output")
_clips = partial(console.option, "Clips")
_run = partial(console.option, "Run")

_DryRun = Annotated[bool, _run("Print counts and the disk space needed without writing.", "--dry-run")]
_Json = Annotated[bool, _run(console.JSON_HELP, "--json")]
_Workers = Annotated[int | None, _run("Number of processes. Default: one per CPU core.")]
_LISTED = 10
"""Pairs left out that are listed on the terminal."""
_SPLIT_HELP = "test_phrasing: unseen phrasings; test_pair: unseen pairs of noun and color."
_PROBE_HELP = (
    "How much of each clip to decode: its first frame (header), also the last one (decode), or all (full)."
)


@prepare.command(cls=console.PanelCommand)
def playground(
    out: Annotated[Path, _files("Folder for the clips and the manifest.")],
    count: Annotated[int, _clips("Number of triplets.")] = 100,
    seed: Annotated[int, _clips("Seed of the triplets.")] = 0,
    split: Annotated[str, _clips(_SPLIT_HELP, metavar="train|test|test_phrasing|test_pair")] = "train",
    num_frames: Annotated[int, _clips("Frames of each clip.")] = 33,
    height: Annotated[int, _clips("Height of the clips in pixels.")] = 128,
    width: Annotated[int, _clips("Width of the clips in pixels.")] = 128,
    realism: Annotated[float, _clips("0: flat drawings. 1: textures, light and camera as in footage.")] = 0.0,
    workers: _Workers = None,
    as_json: _Json = False,
) -> None:
    """Render playground triplets. The playground is a procedural world with exact edits."""
    from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

    config = PlaygroundConfig(count, seed, split, num_frames, height, width, realism)  # type: ignore[arg-type]
    with console.progress_bar("rendering", total=count) as show:
        for done in prepare_playground(config, out, workers):
            show(done)
    manifest = out / "manifest.parquet"
    result = {"manifest": manifest, "count": count}
    console.print_result(as_json, result, f"{manifest}: {count} triplets")


def _add_dataset(name: str, title: str) -> None:
    """Add the command for one training set; all of these have the same options."""

    @prepare.command(
        name,
        cls=console.PanelCommand,
        help=f"Write a manifest of {title}. Reads its published form and probes its clips.",
    )
    def dataset(
        folders: Annotated[
            list[Path],
            typer.Argument(metavar="SOURCE_DIR", help="Folders with the metadata, the clips, or both."),
        ],
        out: Annotated[
            Path, _files("Folder for manifest.parquet, manifest.jsonl and manifest.failures.jsonl.")
        ],
        category: Annotated[
            list[str] | None,
            _clips("Only this category: change, remove, add, style, or one of the data set's. Repeatable."),
        ] = None,
        min_frames: Annotated[int, _clips("Minimum number of frames of both clips.")] = 81,
        probe: Annotated[str, _clips(_PROBE_HELP, metavar="header|decode|full")] = "decode",
        limit: Annotated[
            int | None, _clips("Probe this many pairs per category, in the order of a mix with --seed.")
        ] = None,
        seed: Annotated[int, _clips("With --limit: seed of the mix.")] = 0,
        workers: _Workers = None,
        ray: Annotated[
            str | None,
            _run("Probe on a Ray cluster: its address, auto, or local to start one.", metavar="ADDRESS"),
        ] = None,
        dry_run: _DryRun = False,
        as_json: _Json = False,
    ) -> None:
        from rvedit.datasets.prepare import measure_clips, write_dataset
        from rvedit.datasets.survey import DatasetConfig, survey_dataset
        from rvedit.io.manifest import failures_path

        level: Any = probe
        categories = tuple(category or ())
        config = DatasetConfig(
            name, tuple(folders), out, categories, min_frames, level, limit, seed, workers, ray
        )
        survey = survey_dataset(config)
        for archive in survey.archives:
            console.say(f"note: archive is not extracted: {archive}")
        if dry_run:
            _print_survey(survey, as_json)
            return
        with console.progress_bar("probing clips", total=len(survey.clips)) as show:
            for done in measure_clips(survey):
                show(done)
        report = write_dataset(survey)
        failures = failures_path(report.manifest)
        failed = sum(report.reasons.values())
        line = f"{report.manifest}: {report.count} triplets; {failed} rows failed, see {failures}"
        result = {**asdict(report), "failures": failures}
        _print_result(as_json, result, "pairs", report.categories, line)


for _name, _title in (
    ("openve", "OpenVE-3M"),
    ("reco", "ReCo-Data"),
    ("ditto", "Ditto-1M"),
    ("kiwi", "Kiwi-Edit's training metadata"),
):
    _add_dataset(_name, _title)


@prepare.command(cls=console.PanelCommand)
def pairs(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Has source/NAME.*, target/NAME.* and NAME.txt with the instruction; or a CSV file.",
        ),
    ],
    out: Annotated[Path, _files("Folder for manifest.parquet, manifest.failures.jsonl and pairs.png.")],
    min_frames: Annotated[int, _clips("Minimum number of frames of both clips; 1: also images.")] = 1,
    workers: _Workers = None,
    as_json: _Json = False,
) -> None:
    """Check your own pairs of clips or images, and show what a model will learn from them."""
    from rvedit.datasets.pairs import shape_counts, write_pairs_sheet
    from rvedit.datasets.prepare import measure_clips, write_dataset
    from rvedit.datasets.survey import DatasetConfig, survey_dataset
    from rvedit.io.manifest import failures_path, read_manifest, read_rows

    config = DatasetConfig("pairs", (folder,), out, min_frames=min_frames, level="full", workers=workers)
    survey = survey_dataset(config)
    with console.progress_bar("reading clips", total=len(survey.clips)) as show:
        for done in measure_clips(survey):
            show(done)
    report = write_dataset(survey)
    triplets = read_manifest(report.manifest)
    sheet = out / "pairs.png"
    write_pairs_sheet(report.manifest, triplets, sheet)
    shapes, failures = shape_counts(triplets), failures_path(report.manifest)
    result = {
        "manifest": report.manifest,
        "count": report.count,
        "shapes": shapes,
        "masks": sum(triplet.mask is not None for triplet in triplets),
        "reasons": report.reasons,
        "failures": failures,
        "sheet": sheet,
    }
    lines = [f"{count} x {shape}" for shape, count in shapes.items()]
    left_out = read_rows(failures)
    lines += [
        f"left out: {row['source'] or 'a pair'} ({row['reason']}): {row['detail']}"
        for row in left_out[:_LISTED]
    ]
    lines += [f"and {len(left_out) - _LISTED} more: see {failures}"] * (len(left_out) > _LISTED)
    lines += [f"{sheet}: look at what will be learned"]
    lines += [f"next: rvedit train recipes/pairs_lora.yaml --set data.manifest={report.manifest}"]
    console.print_result(as_json, result, "\n".join(lines))


@prepare.command()
def mix(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, such as recipes/data.yaml.")],
    out: Annotated[Path, _files("Folder for the manifest and mix.json.")],
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Sample triplets from manifests, by category and data set."""
    from rich.filesize import decimal

    from rvedit.datasets.mix import draw_mix, load_mix, write_mix

    drawn = draw_mix(load_mix(recipe), out)
    if not dry_run:
        write_mix(drawn)
    summary = {**drawn.summary(), "dry_run": dry_run}
    end = f"would need about {decimal(drawn.output_bytes)}; nothing was written" if dry_run else "written"
    line = f"{summary['manifest']}: {summary['count']} triplets, {end}"
    _print_result(as_json, summary, "drawn", summary["strata"], line)


@prepare.command("probe")
def probe_clips(
    clips: Annotated[
        list[Path], typer.Argument(metavar="CLIP", help="Videos, images, or folders of images.")
    ],
    suffix: Annotated[
        str | None,
        _files(
            "Format of an edit, such as .mkv. Default: that of rvedit edit.", "--format", metavar="SUFFIX"
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show what is read from clips, and what an edit of them will not hold. Writes nothing."""
    from rvedit.io.video import OUTPUT_SUFFIXES, clip_report, default_suffix, probe, report_lines

    if suffix is not None:
        check_choice("--format", suffix, OUTPUT_SUFFIXES)
    reports, errors = [], []
    for clip in clips:
        try:
            info = probe(clip)
            reports.append(clip_report(info, suffix or default_suffix(info)))
        except UserError as error:
            errors.append({"path": str(clip), "error": str(error)})
    if as_json:
        console.print_json({"clips": reports, "errors": errors})
    for report in () if as_json else reports:
        typer.echo("\n".join(report_lines(report)))
    for failed in errors:
        console.say(f"rvedit: {failed['error']}")
    if errors:
        raise typer.Exit(1)


def _print_survey(survey: Survey, as_json: bool) -> None:
    from collections import Counter

    from rich.filesize import decimal

    from rvedit.datasets.survey import category_counts

    reasons = Counter(failure.reason for failure in survey.failures)
    rows = category_counts(survey, to_probe=survey.candidates)
    result: dict[str, Any] = {
        "dry_run": True,
        "categories": rows,
        "reasons": dict(reasons.most_common()),
        "archives": survey.archives,
        "clips": len(survey.clips),
        "clip_bytes": survey.clip_bytes,
        "output_bytes": survey.output_bytes,
    }
    line = (
        f"{len(survey.clips)} clips of {decimal(survey.clip_bytes)} are read in place; "
        f"{survey.config.out} needs about {decimal(survey.output_bytes)}; nothing was written"
    )
    _print_result(as_json, result, "pairs", rows, line)


def _print_result(as_json: bool, result: dict[str, Any], title: str, rows: list[Any], line: str) -> None:
    """Print a result as JSON, or else a table of `rows`, the reasons of failed rows, and a line."""
    if as_json:
        console.print_json(result)
        return
    _print_table(title, rows, show_sums=True)
    failed = [{"reason": reason, "rows": count} for reason, count in result.get("reasons", {}).items()]
    if failed:
        _print_table("failed", failed)
    typer.echo(line)


def _print_table(title: str, rows: list[dict[str, Any]], show_sums: bool = False) -> None:
    """Print a table with right-aligned numbers, and their sums below."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_footer=show_sums)
    for name, value in rows[0].items():
        if isinstance(value, int):
            table.add_column(name.replace("_", " "), f"{sum(row[name] for row in rows):,}", justify="right")
        else:
            table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell or "-") for cell in row.values()))
    Console().print(table)


prepare.command(cls=console.PanelCommand)(cache)
