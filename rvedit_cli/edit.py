"""`rvedit edit`."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
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

NANO_NOTE = (
    "note: the default model, nano, was trained on simple drawings only: for real footage choose other "
    "weights with --model DIR|HUB_ID or RVEDIT_MODEL"
)

_files = partial(console.option, console.FILES)
_model = partial(console.option, "Model and edit")
_where = partial(console.option, "Where and when")
_sampling = partial(console.option, console.SAMPLING)
_memory = partial(console.option, console.MEMORY)
_batch = partial(console.option, "Batch (instead of INPUT and INSTRUCTION)")
_MASK_HELP = (
    "Video or image of the clip's size that is white where the edit may change something. Give it once, or "
    "once for each instruction, in their order."
)
_REGION_HELP = (
    'Region that the edit may change: words, such as "the dog", or a box as LEFT,TOP,WIDTH,HEIGHT, each in '
    "percent of the frame or in pixels, such as 10%,20%,40%,50%. Give it as --mask."
)
_SEGMENTER_HELP = (
    "With --region WORDS: the model that finds the objects, or two as DETECTOR+TRACKER. Default: Grounding "
    "DINO and SAM 2.1, both Apache-2.0."
)
_FROM_HELP = "Edit from this moment on: seconds, such as 3.5 or 0:03.5, or a frame, such as 75f."
_MODELS, _DETAIL, _OFFLOAD = "nano|DIR|HUB_ID|lucy|vace|ditto", "auto|off|0-1", "auto|none|model|group"
_FAST = "first-block|magcache|taylorseer"
_Input = typer.Argument(metavar="INPUT", help="Video, image, or folder of frames.")
_Instruction = typer.Argument(
    metavar="INSTRUCTION...",
    help='What to change, such as "replace the dog with a corgi". Several are applied one after another.',
)
_DETAIL_HELP = (
    "Strength of detail transfer from source to edit. auto: 1, or 0 for edits with a texture of their own, "
    "such as pixel art."
)
_OFFLOAD_HELP = (
    "Keep weights in host memory until they are needed: components (model) or groups of layers (group). "
    "auto: model if GPU memory is short, otherwise none."
)
_TOGETHER_HELP = "With --batch: number of short clips of equal size and length to edit in one pass."


def edit(
    source: Annotated[Path | None, _Input] = None,
    instructions: Annotated[list[str] | None, _Instruction] = None,
    output: Annotated[
        Path | None, _files("Output file. Default: INPUT_edited in the working directory.", "-o", "--output")
    ] = None,
    compare: Annotated[bool, _files("Also write source and edit side by side.", "--compare")] = False,
    contact_sheet: Annotated[
        Path | None, _files("Also write a picture of source and edit at eight moments.", metavar="PNG|JPG")
    ] = None,
    overwrite: console.Overwrite = False,
    allow_truncated: Annotated[
        bool, _files("Edit the decodable part of a damaged video.", "--allow-truncated")
    ] = False,
    as_json: console.Json = False,
    model: Annotated[
        str | None, _model("Model to edit with. Default: nano.", metavar=_MODELS, envvar="RVEDIT_MODEL")
    ] = None,
    preserve: Annotated[
        bool, _model("Keep the source's pixels where the edit changes nothing.", "--preserve")
    ] = False,
    detail: Annotated[str, _model(_DETAIL_HELP, metavar=_DETAIL)] = "auto",
    description: Annotated[
        list[str] | None,
        _model(
            "With vace: description of the edited video, instead of INSTRUCTION. One for each instruction."
        ),
    ] = None,
    mask: Annotated[list[Path] | None, _where(_MASK_HELP)] = None,
    region: Annotated[list[str] | None, _where(_REGION_HELP, metavar="WORDS|BOX")] = None,
    segmenter: Annotated[str | None, _where(_SEGMENTER_HELP, metavar="HUB_ID|DIR")] = None,
    grow: Annotated[int, _where("Number of pixels that the mask is grown by to all sides.", min=0)] = 0,
    invert_mask: Annotated[bool, _where("Change what is outside the mask instead.", "--invert-mask")] = False,
    save_mask: Annotated[
        Path | None,
        _where("Also write the mask, as grown and inverted, as a video or, for a still mask, an image."),
    ] = None,
    start: Annotated[str | None, _where(_FROM_HELP, "--from", metavar="TIME")] = None,
    stop: Annotated[str | None, _where("Edit until just before this moment.", "--to", metavar="TIME")] = None,
    fade: Annotated[
        float, _where("With --from or --to: seconds over which the edit fades in and out.", min=0)
    ] = 0.0,
    steps: console.Steps = None,
    guidance: Annotated[
        float | None, _sampling("Guidance scale; 1 turns guidance off. Default: the model's own.", min=0)
    ] = None,
    seed: console.Seed = 0,
    device: console.Device = None,
    dtype: console.Dtype = None,
    offload: Annotated[str, _memory(_OFFLOAD_HELP, metavar=_OFFLOAD)] = "auto",
    quantization: Annotated[
        str | None,
        _memory("Store large weight matrices in fewer bits.", "--quantize", metavar="int8|fp8|nf4"),
    ] = None,
    vae_tiling: Annotated[
        bool, _memory("Encode and decode in tiles. Slower, but needs less memory.", "--vae-tiling")
    ] = False,
    fast: Annotated[
        str | None, _memory("Reuse results of earlier denoising steps. Faster, less exact.", metavar=_FAST)
    ] = None,
    compiled: Annotated[
        bool, _memory("Compile the transformer blocks. Pays off for long videos.", "--compile")
    ] = False,
    attention: Annotated[
        str | None, _memory("Attention backend, by its name in diffusers, such as flash.", metavar="NAME")
    ] = None,
    plan: Annotated[bool, _memory("Estimate memory and time without loading weights.", "--plan")] = False,
    card: Annotated[
        float | None, _memory("With --plan: suggest options for a GPU with so many GB of memory.", min=1)
    ] = None,
    batch: Annotated[
        Path | None, _batch("Edit all items of a benchmark's CSV or a manifest.", metavar="CSV|MANIFEST")
    ] = None,
    out_dir: Annotated[Path | None, _batch("With --batch: output folder.")] = None,
    shard: Annotated[str, _batch("With --batch: edit part I of N, such as 1/4.", metavar="I/N")] = "1/1",
    limit: Annotated[int | None, _batch("With --batch: edit only the first items.", min=1)] = None,
    together: Annotated[int, _batch(_TOGETHER_HELP, min=1)] = 1,
) -> None:
    """Edit a video by an instruction. The output has the source's length, size, timing and sound."""
    from rvedit.editing.batch import BatchConfig, read_shard
    from rvedit.editing.config import EditConfig
    from rvedit.editing.contact_sheet import check_contact_sheet
    from rvedit.editing.edit_file import (
        check_distinct,
        checked_instructions,
        comparison_output,
        default_output,
        edit_file,
    )
    from rvedit.editing.regions import read_regions
    from rvedit.editing.time_range import frame_range
    from rvedit.io.video import VideoReader, VideoWriter, frame_times, probe
    from rvedit_cli.masks import check_masks, check_saved_mask, find_masks

    config = EditConfig(steps, guidance, seed, preserve, _parse_detail(detail))
    needs_mask = {
        "--grow": grow,
        "--invert-mask": invert_mask,
        "--save-mask": save_mask,
        "--segmenter": segmenter,
    }
    if not (mask or region) and (given := [flag for flag, value in needs_mask.items() if value]):
        raise UserError(f"{given[0]}: needs --mask or --region")
    model_name = model or "nano"
    placement: dict[str, Any] = {"offload": offload, "quantization": quantization, "vae_tiling": vae_tiling}

    def load() -> Any:
        from rvedit.pipelines.loading import load_pipeline

        console.quiet_libraries()
        if model is None and not as_json:
            console.say(NANO_NOTE)
        speed: dict[str, Any] = {"fast": fast, "compile": compiled, "attention": attention}
        pipe = load_pipeline(model_name, device=device, dtype=dtype, **placement, **speed)
        pipe.set_progress_bar_config(disable=True)  # the command has its own
        return pipe

    if batch:
        if source or output or compare or allow_truncated:
            raise UserError(
                "--batch: leave out INPUT, --output, --compare and --allow-truncated, and give --out-dir"
            )
        if plan or card:
            raise UserError("--plan and --card: cannot be combined with --batch: give a single clip")
        if not out_dir:
            raise UserError("--batch: give the output folder with --out-dir")
        if start is not None or stop is not None or fade or contact_sheet or save_mask:
            raise UserError("--batch: leave out --from, --to, --fade, --contact-sheet and --save-mask")
        place = read_regions(mask or [], region or [], 1)[0]
        if isinstance(place, str) or segmenter:
            raise UserError(f"--region {place}: with --batch give a box, such as 10%,20%,40%,50%, or --mask")
        if isinstance(place, Path):
            probe(place)
        if place is not None:
            config = replace(config, mask=place, grow=grow, invert_mask=invert_mask)
        if description:
            if len(description) > 1:
                raise UserError("--description: with --batch give it once: items may have their own")
            config = replace(config, description=description[0])
        _check_settings(model, config, is_batch=True)
        loading = {"dtype": dtype, "quantize": quantization, "fast": fast}
        batch_config = BatchConfig(
            batch, out_dir, model_name, read_shard(shard), limit, overwrite, together, loading
        )
        _edit_batch(batch_config, load, config, as_json)
        return
    if out_dir or limit or shard != "1/1" or together > 1:
        raise UserError("--out-dir, --shard, --limit and --together are for --batch")
    if source is None or not instructions:
        raise UserError('give a clip and an instruction, such as park.mp4 "replace the dog with a corgi"')
    options = {"steps": steps, "guidance": guidance, "reconstruct": config.needs_reconstruction, **placement}
    # Files are checked before torch is imported, settings before a model is loaded.
    prompts = checked_instructions(instructions)
    places = read_regions(mask or [], region or [], len(prompts))
    if description and len(description) != len(prompts):
        raise UserError(
            f"--description: given {len(description)} times: give one for each of {len(prompts)} instructions"
        )
    if save_mask and len(set(places)) > 1:
        raise UserError("--save-mask: needs one --mask or --region for all instructions")
    with VideoReader(source, allow_truncated=allow_truncated) as reader:
        part = None
        if start is not None or stop is not None or fade:
            part = frame_range(*frame_times(reader.info), start, stop, fade)
        num_frames = part.stop - part.first if part else reader.info.num_frames
        if plan or card:
            from rvedit_cli.plan import print_edit_plan

            if len(prompts) > 1:
                raise UserError("--plan and --card: give one instruction: each of several takes as long")
            info = replace(reader.info, num_frames=num_frames)
            print_edit_plan(info, model_name, device, dtype, options, card, as_json)
            return
        output = output or default_output(reader.info)
        comparison = comparison_output(output) if compare else None
        files = {
            "`output`": output,
            "`compare`": comparison,
            "`contact_sheet`": contact_sheet,
            "`save_mask`": save_mask,
        }
        check_distinct(files, {f"`mask` {path}": path for path in mask or []})
        for path in (output, comparison) if comparison else (output,):
            VideoWriter(path, like=reader.info, overwrite=overwrite)
        if contact_sheet:
            check_contact_sheet(contact_sheet, reader.info, overwrite)
        configs = [config] * len(prompts)
        if description:
            configs = [replace(config, description=text) for text in description]
        _check_settings(model, configs[0])
        check_masks(places, reader.info, grow, invert_mask)
        if save_mask:
            check_saved_mask(save_mask, places[0], reader.info, overwrite)
        masks = find_masks(places, reader, part, segmenter, device)
        configs = [
            config if found is None else replace(config, mask=found, grow=grow, invert_mask=invert_mask)
            for config, found in zip(configs, masks, strict=True)
        ]
        with _suggestions_if_out_of_memory(reader.info, model_name, device, dtype, options):
            pipe = load()
            from rvedit.editing.long_video import count_windows

            windows = count_windows(pipe, num_frames, float(reader.info.frame_rate))
            with console.progress_bar("editing", total=windows * len(prompts)) as show:
                finished = [0.0] * len(prompts)  # windows of each instruction

                def on_progress(progress: Progress) -> None:
                    finished[progress.edit - 1] = progress.window - 1 + progress.step / progress.num_steps
                    note = f"window {progress.window}/{windows}, step {progress.step}/{progress.num_steps}"
                    if len(prompts) > 1:
                        note = f"instruction {progress.edit}/{len(prompts)}, {note}"
                    show(sum(finished), windows * len(prompts), note)

                report = edit_file(
                    reader,
                    prompts,
                    output,
                    pipe,
                    configs,
                    part=part,
                    compare=compare,
                    contact_sheet=contact_sheet,
                    overwrite=overwrite,
                    on_progress=on_progress,
                )
        if save_mask:
            from rvedit.editing.mask import write_mask

            write_mask(save_mask, reader, configs[0], part, overwrite)
    size = f"{report.width}x{report.height}"
    text = f"{report.output}: {report.num_frames} frames, {size}, {report.seconds:.1f} s"
    if part:
        text += f"\nedited: frames {part.first}f to {part.stop - 1}f"
    if report.comparison:
        text += f"\n{report.comparison}: source and edit side by side"
    if contact_sheet:
        text += f"\n{contact_sheet}: source and edit at several moments"
    if save_mask:
        text += f"\n{save_mask}: the mask"
    result = {
        **asdict(report),
        "seconds": round(report.seconds, 3),
        "model": model_name,
        "instructions": prompts,
        "edited_frames": [part.first, part.stop] if part else [0, report.num_frames],
        "mask": save_mask,
    }
    console.print_result(as_json, result, text)


