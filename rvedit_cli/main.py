"""`rvedit`: the Typer app, and how its errors are printed."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from rvedit.io.errors import Interrupted, UserError, one_line
from rvedit.io.signals import exit_code, stop_as_by_ctrl_c
from rvedit_cli import console
from rvedit_cli.analyze import analyze
from rvedit_cli.caption import caption
from rvedit_cli.edit import edit
from rvedit_cli.judge import judge
from rvedit_cli.prepare import prepare
from rvedit_cli.studio import studio
from rvedit_cli.train import train

OUT_OF_MEMORY = (
    "out of GPU memory: for `rvedit edit` try --offload model or group, --vae-tiling or --quantize nf4 "
    "(--plan --card GB shows what fits); in a recipe set gradient_checkpointing, accumulation or "
    "parallel: fsdp2"
)

PARAMETERS = {"num_inference_steps": "--steps", "guidance_scale": "--guidance", "quantization": "--quantize"}
"""Flags of library parameters that have another name on the command line."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for _command in (edit, caption, train, studio):
    app.command(cls=console.PanelCommand)(_command)
app.add_typer(prepare, name="prepare")
app.add_typer(judge, name="judge")
app.add_typer(analyze, name="analyze")


def _print_version(is_set: bool) -> None:
    if is_set:
        from rvedit import __version__

        typer.echo(f"rvedit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Edit video by instruction with a routed video diffusion transformer."""
    if debug:
        os.environ["RVEDIT_DEBUG"] = "1"


def with_flags(message: str) -> str:
    """Replace parameter names in backticks by their flags: `dtype` -> --dtype."""
    flags = dict(PARAMETERS)
    commands: list[Any] = [typer.main.get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        options = [param for param in command.params if param.param_type_name == "option"]
        flags |= {option.name: max(option.opts, key=len) for option in options}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), message)


def main() -> None:
    """Run the app.

    A user error prints one line and exits with code 2, a signal exits with 128 + its number: 130 for Ctrl-C.
    """
    stop_as_by_ctrl_c()
    warnings.showwarning = console.show_warning
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # diffusers and peft import these if they are installed, and they warn of kernels for other machines.
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
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
        console.say(f"rvedit: {with_flags(str(stop))}")
        sys.exit(stop.code)
    except OSError as error:
        if error.filename is None or os.environ.get("RVEDIT_DEBUG"):
            raise
        reason = f"{error.filename}: {error.strerror}: check the name, its permissions and the disk"
        console.say(f"rvedit: {one_line(reason)}")
        sys.exit(2)
    except Exception as error:
        if not console.is_out_of_memory(error) or os.environ.get("RVEDIT_DEBUG"):
            raise
        console.say(f"rvedit: {OUT_OF_MEMORY}")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code != 130:  # Typer's exit code for Ctrl-C
            raise
        console.say("rvedit: interrupted; no partial output was left")
        sys.exit(exit_code())
