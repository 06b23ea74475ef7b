"""`rvedit`: the app, and how errors reach the user."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Annotated, Any

import typer

from rvedit.io.errors import Interrupted, UserError
from rvedit_cli import console
from rvedit_cli.analyze import analyze
from rvedit_cli.caption import caption
from rvedit_cli.edit import edit
from rvedit_cli.judge import judge
from rvedit_cli.prepare import prepare
from rvedit_cli.train import train

NO_ROOM = (
    "in `rvedit edit` try --offload model or group, --vae-tiling or --quantize nf4: --plan --card GB says "
    "what fits; in a recipe gradient_checkpointing, accumulation or parallel: fsdp2"
)

PARAMETERS = {"num_inference_steps": "--steps", "guidance_scale": "--guidance", "quantization": "--quantize"}
"""Flags of parameters that the library calls by another name."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command(cls=console.PanelCommand)(edit)
app.command()(caption)
app.command()(train)
app.command()(judge)
app.add_typer(prepare, name="prepare")
app.add_typer(analyze, name="analyze")


def _version(wanted: bool) -> None:
    if wanted:
        from rvedit import __version__

        typer.echo(f"rvedit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where something fails.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Edit video by instruction, with a diffusion transformer that reasons inside its backbone."""
    if debug:
        os.environ["RVEDIT_DEBUG"] = "1"


def with_flags(message: str) -> str:
    """Write the parameters that a message of the library names in backticks as flags: `dtype` -> --dtype."""
    flags = dict(PARAMETERS)
    commands: list[Any] = [typer.main.get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        options = [param for param in command.params if param.param_type_name == "option"]
        flags |= {option.name: max(option.opts, key=len) for option in options}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), message)


def main() -> None:
    """Run the app: what a user can mend is one line and exit code 2, an interruption is 130."""
    warnings.showwarning = console.show_warning
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # diffusers imports torchao wherever that is installed, which complains of kernels for other GPUs.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        if os.environ.get("RVEDIT_DEBUG"):
            raise
        console.say(f"rvedit: {with_flags(str(error))}")
        sys.exit(2)
    except Interrupted as stop:
        console.say(f"rvedit: {stop}")
        sys.exit(stop.code)
    except Exception as error:
        if not console.is_out_of_memory(error) or os.environ.get("RVEDIT_DEBUG"):
            raise
        console.say(f"rvedit: the device's memory is full: {NO_ROOM}")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # how typer ends on Ctrl-C
            console.say("rvedit: interrupted; nothing half-written is left")
        raise
