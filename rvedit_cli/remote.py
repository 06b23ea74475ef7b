"""`rvedit edit --server`: send an edit to a studio on another machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

_VALUES = (
    "model", "preserve", "grow", "invert_mask", "start", "stop", "fade", "steps", "guidance", "seed",
)  # fmt: skip
"""Options with the same name in `EditRequest`."""
_OTHERS = (
    "source", "instructions", "output", "overwrite", "as_json", "lora", "detail", "description", "reference",
    "mask", "region", "rewrite", "rewrite_with", "rewrite_model", "yes", "server",
)  # fmt: skip


def edit_on_server(context: typer.Context, instructions: Sequence[str], detail: Any) -> None:
    """Send the edit of a command to its `--server`, wait, and write the clip that comes back."""
    from rvedit.editing.edit_file import checked_instructions, default_output
    from rvedit.io.video import VideoReader, check_target
    from rvedit.studio.remote import RemoteStudio
    from rvedit.studio.request import EditFiles, EditRequest

    given = context.params
    refused = [
        max(param.opts, key=len)
        for param in context.command.params
        if param.name not in (*_VALUES, *_OTHERS) and _is_given(context, str(param.name))
    ]
    if refused:
        raise UserError(
            f"--server: leave out {', '.join(refused)}: the studio decides this, or does not do it"
        )
    source: Path | None = given["source"]
    if source is None or source.is_dir():
        raise UserError("--server: give a clip or a picture, which is sent there")
    values: dict[str, Any] = {name: given[name] for name in _VALUES}
    if not _is_given(context, "model"):  # RVEDIT_MODEL is about this machine
        values["model"] = None
    values["instructions"] = checked_instructions(instructions)
    values |= {"lora": given["lora"] or [], "detail": detail, "description": given["description"] or []}
    values["region"] = _only(given, "region")
    EditRequest.parse(values)
    with VideoReader(source) as reader:
        output = given["output"] or default_output(reader.info)
        suffix = default_output(reader.info).suffix
        if output.suffix.lower() != suffix:
            raise UserError(f"`output` {output}: a studio returns {suffix}: give a name that ends so")
        check_target(output, reader.info, given["overwrite"])
    files = EditFiles(source, source.name, _only(given, "mask"), _only(given, "reference"))
    studio = RemoteStudio(given["server"].rstrip("/"), os.environ.get("RVEDIT_STUDIO_AUTH"))
    with console.progress_bar("editing", total=100) as show:

        def on_progress(job: Mapping[str, Any]) -> None:
            progress = job["progress"] or {}
            show(100 * progress.get("share", 0), note=progress.get("stage", job["state"]))

        job = studio.edit(values, files, output, on_progress)
    size = f"{job['width']}x{job['height']}"
    text = f"{output}: {job['num_frames']} frames, {size}, {job['seconds']:.1f} s on {studio.url}"
    console.print_result(given["as_json"], {"output": output, "server": studio.url, **job}, text)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _only(given: Mapping[str, Any], name: str) -> Any:
    values = given[name] or [None]
    if len(values) > 1:
        raise UserError(f"--{name}: with --server give it once")
    return values[0]
