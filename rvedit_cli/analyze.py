"""`rvedit analyze`: attention (Fig. 4), comparisons with the paper's tables, and galleries of edits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

analyze = typer.Typer(
    no_args_is_help=True, help="Visualize attention, and compare results with the paper's tables and figures."
)

_files = partial(console.option, console.FILES)
_sampling = partial(console.option, console.SAMPLING)
_Model = Annotated[str, _files("Model to analyze.", metavar="nano|DIR|HUB_ID", envvar="RVEDIT_MODEL")]


@analyze.command(cls=console.PanelCommand)
def attention(
    clips: Annotated[
        list[Path],
        typer.Argument(
            metavar="CLIPS", help="Benchmarks or manifests, as for `rvedit edit --batch`; or clips."
        ),
    ],
    out: Annotated[Path, _files("Folder for the figure and its data.")],
    instruction: Annotated[str | None, _files("Instruction for CLIPS that are clips.")] = None,
    limit: Annotated[int | None, _files("Maximum number of items of each list.", min=1)] = None,
    model: _Model = "nano",
    base: Annotated[
        str | None, _files("Model to compare with, such as the first stage.", metavar="DIR|HUB_ID")
    ] = None,
    as_json: console.Json = False,
    steps: console.Steps = None,
    times: Annotated[
        int, _sampling("Number of timesteps at which editing and reference branch are compared.", min=1)
    ] = 4,
    seed: console.Seed = 0,
    device: console.Device = None,
    dtype: console.Dtype = None,
) -> None:
    """Draw Figure 4: attention per block, and similarity of the editing and the reference branch.

    Writes attention.png, .svg, .csv and .json. Edits the first window of each clip, with guidance 1. The
    branches are compared on items with a target clip and its caption. NAME=DIR sets a model's name in the
    figure.
    """
    from rvedit.analysis.attention import AttentionConfig, analyze_attention, read_items
    from rvedit.analysis.naming import split_name

    config = AttentionConfig(tuple(clips), out, instruction, limit, steps, times, seed=seed)
    items = read_items(config)
    _require_matplotlib()
    console.quiet_libraries()
    models: dict[str, Callable[[], RVEDiTPipeline]] = {}
    for option, text in (("--model", model), ("--base", base)):
        if text:
            name, path = split_name(text)
            if (name or path) in models:
                raise UserError(f"--base {text}: has the same name as --model: name them with NAME=DIR")
            models[name or path] = _loader(option, path, device, dtype)
    with console.progress_bar(*models, total=len(items)) as show:

        def on_progress(name: str, done: int, total: int) -> None:
            show(done, total, name=name)

        report = analyze_attention(config, items, list(models.items()), on_progress)
    if as_json:
        console.print_json({**report.as_json(), "folder": out})
        return
    for result in report.models:
        compared = f", {len(result.compared)} with target clips" if result.compared else ""
        typer.echo(
            f"{result.name}: {result.num_layers} blocks, L_s = {result.routing_depth}, "
            f"{len(result.clips)} clips{compared}"
        )
        columns = {name: result.estimates(name) for name in result.values}
        typer.echo("  block" + "".join(f"{name:>13}" for name in columns))
        for block in range(result.num_layers):
            typer.echo(f"  {block + 1:>5}" + "".join(f"{e[block].value:>13.3f}" for e in columns.values()))
    typer.echo(f"{out / 'attention.png'}: {report.seconds:.1f} s")


@analyze.command(cls=console.PanelCommand)
def trace(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="Video, image, or folder of frames.")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION", help="What to change.")],
    out: Annotated[
        Path | None, _files("Output folder. Default: CLIP_trace in the working directory.")
    ] = None,
    overwrite: console.Overwrite = False,
    model: _Model = "nano",
    blocks: Annotated[
        str | None, _files("Blocks to show. Default: ten, evenly spaced.", metavar="1,4,5")
    ] = None,
    at_steps: Annotated[
        str | None, _files("Denoising steps to show. Default: four, evenly spaced.", metavar="1,6,12")
    ] = None,
    concepts: Annotated[
        str | None,
        _files("Words, not in INSTRUCTION, to show maps of too: at least two.", metavar='"fur, grass, sky"'),
    ] = None,
    as_json: console.Json = False,
    steps: console.Steps = None,
    seed: console.Seed = 0,
    device: console.Device = None,
    dtype: console.Dtype = None,
) -> None:
    """Show where in the frames prompt tokens and editing tokens are attended to.

    Writes trace.html, a page with sliders over blocks, steps and frames, and trace.mp4. Edits the first
    window, with guidance 1.
    """
    from rvedit.analysis.trace import TraceConfig, analyze_trace, check_trace
    from rvedit.editing.config import EditConfig

    config = TraceConfig(
        clip,
        instruction,
        out or Path(f"{clip.stem}_trace"),
        _parse_numbers("--blocks", blocks),
        _parse_numbers("--at-steps", at_steps),
        EditConfig(num_inference_steps=steps, seed=seed),
        overwrite,
        tuple(concepts.split(",")) if concepts is not None else (),
    )
    check_trace(config)
    console.quiet_libraries()
    pipeline = _loader("--model", model, device, dtype)()
    with console.progress_bar("editing") as show:
        report = analyze_trace(config, pipeline, model, show)
    text = (
        f"{report.page}, {report.video}: {report.frames} frames, blocks {_join(report.blocks)}, "
        f"steps {_join(report.steps)}, {report.seconds:.1f} s"
    )
    console.print_result(as_json, report, text)


@analyze.command()
def tables(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS", help="Judged folders of edits, or LABEL=FOLDER. Seeds of one model share a label."
        ),
    ],
    table: Annotated[str, typer.Option(metavar="1|2|3", help="Table of the paper.")],
    judge: Annotated[
        str | None,
        typer.Option(help="Judge whose scores are shown, or mean. Default: the one that judged all runs."),
    ] = None,
    recipes: Annotated[
        Path, typer.Option(help="Folder of the recipes that hold the paper's figures.")
    ] = Path("recipes"),
    full: Annotated[str, typer.Option(help="Row that the others are compared with.")] = "RVEDiT",
    out: Annotated[Path | None, typer.Option(help="Folder for tableN.md, .tex, .csv and .json.")] = None,
    as_json: console.Json = False,
) -> None:
    """Compare judged runs with a table of the paper, with confidence intervals and paired tests."""
    from rvedit.analysis.paper import TABLES
    from rvedit.analysis.sheets import to_markdown
    from rvedit.analysis.tables import TablesConfig, analyze_tables

    check_choice("--table", table, TABLES)
    report = analyze_tables(TablesConfig(tuple(runs), table, recipes, judge, full, out))
    console.print_result(as_json, report.as_json(), to_markdown(report.sheet).removesuffix("\n"))
    if report.written and not as_json:
        console.say(f"written: {_join(report.written)}")


@analyze.command()
def gallery(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS", help="Folders of edits, one per method, or NAME=FOLDER.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures and videos.")],
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|MANIFEST", help="Items. Default: the list that `rvedit edit --batch` wrote."
        ),
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="Show only this id. Repeatable.")] = None,
    per_category: Annotated[int, typer.Option(min=1, help="Number of items of each category.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Number of frames of each clip.")] = 5,
    no_video: Annotated[bool, typer.Option("--no-video", help="Write figures only.")] = False,
    as_json: console.Json = False,
) -> None:
    """Show several methods side by side, by category: PNG and PDF of frames, and a video per item."""
    _require_matplotlib()
    from rvedit.analysis.gallery import GalleryConfig, analyze_gallery

    config = GalleryConfig(tuple(results), out, bench, tuple(item or ()), per_category, frames, not no_video)
    with console.progress_bar("drawing") as show:
        report = analyze_gallery(config, show)
    counts = f"{len(report.figures)} figures and {len(report.clips)} clips of {report.items} items"
    console.print_result(as_json, report, f"{out}: {counts}")


def _loader(option: str, model: str, device: str | None, dtype: str | None) -> Callable[[], RVEDiTPipeline]:
    """Return a function that loads a checkpoint. Raises UserError for missing ones and other editors."""
    from rvedit.pipelines.baselines import BASELINES
    from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
    from rvedit.pipelines.loading import pick_device, pick_dtype

    if model in BASELINES:
        raise UserError(f"{option} {model}: only RVEDiT models can be analyzed: give nano, DIR or HUB_ID")
    path, place = find_checkpoint(model, option), pick_device(device)
    torch_dtype = pick_dtype(dtype, place)
    return lambda: load_checkpoint(path, torch_dtype).to(place)


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing: pip install 'rvedit[analyze]'")


def _parse_numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{option} {text}: give numbers separated by commas, such as 1,4,8") from None


def _join(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))