@contextmanager
def _suggestions_if_out_of_memory(
    info: VideoInfo, model: str, device: str | None, dtype: str | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """Raise UserError with the options that would fit if a device runs out of memory."""
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
        plan_options = EditPlanOptions(pick_dtype(dtype, place), **options)
        advice = suggest_options(clip, model, plan_options, usable_bytes(place))
        raise UserError(f"{model}: out of memory on {place}: {advice}") from error


def _parse_detail(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    with suppress(ValueError):
        if 0 <= (strength := 0.0 if text == "off" else float(text)) <= 1:
            return strength
    raise UserError(f"--detail {text}: give auto, off, or a number from 0 to 1")


def _check_settings(model: str | None, config: EditConfig, is_batch: bool = False) -> None:
    """Check `description` before a model is loaded; items of a batch may have descriptions."""
    if not (config.description or model):
        return  # nano reads none
    from rvedit.pipelines.loading import capabilities_of

    console.quiet_libraries()
    capabilities = capabilities_of(model or "nano")
    if capabilities is not None:
        if is_batch and capabilities.description:
            config = replace(config, description="from the item")
        capabilities.check(config)


def _edit_batch(batch: BatchConfig, load: Callable[[], Any], config: EditConfig, as_json: bool) -> None:
    """Edit a batch. Exit with code 1 if some items failed."""
    from rvedit.editing.batch import edit_batch, failures_path, plan_batch

    items = plan_batch(batch)
    with console.progress_bar("editing", total=len(items)) as show:
        report = edit_batch(batch, items, load, config, show)
    line = f"{report.folder}: {report.edited} edited, {report.skipped} skipped (already edited)"
    if report.failures:
        name, reason = next(iter(report.failures.items()))
        line += f", {len(report.failures)} failed, see {failures_path(batch)}: {name}: {reason}"
    counts = {"edited": report.edited, "there": report.skipped, "failures": report.failures}
    console.print_result(as_json, {"folder": report.folder, **counts}, line)
    if report.failures:
        raise typer.Exit(1)
