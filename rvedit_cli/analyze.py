"""`rvedit analyze`: look inside a model (Fig. 4), lay results beside the paper's tables, and show edits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

analyze = typer.Typer(
    no_args_is_help=True, help="Look inside edits, and lay results beside the paper's tables and figures."
)

Model = Annotated[
    str,
    typer.Option(metavar="nano|DIR|HUB_ID", help="Whose insides.", envvar="RVEDIT_MODEL"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default what is there.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; fp32 on a CPU, else bf16.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps; by default the model's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@analyze.command()
def attention(
    clips: Annotated[
        list[Path],
        typer.Argument(
            metavar="CLIPS...", help="Lists as `rvedit edit --batch` takes them, or clips with --instruction."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures and numbers.")],
    model: Model = "nano",
    base: Annotated[
        str | None,
        typer.Option(metavar="DIR|HUB_ID", help="A model to compare with, such as the first stage."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What is asked of CLIPS that are clips.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each list at most.")] = None,
    steps: Steps = None,
    times: Annotated[
        int, typer.Option(min=1, help="Times at which the editing and the reference branch are compared.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Draw figure 4: what each block reads, how sharply, and how near its trace is to the reference branch's.

    Writes attention.png, .svg, .csv and .json. The first window of each clip is edited, with guidance 1; the
    branches are compared where the list has the true edits and their captions. NAME=DIR names a model in
    the figure.
    """
    from rvedit.analysis.attention import AttentionConfig, analyze_attention, read_items
    from rvedit.analysis.naming import split_name

    config = AttentionConfig(tuple(clips), out, instruction, limit, steps, times, seed=seed)
    items = read_items(config)
    _need_matplotlib()
    console.quiet_libraries()
    models: dict[str, Callable[[], RVEDiTPipeline]] = {}
    for option, text in (("--model", model), ("--base", base)):
        if text:
            name, where = split_name(text)
            if (name or where) in models:
                raise UserError(f"--base {text}: is called as --model is: tell them apart by NAME=DIR")
            models[name or where] = _loader(option, where, device, dtype)
    with console.progress_bar() as bar:
        tasks = {name: bar.add_task(name, total=len(items), note="") for name in models}
        report = analyze_attention(
            config,
            items,
            list(models.items()),
            lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps({**report.as_json(), "folder": str(out)}))
        return
    for reading in report.models:
        compared = f", {len(reading.compared)} with their true edit" if reading.compared else ""
        typer.echo(
            f"{reading.name}: {reading.num_layers} blocks, L_s = {reading.routing_depth}, "
            f"{len(reading.clips)} clips{compared}"
        )
        columns = {name: reading.estimates(name) for name in reading.values}
        typer.echo("  block" + "".join(f"{name:>13}" for name in columns))
        for block in range(reading.num_layers):
            typer.echo(f"  {block + 1:>5}" + "".join(f"{e[block].value:>13.3f}" for e in columns.values()))
    typer.echo(f"{out / 'attention.png'}: {report.seconds:.1f} s")


