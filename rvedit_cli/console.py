"""What people see: lines and progress bars go to stderr, results to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.progress import Progress


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


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as one line; those of libraries are for their developers."""
    if category is UserWarning and "/rvedit" in filename.replace("\\", "/"):
        say(f"rvedit: {message}")


def is_out_of_memory(error: Exception) -> bool:
    """Told by its name: torch may not have been imported."""
    return type(error).__name__ == "OutOfMemoryError"


def quiet_libraries() -> None:
    """No progress bars of their own from the libraries that read weights."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr, silent where that is no terminal."""
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
        yield progress
