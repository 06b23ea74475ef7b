"""`rvedit edit`."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rvedit.editing.batch import BatchConfig
    from rvedit.editing.config import EditConfig, Progress
    from rvedit.io.video import VideoInfo

INOUT, MODEL, SAMPLING = "Input and output", "Model and edit", "Sampling"
MEMORY, BATCH = "Memory and speed", "Batch (instead of INPUT and INSTRUCTION)"
NANO_NOTE = (
    "note: nano, the embedded model, knows a toy world only; for real footage name real weights with --model "
    "DIR|HUB_ID or RVEDIT_MODEL"
)


def edit(
    source: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="A clip, a still image, or a folder of frames.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help='What to do, such as "replace the dog with a corgi".'),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to; by default INPUT_edited here.", rich_help_panel=INOUT),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also write source and edit side by side.", rich_help_panel=INOUT),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output that exists.", rich_help_panel=INOUT)
    ] = False,
    allow_truncated: Annotated[
        bool,
        typer.Option("--allow-truncated", help="Edit what decodes of a damaged clip.", rich_help_panel=INOUT),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=INOUT)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="nano|DIR|HUB_ID|lucy|vace|ditto",
            envvar="RVEDIT_MODEL",
            help="Which weights, or another editor. [default: nano]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    preserve: Annotated[
        bool,
        typer.Option(
            "--preserve",
            help="Keep the source's own pixels where nothing was changed; not in styles.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    detail: Annotated[
        str,
        typer.Option(
            metavar="auto|off|0-1",
            help="How much of the source's own detail is given back in the edit's colours; auto: all, but "
            "none where the texture is the edit, such as pixel art.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    description: Annotated[
        str | None,
        typer.Option(
            help="Words for the result, for editors that read those, such as vace.", rich_help_panel=MODEL
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="For vace: a clip or picture, white where it may change something.", rich_help_panel=MODEL
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps; by default the model's own.", rich_help_panel=SAMPLING),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Guidance scale, 1 for none; by default the model's own.", rich_help_panel=SAMPLING
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the noise: equal seeds give equal edits.", rich_help_panel=SAMPLING)
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, ...; by default what is there.", rich_help_panel=MEMORY),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16|fp16", help="By default fp32 on a CPU, else bf16.", rich_help_panel=MEMORY
        ),
    ] = None,
    offload: Annotated[
        str,
        typer.Option(
            metavar="auto|none|model|group",
            help="What waits on the CPU: nothing, components that do not compute, or all layers but a few; "
            "auto: components where the card has little usable_bytes beside them.",
            rich_help_panel=MEMORY,
        ),
    ] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="int8|fp8|nf4",
            help="Store the large matrices in fewer bits.",
            rich_help_panel=MEMORY,
        ),
    ] = None,
    vae_tiling: Annotated[
        bool,
        typer.Option(
            "--vae-tiling",
            help="Encode and decode by tiles: slower, for small cards.",
            rich_help_panel=MEMORY,
        ),
    ] = False,
    fast: Annotated[
        str | None,
        typer.Option(
            metavar="first-block|magcache|taylorseer",
            help="Let steps reuse what earlier ones computed: less exact.",
            rich_help_panel=MEMORY,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the blocks: pays off over many windows.", rich_help_panel=MEMORY
        ),
    ] = False,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Attention kernels by diffusers' names, such as flash.",
            rich_help_panel=MEMORY,
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Say what memory and time it takes, and load nothing.", rich_help_panel=MEMORY
        ),
    ] = False,
    card: Annotated[
        float | None,
        typer.Option(
            min=1, help="Of --plan: what to switch on for a card of so many GB.", rich_help_panel=MEMORY
        ),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|MANIFEST",
            help="Edit all items of a benchmark or manifest, instead of one clip.",
            rich_help_panel=BATCH,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Of --batch: the folder of edits.", rich_help_panel=BATCH)
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Of --batch: this process's share, such as 1/4.", rich_help_panel=BATCH
        ),
    ] = "1/1",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Of --batch: the first items only.", rich_help_panel=BATCH)
    ] = None,
    together: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of --batch: clips of one size and window in one pass, for GPUs that one won't fill.",
            rich_help_panel=BATCH,
        ),
    ] = 1,
) -> None:
    """Edit a clip by an instruction; the result has the same length, size, timing and sound."""
    from rvedit.editing.batch import BatchConfig, read_shard
    from rvedit.editing.config import EditConfig
    from rvedit.editing.edit_file import (
        checked_instruction,
        comparison_output,
        default_output,
        edit_file,
    )
    from rvedit.io.video import VideoReader, VideoWriter

    chosen = EditConfig(
        steps,
        guidance,
        seed,
        preserve=preserve,
        detail=_detail(detail),
        description=description,
        mask=mask,
    )

    placing = {"offload": offload, "quantization": quantization, "vae_tiling": vae_tiling}

    def load() -> Any:
        speed = {"fast": fast, "compile": compiled, "attention": attention}
        return _load(model, as_json, device=device, dtype=dtype, **placing, **speed)

    if batch:
        if source or output or compare or allow_truncated:
            raise UserError(
                "--batch edits a list: leave out INPUT, --output, --compare and --allow-truncated, and give "
                "--out-dir"
            )
        if plan or card:
            raise UserError("--batch: --plan and --card are for a single clip: give one of the list's")
        if not out_dir:
            raise UserError("--batch: name the folder of edits with --out-dir")
        _check_settings(model, chosen, listed=True)
        loading = {"dtype": dtype, "quantize": quantization, "fast": fast}
        part = read_shard(shard)
        config = BatchConfig(batch, out_dir, model or "nano", part, limit, overwrite, together, loading)
        _edit_batch(config, load, chosen, as_json)
        return
    if out_dir or limit or shard != "1/1" or together > 1:
        raise UserError("--out-dir, --shard, --limit and --together are for --batch")
    if source is None or instruction is None:
        raise UserError('give a clip and an instruction, such as park.mp4 "replace the dog with a corgi"')
    sampling = {"steps": steps, "guidance": guidance, "reconstruct": chosen.needs_reconstruction}
    options = {**placing, **sampling}
    if plan or card:
        _print_plan(source, model or "nano", device, dtype, options, card, as_json)
        return
    # What can be wrong with the files is said before torch is imported, the rest before a model is loaded.
    instruction = checked_instruction(instruction)
    with VideoReader(source, allow_truncated=allow_truncated) as reader:
        output = output or default_output(source)
        for path in (output, comparison_output(output)) if compare else (output,):
            VideoWriter(path, like=reader.info, overwrite=overwrite)
        _check_settings(model, chosen)
        with _saying_what_fits(reader.info, model or "nano", device, dtype, options):
            pipe = load()
            from rvedit.editing.long_video import count_windows

            windows = count_windows(pipe, reader.info.num_frames, float(reader.info.frame_rate))
            with console.progress_bar() as bar:
                task = bar.add_task("editing", total=windows, note="")

                def show(progress: Progress) -> None:
                    done = progress.window - 1 + progress.step / progress.num_steps
                    note = f"window {progress.window}/{windows}, step {progress.step}/{progress.num_steps}"
                    bar.update(task, completed=done, total=windows, note=note)

                report = edit_file(reader, instruction, output, pipe, chosen, compare, overwrite, show)
    if as_json:
        fields = {
            "output": os.fspath(report.output),
            "comparison": os.fspath(report.comparison) if report.comparison else None,
            "num_frames": report.num_frames,
            "width": report.width,
            "height": report.height,
            "seconds": round(report.seconds, 3),
            "model": model or "nano",
        }
        typer.echo(json.dumps(fields))
        return
    size = f"{report.width}x{report.height}"
    typer.echo(f"{report.output}: {report.num_frames} frames, {size}, {report.seconds:.1f} s")
    if report.comparison:
        typer.echo(f"{report.comparison}: source and edit side by side")


@contextmanager
def _saying_what_fits(
    info: VideoInfo, model: str, device: str | None, dtype: str | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """Where a device's memory is full, the error says what would fit it."""
    try:
        yield
    except Exception as error:
        if not console.is_out_of_memory(error):
            raise
        from rvedit.editing.memory_plan import EditPlanOptions, suggest_options
        from rvedit.io.records import ClipShape
        from rvedit.pipelines.loading import pick_device, pick_dtype
        from rvedit.pipelines.memory import usable_bytes

        place = pick_device(device)
        clip = ClipShape(info.num_frames, info.height, info.width)
        advice = suggest_options(
            clip, model, EditPlanOptions(pick_dtype(dtype, place), **options), usable_bytes(place)
        )
        raise UserError(f"{model}: the memory of {place} is full: {advice}") from error


