"""The studio: a queue of edits, and what its page and its API may ask for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rvedit.editing.rewrite import NO_SERVER, Rewriter
from rvedit.io.errors import UserError, one_line
from rvedit.io.video import VideoReader, probe
from rvedit.studio.edit_job import LoadOptions
from rvedit.studio.jobs import PREVIEW, VIEW, Job, JobStore
from rvedit.studio.request import EditFiles, EditRequest
from rvedit.studio.uploads import check_upload
from rvedit.studio.worker import Worker

_MAX_NAME = 120


@dataclass(frozen=True)
class StudioConfig:
    """Settings of `rvedit studio`."""

    folder: Path = Path("rvedit_studio")
    """Where the jobs are kept."""
    models: tuple[str, ...] = ("nano",)
    """Models to choose from; the first is the default."""
    loras: tuple[str, ...] = ()
    """LoRA weights to choose from."""
    loading: LoadOptions = field(default_factory=LoadOptions)
    rewriter: Rewriter | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    auth: str | None = None
    """`user:password`; needed for every host but this machine's own addresses."""
    max_upload_gb: float = 2.0


class Studio:
    """The jobs of a folder, and the worker that edits them."""

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.store = JobStore(config.folder)
        self.worker = Worker(self.store, config.loading)
        self._helper: ProcessPoolExecutor | None = None

    def submit(
        self,
        values: Mapping[str, Any],
        source: str | Path,
        mask: str | Path | None = None,
        reference: str | Path | None = None,
    ) -> Job:
        """Queue an edit of uploaded files. Raises UserError for files or values that cannot be edited."""
        request = EditRequest.parse(values)
        request = request.model_copy(update={"model": request.model or self.config.models[0]})
        self._check_offered(request)
        clip, picture, still = (
            None if path is None else check_upload(path, self.store.uploads)
            for path in (source, mask, reference)
        )
        assert clip is not None
        try:
            with VideoReader(clip):  # what is damaged is refused before it waits
                pass
            for path in (picture, still):
                if path is not None:
                    probe(path)
        except UserError as error:
            raise UserError(str(error).replace(f"{self.store.uploads}/", "")) from None
        return self.store.add(request, EditFiles(clip, one_line(clip.name)[-_MAX_NAME:], picture, still))

    def again(self, job_id: str) -> Job:
        """Queue a job once more with another seed."""
        job = self.store.get(job_id)
        request = job.request.model_copy(update={"seed": random.randrange(1, 100_000)})
        return self.store.add(request, job.files(self.store.folder(job)))

    def describe(self, job: Job) -> dict[str, Any]:
        """Return what the page and the API say of a job; files by the addresses where they are served."""
        folder = self.store.folder(job)
        names = {
            "source": job.source,
            "mask": job.mask,
            "reference": job.reference,
            "output": job.output,
            "view": VIEW if job.state == "done" and (folder / VIEW).is_file() else None,
            "preview": PREVIEW if job.state == "running" and (folder / PREVIEW).is_file() else None,
        }
        return {
            "id": job.id,
            "state": job.state,
            "name": job.name,
            **job.request.model_dump(mode="json"),
            "error": job.error,
            "seconds": job.seconds,
            "num_frames": job.num_frames,
            "width": job.width,
            "height": job.height,
            "command": job.command,
            "download_name": job.download_name,
            "progress": dict(self.worker.progress) if job.state == "running" else None,
            "files": {kind: f"/jobs/{job.id}/{name}" for kind, name in names.items() if name},
        }

    def plan(self, values: Mapping[str, Any], source: str | Path) -> str:
        """Return what an edit needs, in words. Loads no weights."""
        request = EditRequest.parse(values)
        request = request.model_copy(update={"model": request.model or self.config.models[0]})
        self._check_offered(request)
        return self._help(_plan_words, check_upload(source, self.store.uploads), request, self.config.loading)

    def rewrite(self, instruction: str, source: str | Path | None) -> list[str]:
        """Return the instruction, made precise or in steps, for the user to change."""
        if self.config.rewriter is None:
            raise UserError(NO_SERVER)
        clip = None if source is None else check_upload(source, self.store.uploads)
        return self._help(self.config.rewriter.rewrite, instruction, clip)

    def stop(self) -> None:
        """End the child processes, whatever they do."""
        self.worker.stop()
        for child in active_children():
            child.kill()

    def _help(self, function: Any, *arguments: Any) -> Any:
        """Run a function in a process of its own, as it imports torch, and must not slow down the page."""
        if self._helper is None:
            self._helper = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=_end_with_the_server
            )
        try:
            return self._helper.submit(function, *arguments).result()
        except BrokenProcessPool:
            self._helper = None
            raise UserError("the helping process ended: memory ran out, perhaps: try again") from None

    def _check_offered(self, request: EditRequest) -> None:
        """Raise UserError for a model or adapter that the server does not offer: a name may be a path."""
        offered = {"model": self.config.models, "lora": self.config.loras}
        for kind, names in offered.items():
            value = getattr(request, kind)
            for name in (value,) if kind == "model" else value:
                if name not in names:
                    offer = ", ".join(names) or "none"
                    raise UserError(f"{kind} {name}: choose one that this server offers ({offer})")


def _end_with_the_server() -> None:
    """End this process when the server ends, even by a kill."""
    server = parent_process()
    assert server is not None

    def follow() -> None:
        wait([server.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _plan_words(path: Path, request: EditRequest, loading: LoadOptions) -> str:
    """Return memory and time of an edit; runs in the helping process."""
    from rvedit.editing.plan_edit import plan_edit

    info = probe(path)
    options = {
        "offload": loading.offload,
        "quantization": loading.quantization,
        "vae_tiling": loading.vae_tiling,
        "steps": request.steps,
        "guidance": request.guidance,
        "reconstruct": request.preserve or request.detail != 0,
    }
    planned = plan_edit(info, request.model or "nano", loading.device, loading.dtype, options)
    plan, (_, seconds) = planned.plan, planned.seconds
    seconds *= len(request.instructions)
    height, width = plan.size
    windows = f"{plan.windows} window{'s' * (plan.windows > 1)} of {plan.steps} steps at {width}×{height}"
    host = "" if planned.device == "cpu" else f" and {plan.host_bytes / 1e9:.2g} GB of host memory"
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    memory = f"{plan.device_bytes / 1e9:.2g} GB of memory{host}"
    return (
        f"{request.model} on {planned.device}: {memory}, about {time} ({windows}). An estimate: nothing was "
        "loaded."
    )
