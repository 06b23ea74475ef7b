"""`rvedit edit`."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rvedit.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rvedit.editors import Editor
    from rvedit.records import EditSettings, Progress
    from rvedit.video import VideoInfo
    from rvedit.workflows.batch import BatchOrder

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
        Path | None, typer.Option("-o", "--output", help="Where to; by default INPUT_edited here.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="nano|DIR|HUB_ID|lucy|vace|ditto",
            envvar="RVEDIT_MODEL",
            help="Which weights, or another editor. [default: nano]",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; by default the model's own.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale, 1 for none; by default the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise: equal seeds give equal edits.")] = 0,
    preserve: Annotated[
        bool,
        typer.Option(
            "--preserve", help="Keep the source's own pixels where nothing was changed; not in styles."
        ),
    ] = False,
    detail: Annotated[
        str,
        typer.Option(
            metavar="auto|off|0-1",
            help="How much of the source's own detail is given back in the edit's colours; auto: all, but "
            "none where the texture is the edit, such as pixel art.",
        ),
    ] = "auto",
    description: Annotated[
        str | None, typer.Option(help="Words for the result, for editors that read those, such as vace.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="For vace: a clip or picture, white where it may change something.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write source and edit side by side.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default what is there.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp32|bf16|fp16", help="By default fp32 on a CPU, else bf16.")
    ] = None,
    offload: Annotated[
        str,
        typer.Option(
            metavar="auto|none|model|group",
            help="What waits on the CPU: nothing, components that do not compute, or all layers but a few; "
            "auto: components where the card has little room beside them.",
        ),
    ] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option("--quantize", metavar="int8|fp8|nf4", help="Store the large matrices in fewer bits."),
    ] = None,
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Encode and decode by tiles: slower, for small cards.")
    ] = False,
    fast: Annotated[
        str | None,
        typer.Option(
            metavar="first-block|magcache|taylorseer",
            help="Let steps reuse what earlier ones computed: less exact.",
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks: pays off over many windows.")
    ] = False,
    attention: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention kernels by diffusers' names, such as flash.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what memory and time it takes, and load nothing.")
    ] = False,
    card: Annotated[
        float | None, typer.Option(min=1, help="Of --plan: what to switch on for a card of so many GB.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|MANIFEST", help="Edit all items of a benchmark or manifest, instead of one clip."
        ),
    ] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Of --batch: the folder of edits.")] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Of --batch: this process's share, such as 1/4.")
    ] = "1/1",
    limit: Annotated[int | None, typer.Option(min=1, help="Of --batch: the first items only.")] = None,
    together: Annotated[
        int,
        typer.Option(
            min=1, help="Of --batch: clips of one size and window in one pass, for GPUs that one won't fill."
        ),
    ] = 1,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Edit what decodes of a damaged clip.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Edit a clip by an instruction; the result has the same length, size, timing and sound."""
    from rvedit.records import EditSettings
    from rvedit.video import VideoReader, VideoWriter
    from rvedit.workflows.batch import BatchOrder, read_shard
    from rvedit.workflows.edit import (
        checked_instruction,
        comparison_output,
        default_output,
        edit_file,
    )

    chosen = EditSettings(
        steps,
        guidance,
        seed,
        preserve=preserve,
        detail=_detail(detail),
        description=description,
        mask=mask,
    )

    placing = {"offload": offload, "quantization": quantization, "vae_tiling": vae_tiling}

    def load() -> Editor:
        speed = {"fast": fast, "compiled": compiled, "attention": attention}
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
        order = BatchOrder(batch, out_dir, model or "nano", part, limit, overwrite, together, loading)
        _edit_batch(order, load, chosen, as_json)
        return
    if out_dir or limit or shard != "1/1" or together > 1:
        raise UserError("--out-dir, --shard, --limit and --together are for --batch")
    if source is None or instruction is None:
        raise UserError('give a clip and an instruction, such as park.mp4 "replace the dog with a corgi"')
    sampling = {"steps": steps, "guidance": guidance, "reconstruct": chosen.reads_reconstruction}
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
            editor = load()
            with console.progress_bar() as bar:
                windows = editor.windows(reader.info.num_frames)
                task = bar.add_task("editing", total=windows, note="")

                def show(progress: Progress) -> None:
                    done = progress.window - 1 + progress.step / progress.num_steps
                    # An editor that knows fewer frames a second than the source has may take more windows.
                    total = max(windows, progress.window)
                    note = f"window {progress.window}/{total}, step {progress.step}/{progress.num_steps}"
                    bar.update(task, completed=done, total=total, note=note)

                report = edit_file(reader, instruction, output, editor, chosen, compare, overwrite, show)
    if as_json:
        fields = {
            "output": os.fspath(report.output),
            "comparison": os.fspath(report.comparison) if report.comparison else None,
            "num_frames": report.num_frames,
            "width": report.width,
            "height": report.height,
            "seconds": round(report.seconds, 3),
            "model": editor.name,
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
        from rvedit.editors.load import pick_device, pick_dtype
        from rvedit.editors.placement import room
        from rvedit.records import ClipShape
        from rvedit.workflows.plan_edit import EditOptions, what_to_switch_on

        place = pick_device(device)
        clip = ClipShape(info.num_frames, info.height, info.width)
        advice = what_to_switch_on(clip, model, EditOptions(pick_dtype(dtype, place), **options), room(place))
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
    from rvedit.editors.load import DTYPES, pick_device, pick_dtype
    from rvedit.editors.placement import choose_offload, free_bytes
    from rvedit.records import ClipShape
    from rvedit.video import probe
    from rvedit.workflows.plan_edit import EditOptions, Planner, matrix_rate, what_fits
    from rvedit_cli.plan import CARD_RATE, print_edit_plan

    info = probe(source)
    place = pick_device(device)
    # For a card that is not here: what is computed with there.
    kind = DTYPES["bf16"] if card and not dtype else pick_dtype(dtype, place)
    planner = Planner(ClipShape(info.num_frames, info.height, info.width), model)
    chosen = EditOptions(kind, **options)
    plan = planner(chosen)
    if chosen.offload == "auto":
        # For another card than this one, the plain edit beside what fits there.
        room = float("inf") if card else free_bytes(place)
        chosen = replace(chosen, offload=choose_offload(sum(plan.weights.values()), room))
        plan = planner(chosen)
    fitting = what_fits(planner, chosen, card * 1e9) if card else None
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


def _check_settings(model: str | None, settings: EditSettings, listed: bool = False) -> None:
    """Of what editors differ in; nano, without any of it, is not asked."""
    if not (settings.mask or settings.description or model):
        return
    from rvedit.editors import check_settings
    from rvedit.video import probe

    if settings.mask:
        probe(settings.mask)
    console.quiet_libraries()
    check_settings(model or "nano", settings, listed)


def _load(model: str | None, as_json: bool, **options: Any) -> Editor:
    from rvedit.editors import load_editor

    console.quiet_libraries()
    if model is None and not as_json:
        console.say(NANO_NOTE)
    return load_editor(model or "nano", **options)


def _edit_batch(order: BatchOrder, load: Callable[[], Editor], settings: EditSettings, as_json: bool) -> None:
    """Edit a list; ends with 1 where some items failed."""
    from rvedit.workflows.batch import edit_batch, failures_path, plan_batch

    items = plan_batch(order)
    with console.progress_bar() as bar:
        task = bar.add_task("editing", total=len(items), note="")
        report = edit_batch(
            order,
            items,
            load,
            settings,
            lambda done, total, name: bar.update(task, completed=done, total=total, note=name),
        )
    if as_json:
        counts = {"edited": report.edited, "there": report.there, "failures": report.failures}
        typer.echo(json.dumps({"folder": os.fspath(report.folder), **counts}))
    else:
        line = f"{report.folder}: {report.edited} edited, {report.there} there already"
        if report.failures:
            name, reason = next(iter(report.failures.items()))
            line += f", {len(report.failures)} failed, see {failures_path(order)}: {name}: {reason}"
        typer.echo(line)
    if report.failures:
        raise typer.Exit(1)
