"""Shared options, `--help` and printing: results go to stdout, notes and progress bars to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rvedit.io.errors import UserError, one_line

JSON_HELP = "Print the result as JSON."
DEVICE_HELP = "Device, such as cpu or cuda:1. Default: a GPU if there is one."


class PanelCommand(TyperCommand):
    """A command whose `--help` groups options by their `rich_help_panel`, in plain text.

    Typer's own panels need rich, whose import would double the time of `--help`.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order of the options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                default = "Options" if param.param_type_name == "option" else "Arguments"
                panels.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


def option(panel: str, help: str, *flags: str, **settings: Any) -> Any:
    """Return a `typer.Option` that is listed under the title `panel`."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **settings)


FILES, SAMPLING, MEMORY = "Input and output", "Sampling", "Memory and speed"

# Options of several commands.
Json = Annotated[bool, option(FILES, JSON_HELP, "--json")]
Overwrite = Annotated[bool, option(FILES, "Overwrite existing output files.", "--overwrite")]
Steps = Annotated[int | None, option(SAMPLING, "Number of denoising steps. Default: the model's own.", min=1)]
Seed = Annotated[int, option(SAMPLING, "Seed of the initial noise.")]
Device = Annotated[str | None, option(MEMORY, DEVICE_HELP)]
_DTYPE_HELP = "Dtype of the weights. Default: fp32 on a CPU, otherwise bf16."
Dtype = Annotated[str | None, option(MEMORY, _DTYPE_HELP, metavar="fp32|bf16|fp16")]
Concurrency = Annotated[int, option("Requests", "Maximum number of concurrent requests.", min=1)]
Timeout = Annotated[float, option("Requests", "Seconds that one request may take.", min=0.1)]
MaxTokens = Annotated[
    int | None, option("Requests", "Maximum number of tokens of a reply, including reasoning.", min=1)
]
_EXTRA_HELP = (
    "JSON object to merge into the body of each request, such as '{\"temperature\": 0}'; null removes a key."
)
Extra = Annotated[str | None, option("Requests", _EXTRA_HELP, metavar="JSON")]
RetryDropped = Annotated[
    bool,
    option("Requests", "Ask again where an earlier reply could not be parsed.", "--retry-dropped"),
]
LocalDevice = Annotated[
    str | None, option("Model", "With --local: device, such as cuda:1. Default: a GPU if there is one.")
]
DryRun = Annotated[
    bool, option("Requests", "Print the number of requests and tokens without sending any.", "--dry-run")
]


def check_local(local: str | None, endpoint: str | None, device: str | None) -> None:
    """Raise UserError if --local is given with the options of an endpoint, or --device without --local."""
    if local and endpoint:
        raise UserError("--local: runs on this machine: leave out --base-url and --model")
    if device and not local:
        raise UserError("--device: needs --local")


def extra_body(text: str | None, local: str | None) -> dict[str, Any]:
    """Return the object of --extra. Raises UserError if it is none, or has keys that are not allowed."""
    from rvedit.io.chat.local import TEMPLATE_OPTIONS

    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise UserError(f"--extra {text}: not a JSON object: give one such as '{{\"temperature\": 0}}'")
    if extra.keys() & {"model", "messages"}:
        raise UserError("--extra: cannot replace the model or the messages: choose a model with --model")
    if local and extra.keys() - {TEMPLATE_OPTIONS}:
        raise UserError(f"--extra: a local model accepts only {TEMPLATE_OPTIONS}: leave out the other keys")
    return extra


def print_json(result: Any) -> None:
    """Print a result as one line of JSON. Dataclasses become objects, paths become strings."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else dataclasses.asdict(value)

    typer.echo(json.dumps(result, default=plain))


def print_result(as_json: bool, result: Any, text: str) -> None:
    """Print a result as JSON, or else the text that describes it."""
    if as_json:
        print_json(result)
    else:
        typer.echo(text)


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Print rvedit's own warnings, each once; drop those of libraries, which address developers."""
    if category is UserWarning and "/rvedit" in filename.replace("\\", "/"):
        _say_once(f"rvedit: {one_line(str(message))}")


@cache
def _say_once(line: str) -> None:
    say(line)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU ran out of memory. Compares names, as torch may not have been imported."""
    return type(error).__name__ == "OutOfMemoryError"


def quiet_libraries() -> None:
    """Disable the progress bars that diffusers and transformers show while they load weights."""
    from rvedit.pipelines.loading import quiet_libraries as quiet

    quiet()


@contextmanager
def progress_bar(*names: str, total: int = 1) -> Iterator[Callable[..., None]]:
    """Show progress bars on stderr if that is a terminal; yield a function that updates one of them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=total, note="") for name in names}

        def show(
            done: float, total: int | None = None, note: str = "", name: str = names[0], visible: bool = True
        ) -> None:
            progress.update(tasks[name], completed=done, total=total, note=note, visible=visible)

        yield show
