"""`rvedit edit`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console
from rvedit_cli import edit_options as options

if TYPE_CHECKING:
    from collections.abc import Callable

    from rvedit.editing.batch import BatchConfig
    from rvedit.editing.config import EditConfig, Progress
    from rvedit.io.video import VideoInfo

NANO_NOTE = (
    "note: the default model, nano, was trained on simple drawings only: for real footage choose other "
    "weights with --model DIR|HUB_ID or RVEDIT_MODEL"
)


def edit(
    context: typer.Context,
    source: options.Source = None,
    instructions: options.Instructions = None,
    rewrite: options.Rewrite = False,
    rewrite_with: options.RewriteWith = None,
    rewrite_model: options.RewriteModel = None,
    yes: options.Yes = False,
    output: options.Output = None,
    compare: options.Compare = False,
    contact_sheet: options.ContactSheet = None,
    preview: options.Preview = None,
    preview_decoder: options.PreviewDecoder = None,
    overwrite: console.Overwrite = False,
    allow_truncated: options.AllowTruncated = False,
    as_json: console.Json = False,
    model: options.Model = None,
    lora: options.Lora = None,
    transformer: options.Transformer = None,
    preserve: options.Preserve = False,
    detail: options.Detail = "auto",
    description: options.Description = None,
    reference: options.Reference = None,
    mask: options.Mask = None,
    region: options.Region = None,
    segmenter: options.Segmenter = None,
    grow: options.Grow = 0,
    invert_mask: options.InvertMask = False,
    save_mask: options.SaveMask = None,
    start: options.Start = None,
    stop: options.Stop = None,
    fade: options.Fade = 0.0,
    steps: console.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    sigmas: options.Sigmas = None,
    seed: console.Seed = 0,
    device: console.Device = None,
    dtype: console.Dtype = None,
    offload: options.Offload = "auto",
    quantization: options.Quantization = None,
    vae_tiling: options.VaeTiling = False,
    fast: options.Fast = None,
    compiled: options.Compiled = False,
    attention: options.Attention = None,
    plan: options.Plan = False,
    card: options.Card = None,
    batch: options.Batch = None,
    out_dir: options.OutDir = None,
    shard: options.Shard = "1/1",
    limit: options.Limit = None,
    together: options.Together = 1,
    ray: options.Ray = None,
    server: options.Server = None,
) -> None:
    """Edit a video by an instruction. The output has the source's length, size, timing and sound."""
    from rvedit.editing.batch import BatchConfig
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
    from rvedit.io.shards import read_shard
    from rvedit.io.video import VideoReader, VideoWriter, frame_times, probe, read_image
    from rvedit.pipelines.sigmas import read_sigmas
    from rvedit_cli.masks import check_masks, check_saved_mask, find_masks
    from rvedit_cli.plan import suggestions_if_out_of_memory

    config = EditConfig(
        steps,
        guidance,
        seed,
        preserve,
        _parse_detail(detail),
        shift=shift,
        sigmas=None if sigmas is None else read_sigmas(sigmas),
    )
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
        weights: dict[str, Any] = {"lora": lora or (), "transformer": transformer}
        pipe = load_pipeline(model_name, device=device, dtype=dtype, **weights, **placement, **speed)
        pipe.set_progress_bar_config(disable=True)  # the command has its own
        return pipe

    needs_rewrite = {"--rewrite-with": rewrite_with, "--rewrite-model": rewrite_model, "--yes": yes}
    if not rewrite and (given := [flag for flag, value in needs_rewrite.items() if value]):
        raise UserError(f"{given[0]}: needs --rewrite")
    if rewrite:
        from rvedit_cli.rewrite import rewritten

        if batch:
            raise UserError("--rewrite: cannot be used with --batch")
        instructions = rewritten(source, instructions, rewrite_with, rewrite_model, device, yes)
    if server:
        from rvedit_cli.remote import edit_on_server

        edit_on_server(context, instructions or [], _parse_detail(detail))
        return
    if batch:
        if source or output or compare or allow_truncated:
            raise UserError(
                "--batch: leave out INPUT, --output, --compare and --allow-truncated, and give --out-dir"
            )
        if plan or card:
            raise UserError("--plan and --card: cannot be combined with --batch: give a single clip")
        if not out_dir:
            raise UserError("--batch: give the output folder with --out-dir")
        if start is not None or stop is not None or fade or contact_sheet or save_mask or preview:
            raise UserError(
                "--batch: leave out --from, --to, --fade, --contact-sheet, --save-mask and --preview"
            )
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
        if reference:
            raise UserError("--reference: with --batch give pictures in the list, in the column ref_image")
        _check_settings(model, config, is_batch=True)
        loading = {
            "dtype": dtype,
            "quantize": quantization,
            "fast": fast,
            "lora": lora or None,
            "transformer": str(transformer) if transformer else None,
        }
        batch_config = BatchConfig(
            batch, out_dir, model_name, read_shard(shard), limit, overwrite, together, loading
        )
        if ray and model is None and not as_json:
            console.say(NANO_NOTE)  # which the processes of the cluster do not show
        _edit_batch(batch_config, load, config, as_json, ray)
        return
    if out_dir or limit or shard != "1/1" or together > 1 or ray:
        raise UserError("--out-dir, --shard, --limit, --together and --ray are for --batch")
    if preview_decoder and not preview:
        raise UserError("--preview-decoder: needs --preview")
    if source is None or not instructions:
        raise UserError('give a clip and an instruction, such as park.mp4 "replace the dog with a corgi"')
    planned = {
        "steps": len(config.sigmas) if config.sigmas else steps,
        "guidance": guidance,
        "reconstruct": config.needs_reconstruction,
        "reference_image": bool(reference),
        "transformer": transformer,
        **placement,
    }
    # Files are checked before torch is imported, settings before a model is loaded.
    prompts = checked_instructions(instructions)
    places = read_regions(mask or [], region or [], len(prompts))
    if description and len(description) != len(prompts):
        raise UserError(
            f"--description: given {len(description)} times: give one for each of {len(prompts)} instructions"
        )
    if reference and len(reference) not in (1, len(prompts)):
        raise UserError(
            f"--reference: given {len(reference)} times: give it once, or once for each of {len(prompts)} "
            "instructions"
        )
    pictures = [read_image(path) for path in reference or []]
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
            print_edit_plan(info, model_name, device, dtype, planned, card, as_json)
            return
        output = output or default_output(reader.info)
        comparison = comparison_output(output) if compare else None
        files = {
            "`output`": output,
            "`compare`": comparison,
            "`contact_sheet`": contact_sheet,
            "`save_mask`": save_mask,
            "`preview`": preview,
        }
        inputs = {f"`mask` {path}": path for path in mask or []}
        check_distinct(files, inputs | {f"`reference` {path}": path for path in reference or []})
        for path in (output, comparison) if comparison else (output,):
            VideoWriter(path, like=reader.info, overwrite=overwrite)
        if contact_sheet:
            check_contact_sheet(contact_sheet, reader.info, overwrite)
        if preview:
            _check_preview(preview, reader.info, overwrite)
        configs = [config] * len(prompts)
        if description:
            configs = [replace(config, description=text) for text in description]
        if pictures:
            pictures *= len(prompts) if len(pictures) == 1 else 1
            configs = [
                replace(config, reference_image=picture)
                for config, picture in zip(configs, pictures, strict=True)
            ]
        _check_settings(model, configs[0])
        check_masks(places, reader.info, grow, invert_mask)
        if save_mask:
            check_saved_mask(save_mask, places[0], reader.info, overwrite)
        masks = find_masks(places, reader, part, segmenter, device)
        configs = [
            config if found is None else replace(config, mask=found, grow=grow, invert_mask=invert_mask)
            for config, found in zip(configs, masks, strict=True)
        ]
        with suggestions_if_out_of_memory(reader.info, model_name, device, dtype, planned):
            pipe = load()
            from rvedit.editing.long_video import count_windows
            from rvedit.editing.preview import Preview

            rate = float(reader.info.frame_rate)
            drawing = Preview(pipe, preview, rate, preview_decoder) if preview else None
            windows = count_windows(pipe, num_frames, rate)
            with console.progress_bar("editing", total=windows * len(prompts)) as show:
                finished = [0.0] * len(prompts)  # windows of each instruction

                def on_progress(progress: Progress) -> None:
                    finished[progress.edit - 1] = progress.window - 1 + progress.step / progress.num_steps
                    note = f"window {progress.window}/{windows}, step {progress.step}/{progress.num_steps}"
                    if len(prompts) > 1:
                        note = f"instruction {progress.edit}/{len(prompts)}, {note}"
                    if preview:
                        note += f", preview: {preview}"
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
                    callback_on_step_end=drawing,
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
    if preview:
        text += f"\n{preview}: the preview"
    result = {
        **asdict(report),
        "seconds": round(report.seconds, 3),
        "model": model_name,
        "lora": lora or [],
        "transformer": transformer,
        "reference": reference or [],
        "instructions": prompts,
        "edited_frames": [part.first, part.stop] if part else [0, report.num_frames],
        "mask": save_mask,
        "preview": preview,
    }
    console.print_result(as_json, result, text)


