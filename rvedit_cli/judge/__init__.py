"""`rvedit judge`: scores by default; its other subcommands work on judged folders or without a judge."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from rvedit_cli import console
from rvedit_cli.judge.agreement import agreement
from rvedit_cli.judge.arena import arena
from rvedit_cli.judge.label import label
from rvedit_cli.judge.score import score
from rvedit_cli.judge.table1 import table1


class DefaultCommandGroup(TyperGroup):
    """A group that runs its first command if the first argument names none: `rvedit judge OUTPUTS`.

    `--help` of the group is that of its first command, and lists the other commands.
    """

    @property
    def default(self) -> Any:
        """The first command."""
        return next(iter(self.commands.values()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with the name of the default command if they name none."""
        if not args or args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [self.default.name, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands that have to be named."""
        return [name for name in self.commands if name != self.default.name]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage of the default command."""
        return [*self.default.collect_usage_pieces(ctx), "| COMMAND [ARGS]..."]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the default command."""
        self.default.format_help_text(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options of the default command, and the other commands."""
        self.default.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


judge = typer.Typer(cls=DefaultCommandGroup, help="Score edits with multimodal LLMs.")
judge.command(cls=console.PanelCommand)(score)
judge.command(cls=console.PanelCommand)(agreement)
judge.command(cls=console.PanelCommand)(label)
judge.command(cls=console.PanelCommand)(arena)
judge.command(cls=console.PanelCommand)(table1)
