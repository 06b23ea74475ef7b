"""The server of the page."""

from __future__ import annotations

import mimetypes
import os
import socket
from typing import Any

from rvedit.io.errors import UserError
from rvedit.studio.guard import LOOPBACK, Guard, refuse_downloads
from rvedit.studio.studio import Studio, StudioConfig


def check_config(config: StudioConfig) -> None:
    """Raise UserError for an address that needs a password, half of one, or a used port."""
    if config.auth is not None and not all(config.auth.partition(":")):
        raise UserError("`auth`: give a user name and a password, as user:password")
    if config.host not in LOOPBACK and config.auth is None:
        raise UserError(
            f"`host` {config.host}: other machines reach this address: set user:password by `auth`, or "
            "better by RVEDIT_STUDIO_AUTH, which no list of processes shows"
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"{config.host}:{config.port}: cannot be used ({error.strerror}): choose another `port`"
            ) from None


def create_app(studio: Studio) -> Guard:
    """Return the app: the page, the files of the jobs, and the guard in front of both."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.store.uploads)
    try:
        import gradio as gr
    except ImportError:
        raise UserError("the studio needs Gradio: pip install 'rvedit[ui]'") from None
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse

    from rvedit.studio.page import asset, build_page, theme

    refuse_downloads()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/jobs/{job_id}/{name}")
    def job_file(job_id: str, name: str, save: bool = False) -> FileResponse:
        """Serve a file of a job; with `save`, as a download."""
        try:
            path = studio.store.file(job_id, name)
        except UserError as error:
            raise HTTPException(404, str(error)) from None
        kind = mimetypes.guess_type(name)[0] or ""
        if not kind.startswith(("video/", "image/")) or kind == "image/svg+xml":
            kind = "application/octet-stream"
        saved_as = studio.store.get(job_id).download_name if save else None
        return FileResponse(path, media_type=kind, filename=saved_as, headers={"Cache-Control": "no-cache"})

    max_bytes = int(studio.config.max_upload_gb * 1e9)
    mounted = gr.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        server_name=studio.config.host,
        server_port=studio.config.port,
        footer_links=[],
        run_history=False,
        max_file_size=max_bytes,
        theme=theme(),
        css=asset("studio.css"),
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    # A multipart body has some hundred bytes around the file.
    return Guard(mounted, max_bytes + 4096, studio.config.auth)


def serve(config: StudioConfig, on_start: Any) -> None:
    """Serve until Ctrl-C. `on_start` is called with the address before."""
    import uvicorn

    check_config(config)
    studio = Studio(config)
    app = create_app(studio)
    studio.worker.start()
    name = f"[{config.host}]" if ":" in config.host else config.host
    on_start(f"http://{name}:{config.port}")
    try:
        uvicorn.run(
            app,
            host=config.host,
            port=config.port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    finally:
        studio.stop()