def _parse_detail(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    with suppress(ValueError):
        if 0 <= (strength := 0.0 if text == "off" else float(text)) <= 1:
            return strength
    raise UserError(f"--detail {text}: give auto, off, or a number from 0 to 1")


def _check_preview(path: Path, info: VideoInfo, overwrite: bool) -> None:
    from rvedit.io.video import check_target

    if path.suffix.lower() not in (".gif", ".webp"):
        raise UserError(f"`preview` {path}: give an animated picture's name, ending in .gif or .webp")
    check_target(path, info, overwrite)


def _check_settings(model: str | None, config: EditConfig, is_batch: bool = False) -> None:
    """Check `description` and `reference_image` before a model is loaded; items may have descriptions."""
    if not (config.description or config.reference_image is not None or model):
        return  # nano reads none
    from rvedit.pipelines.loading import capabilities_of

    console.quiet_libraries()
    capabilities = capabilities_of(model or "nano")
    if capabilities is not None:
        if is_batch and capabilities.description:
            config = replace(config, description="from the item")
        capabilities.check(config)


def _edit_batch(
    batch: BatchConfig, load: Callable[[], Any], config: EditConfig, as_json: bool, ray: str | None
) -> None:
    """Edit a batch. Exit with code 1 if some items failed."""
    from rvedit.editing.batch import edit_batch, failures_path, plan_batch

    items = plan_batch(batch)
    with console.progress_bar("editing", total=len(items)) as show:
        report = edit_batch(batch, items, load, config, show, ray)
    line = f"{report.folder}: {report.edited} edited, {report.skipped} skipped (already edited)"
    if report.failures:
        name, reason = next(iter(report.failures.items()))
        line += f", {len(report.failures)} failed, see {failures_path(batch)}: {name}: {reason}"
    counts = {"edited": report.edited, "there": report.skipped, "failures": report.failures}
    console.print_result(as_json, {"folder": report.folder, **counts}, line)
    if report.failures:
        raise typer.Exit(1)
