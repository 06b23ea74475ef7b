"""A studio on another machine, as a client."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError
from rvedit.io.temporary import atomic_path
from rvedit.studio.request import EditFiles

_PATIENCE = 60.0
"""Seconds for which a server that does not answer is asked again: it may be started anew."""


@dataclass(frozen=True)
class RemoteStudio:
    """A running `rvedit studio` at a URL; `auth` is its `user:password`."""

    url: str
    auth: str | None = field(default=None, repr=False)

    def edit(
        self,
        values: Mapping[str, Any],
        files: EditFiles,
        output: Path,
        on_progress: Callable[[Mapping[str, Any]], None] = lambda job: None,
    ) -> dict[str, Any]:
        """Edit files there, and write the result to `output`; return what the server says of the job.

        `values` are fields of `EditRequest`; `on_progress` receives the job about once a second. The job is
        cancelled if this is interrupted. Raises UserError for what the server refuses, and for its failures.
        """
        handle_file = _gradio_client().handle_file
        options = {name: value for name, value in values.items() if name != "instructions"}
        uploads = [
            None if path is None else handle_file(path)
            for path in (files.source, files.mask, files.reference)
        ]
        job_id = self._call("/edit", uploads[0], list(values["instructions"]), options, *uploads[1:])
        try:
            job = self._follow(job_id, on_progress)
        except KeyboardInterrupt:
            self._call("/cancel", job_id)
            raise
        if job["state"] != "done":
            raise UserError(f"{self.url}: job {job_id}: {job['error'] or 'was cancelled there'}")
        self._download(job["files"]["output"], output)
        return job

    def _follow(self, job_id: str, on_progress: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Return the job when it has ended."""
        last_answer = time.monotonic()
        while True:
            try:
                job: dict[str, Any] = self._call("/job", job_id)
            except UserError:
                if time.monotonic() - last_answer > _PATIENCE:
                    raise UserError(f"{self.url}: does not answer; job {job_id} may go on there") from None
            else:
                last_answer = time.monotonic()
                on_progress(job)
                if job["state"] not in ("queued", "running"):
                    return job
            time.sleep(0.5)

    @cached_property
    def _headers(self) -> dict[str, str]:
        if self.auth is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(self.auth.encode()).decode()}

    @cached_property
    def _client(self) -> Any:
        return _gradio_client().Client(
            self.url, headers=self._headers, verbose=False, download_files=False, analytics_enabled=False
        )

    def _call(self, endpoint: str, *values: Any) -> Any:
        """Call an endpoint. Raises UserError with the reason of a failure."""
        from gradio_client.exceptions import AppError

        try:
            return self._client.predict(*values, api_name=endpoint)
        except UserError:
            raise
        except AppError as error:
            raise UserError(f"{self.url}: {error}") from None
        except Exception as error:  # of the client and of its HTTP library: many kinds
            raise UserError(
                f"{self.url}: cannot be used as a studio ({_short(error)}): check the address, that `rvedit "
                "studio` runs there, and RVEDIT_STUDIO_AUTH"
            ) from None

    def _download(self, address: str, output: Path) -> None:
        import httpx

        url = self.url.rstrip("/") + address
        try:
            with (
                httpx.stream("GET", url, headers=self._headers, timeout=60) as reply,
                atomic_path(output) as part,
            ):
                reply.raise_for_status()
                with part.open("wb") as file:
                    for data in reply.iter_bytes():
                        file.write(data)
        except httpx.HTTPError as error:
            reason = _short(error).partition(" for url")[0]
            raise UserError(
                f"{url}: the edit is done, but cannot be fetched ({reason}): get it from this address"
            ) from None


def _gradio_client() -> Any:
    """Return Gradio's client. Raises UserError where it is not installed."""
    try:
        import gradio_client
    except ImportError:
        raise UserError("a studio is reached by Gradio's client: pip install 'rvedit[ui]'") from None
    return gradio_client


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
