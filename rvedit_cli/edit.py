"""`rvedit edit`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.records import Progress

NANO_NOTE = (
    "note: nano, the embedded model, knows a toy world only; for real footage name real weights with --model "
    "DIR|HUB_ID or RVEDIT_MODEL"
)


def edit(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A clip, a still image, or a folder of frames.")
    ],
    instruction: Annotated[str, typer.Argument(help='What to do, such as "replace the dog with a corgi".')],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to; by default INPUT_edited here.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="nano|DIR|HUB_ID", envvar="RVEDIT_MODEL", help="Which weights. [default: nano]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; by default the model's own.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale, 1 for none; by default the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise: equal seeds give equal edits.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write source and edit side by side.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default what is there.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp32|bf16|fp16", help="By default fp32 on a CPU, else bf16.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Edit what decodes of a damaged clip.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Edit a clip by an instruction; the result has the same length, size, timing and sound."""
    from rvedit.video import VideoReader, VideoWriter
    from rvedit.workflows.edit import (
        checked_instruction,
        comparison_output,
        default_output,
        edit_file,
    )

    # All that can be wrong with the files is said before torch is imported and a model is loaded.
    instruction = checked_instruction(instruction)
    with VideoReader(source, allow_truncated=allow_truncated) as reader:
        output = output or default_output(source)
        for path in (output, comparison_output(output)) if compare else (output,):
            VideoWriter(path, like=reader.info, overwrite=overwrite)
        from rvedit.editors import load_editor
        from rvedit.records import EditSettings

        console.quiet_libraries()
        if model is None and not as_json:
            console.say(NANO_NOTE)
        editor = load_editor(model or "nano", device, dtype)
        settings = EditSettings(num_inference_steps=steps, guidance_scale=guidance, seed=seed)
        with console.progress_bar() as bar:
            windows = editor.windows(reader.info.num_frames)
            task = bar.add_task("editing", total=windows, note="")

            def show(progress: Progress) -> None:
                done = progress.window - 1 + progress.step / progress.num_steps
                note = f"window {progress.window}/{windows}, step {progress.step}/{progress.num_steps}"
                bar.update(task, completed=done, note=note)

            report = edit_file(reader, instruction, output, editor, settings, compare, overwrite, show)
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