def _print_plan(
    source: Path,
    model: str,
    device: str | None,
    dtype: str | None,
    options: Mapping[str, Any],
    card: float | None,
    as_json: bool,
) -> None:
    from rvedit.editing.memory_plan import EditPlanOptions, Planner, find_fitting_plan, matrix_rate
    from rvedit.io.records import ClipShape
    from rvedit.io.video import probe
    from rvedit.pipelines.loading import DTYPES, pick_device, pick_dtype
    from rvedit.pipelines.memory import choose_offload, free_bytes
    from rvedit_cli.plan import CARD_RATE, print_edit_plan

    info = probe(source)
    place = pick_device(device)
    # For a card that is not here: what is computed with there.
    kind = DTYPES["bf16"] if card and not dtype else pick_dtype(dtype, place)
    planner = Planner(ClipShape(info.num_frames, info.height, info.width), model)
    chosen = EditPlanOptions(kind, **options)
    plan = planner(chosen)
    if chosen.offload == "auto":
        # For another card than this one, the plain edit beside what fits there.
        usable_bytes = float("inf") if card else free_bytes(place)
        chosen = replace(chosen, offload=choose_offload(sum(plan.weights.values()), usable_bytes))
        plan = planner(chosen)
    fitting = find_fitting_plan(planner, chosen, card * 1e9) if card else None
    rate, machine = (CARD_RATE, "") if card else (matrix_rate(place, kind), str(place))
    seconds = plan.seconds(rate)
    if as_json:
        found = {
            "plan": plan.as_json(),
            "seconds": seconds,
            "matrix_flops_per_second": rate,
            "fits": fitting and fitting.as_json(),
        }
        typer.echo(json.dumps(found))
    else:
        print_edit_plan(plan, seconds, machine, fitting, card)


