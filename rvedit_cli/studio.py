"""`rvedit studio`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rvedit_cli import console
from rvedit_cli import edit_options as options

_server = partial(console.option, "Server")
_model = partial(console.option, "Models")
_AUTH_HELP = (
    "User name and password of the page, needed for every --host but this machine's own. Better set the "
    "environment variable, as others may see the arguments of a command."
)


def studio(
    model: Annotated[
        list[str] | None,
        _model(
            "Model to offer; the first is the default. Repeatable. Default: nano.",
            metavar="nano|DIR|HUB_ID|lucy|vace|ditto",
            envvar="RVEDIT_MODEL",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, _model("LoRA weights to offer. Repeatable.", metavar="FILE|HUB_ID[:WEIGHT]")
    ] = None,
    segmenter: options.Segmenter = None,
    rewrite_with: options.RewriteWith = None,
    rewrite_model: options.RewriteModel = None,
    folder: Annotated[Path, _server("Folder of the jobs, their clips and results.")] = Path("rvedit_studio"),
    host: Annotated[str, _server("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _server("Port.", min=1, max=65535)] = 7860,
    auth: Annotated[
        str | None,
        _server(_AUTH_HELP, metavar="USER:PASSWORD", envvar="RVEDIT_STUDIO_AUTH", show_envvar=True),
    ] = None,
    max_upload: Annotated[float, _server("Size limit of an upload in GB.", min=0.001)] = 2.0,
    device: console.Device = None,
    dtype: console.Dtype = None,
    offload: options.Offload = "auto",
    quantization: options.Quantization = None,
    vae_tiling: options.VaeTiling = False,
) -> None:
    """Open a page for edits on this machine: upload, instruction, mask, queue, comparison. Ctrl-C ends it."""
    from rvedit.editing.rewrite import Rewriter
    from rvedit.studio.app import serve
    from rvedit.studio.edit_job import LoadOptions
    from rvedit.studio.studio import StudioConfig

    placement: dict[str, Any] = {"offload": offload, "quantization": quantization, "vae_tiling": vae_tiling}
    config = StudioConfig(
        folder,
        tuple(model or ("nano",)),
        tuple(lora or ()),
        LoadOptions(device, dtype, **placement, segmenter=segmenter),
        Rewriter.find(rewrite_with, rewrite_model, device),
        host,
        port,
        auth,
        max_upload,
    )
    serve(
        config, lambda url: typer.echo(f"{url}: open it in a browser; jobs are in {folder}; Ctrl-C ends it")
    )
