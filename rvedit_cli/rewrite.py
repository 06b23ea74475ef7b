"""`rvedit edit --rewrite`: new words for an instruction, which the user sees before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console


def rewritten(
    source: Path | None,
    instructions: Sequence[str] | None,
    address: str | None,
    model: str | None,
    device: str | None,
    is_agreed: bool,
) -> list[str]:
    """Return the instructions as a chat model wrote them and the user left them.

    On a terminal each is shown, and may be replaced. Elsewhere they are printed, and the command ends with
    code 1, unless `is_agreed`. Raises UserError if no model is set, or it does not answer.
    """
    from rvedit.editing.edit_file import checked_instructions
    from rvedit.editing.rewrite import NO_SERVER, Rewriter

    if source is None or not instructions:
        raise UserError('--rewrite: give a clip and an instruction, such as park.mp4 "make the dog nicer"')
    rewriter = Rewriter.find(address, model, device)
    if rewriter is None:
        raise UserError(f"--rewrite: {NO_SERVER}")
    lines = [line for text in checked_instructions(instructions) for line in rewriter.rewrite(text, source)]
    if is_agreed:
        console.say("edits by: " + "; ".join(lines))
        return lines
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        typer.echo("\n".join(lines))
        console.say("nothing was edited: give these words as the instructions, or add --yes")
        raise typer.Exit(1)
    console.say("Press Enter to keep the words, or type others.")
    return [
        typer.prompt(f"instruction {number}", default=line, err=True) for number, line in enumerate(lines, 1)
    ]