def _detail(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    with suppress(ValueError):
        if 0 <= (strength := 0.0 if text == "off" else float(text)) <= 1:
            return strength
    raise UserError(f"--detail {text}: give auto, off, or a number from 0 to 1")


def _check_settings(model: str | None, config: EditConfig, listed: bool = False) -> None:
    """Check what models differ in before one is loaded; a list's items may have their own descriptions."""
    if not (config.mask or config.description or model):
        return  # nano reads neither
    from rvedit.io.video import probe
    from rvedit.pipelines.loading import capabilities_of

    if config.mask:
        probe(config.mask)
    console.quiet_libraries()
    capabilities = capabilities_of(model or "nano")
    if capabilities is not None:
        with_items = (
            replace(config, description="its item's") if listed and capabilities.description else config
        )
        capabilities.check(with_items)


def _load(model: str | None, as_json: bool, **options: Any) -> Any:
    from rvedit.pipelines.loading import load_pipeline

    console.quiet_libraries()
    if model is None and not as_json:
        console.say(NANO_NOTE)
    pipe = load_pipeline(model or "nano", **options)
    pipe.set_progress_bar_config(disable=True)  # the command has its own
    return pipe


def _edit_batch(batch: BatchConfig, load: Callable[[], Any], config: EditConfig, as_json: bool) -> None:
    """Edit a list; ends with 1 where some items failed."""
    from rvedit.editing.batch import edit_batch, failures_path, plan_batch

    items = plan_batch(batch)
    with console.progress_bar() as bar:
        task = bar.add_task("editing", total=len(items), note="")
        report = edit_batch(
            batch,
            items,
            load,
            config,
            lambda done, total, name: bar.update(task, completed=done, total=total, note=name),
        )
    if as_json:
        counts = {"edited": report.edited, "there": report.there, "failures": report.failures}
        typer.echo(json.dumps({"folder": os.fspath(report.folder), **counts}))
    else:
        line = f"{report.folder}: {report.edited} edited, {report.there} there already"
        if report.failures:
            name, reason = next(iter(report.failures.items()))
            line += f", {len(report.failures)} failed, see {failures_path(batch)}: {name}: {reason}"
        typer.echo(line)
    if report.failures:
        raise typer.Exit(1)