@analyze.command()
def trace(
    clip: Annotated[Path, typer.Argument(metavar="CLIP")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION")],
    model: Model = "nano",
    out: Annotated[Path | None, typer.Option(help="Folder; by default CLIP_trace here.")] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="1,4,5", help="Blocks to show; by default ten, evenly spread.")
    ] = None,
    at_steps: Annotated[
        str | None, typer.Option(metavar="1,6,12", help="Steps to show; by default four, evenly spread.")
    ] = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Look inside one edit: where in the frames each word and the editing tokens are read.

    Writes trace.html, a page with sliders over blocks, steps and frames, and trace.mp4. The first window is
    edited, with guidance 1.
    """
    from rvedit.analysis.trace import TraceConfig, analyze_trace, check_trace
    from rvedit.editing.config import EditConfig

    config = TraceConfig(
        clip,
        instruction,
        out or Path(f"{clip.stem}_trace"),
        _numbers("--blocks", blocks),
        _numbers("--at-steps", at_steps),
        EditConfig(num_inference_steps=steps, seed=seed),
        overwrite,
    )
    check_trace(config)
    console.quiet_libraries()
    pipeline = _loader("--model", model, device, dtype)()
    with console.progress_bar() as bar:
        task = bar.add_task("editing", total=1, note="")
        report = analyze_trace(
            config, pipeline, model, lambda step, total: bar.update(task, completed=step, total=total)
        )
    if as_json:
        typer.echo(json.dumps(_plain(report)))
        return
    typer.echo(
        f"{report.page}, {report.video}: {report.frames} frames, blocks {_listed(report.blocks)}, "
        f"steps {_listed(report.steps)}, {report.seconds:.1f} s"
    )


@analyze.command()
def tables(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS...", help="Judged folders of edits, or LABEL=FOLDER; seeds share a label."
        ),
    ],
    table: Annotated[str, typer.Option(help="1, 2 or 3.")],
    judge: Annotated[
        str | None,
        typer.Option(help="Whose scores, or `mean` of several; by default the one who judged all."),
    ] = None,
    recipes: Annotated[Path, typer.Option(help="The folder of recipes with the paper's figures.")] = Path(
        "recipes"
    ),
    full: Annotated[str, typer.Option(help="The row that others are compared with.")] = "RVEDiT",
    out: Annotated[Path | None, typer.Option(help="Folder for tableN.md, .tex, .csv and .json.")] = None,
    as_json: Json = False,
) -> None:
    """Lay judged runs beside a table of the paper: differences, intervals, paired tests."""
    from rvedit.analysis.paper import TABLES
    from rvedit.analysis.sheets import to_markdown
    from rvedit.analysis.tables import TablesConfig, analyze_tables

    if table not in TABLES:
        raise UserError(f"--table {table}: choose one of {', '.join(TABLES)}")
    report = analyze_tables(TablesConfig(tuple(runs), table, recipes, judge, full, out))
    typer.echo(json.dumps(report.as_json()) if as_json else to_markdown(report.sheet), nl=as_json)
    if report.written and not as_json:
        console.say(f"written: {_listed(report.written)}")


@analyze.command()
def gallery(
    results: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS...", help="Folders of edits, one a method, or NAME=FOLDER."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures and clips.")],
    bench: Annotated[
        Path | None,
        typer.Option(metavar="CSV|MANIFEST", help="The items; by default what `rvedit edit --batch` left."),
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="Only these ids; repeatable.")] = None,
    per_category: Annotated[int, typer.Option(min=1, help="Items of each category.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 5,
    no_video: Annotated[bool, typer.Option("--no-video", help="Figures alone.")] = False,
    as_json: Json = False,
) -> None:
    """Show methods beside each other, by category: PNG and PDF of frames, and a clip of each item."""
    _need_matplotlib()
    from rvedit.analysis.gallery import GalleryConfig, analyze_gallery

    config = GalleryConfig(tuple(results), out, bench, tuple(item or ()), per_category, frames, not no_video)
    with console.progress_bar() as bar:
        task = bar.add_task("drawing", total=1, note="")
        report = analyze_gallery(config, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps(_plain(report)))
        return
    typer.echo(f"{out}: {len(report.figures)} figures and {len(report.clips)} clips of {report.items} items")


def _loader(option: str, model: str, device: str | None, dtype: str | None) -> Callable[[], RVEDiTPipeline]:
    """Finds a model of ours now, and loads it when it is called; other editors' insides are not known."""
    from rvedit.pipelines.baselines import BASELINES
    from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
    from rvedit.pipelines.loading import pick_device, pick_dtype

    if model in BASELINES:
        raise UserError(f"{option} {model}: is not of rvedit's own kind: its attention is not known here")
    path, place = find_checkpoint(model, option), pick_device(device)
    kind = pick_dtype(dtype, place)
    return lambda: load_checkpoint(path, kind).to(place)


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UserError("the figures need matplotlib: pip install 'rvedit[analyze]'")


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas, such as 1,4,8") from None


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


def _plain(report: Any) -> dict[str, Any]:
    """A report's fields, with paths as text."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(report), default=str))
    return fields
