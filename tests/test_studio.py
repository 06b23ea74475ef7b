"""The studio without its server: queue, requests, uploads, and what the guard refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip
from conftest import random_clip
from PIL import Image
from processes import rvedit
from studio_server import ROOT, free_port, until

from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, probe
from rvedit.studio.app import check_config
from rvedit.studio.edit_job import JobEditor, LoadOptions, write_view
from rvedit.studio.guard import Guard
from rvedit.studio.jobs import Job, JobStore
from rvedit.studio.remote import RemoteStudio
from rvedit.studio.request import EditFiles, EditRequest, command_line
from rvedit.studio.studio import Studio, StudioConfig
from rvedit.studio.uploads import canvas_of, check_upload, strip_of, write_drawn_mask
from rvedit.studio.worker import Worker

REQUEST = EditRequest(instructions=("make it sepia",), model="nano", seed=3)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "park.mp4"
    write_clip(path, random_clip(9, 64, 96))
    return path


@pytest.fixture
def upload(tmp_path: Path, clip: Path) -> Path:
    """A clip where Gradio puts uploads, of a studio in `tmp_path / "jobs"`."""
    folder = tmp_path / "uploads" / "0a1b"
    folder.mkdir(parents=True)
    return clip.rename(folder / clip.name)


def test_jobs_outlive_their_server_and_a_running_one_is_queued_again(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    first, second = (store.add(REQUEST, EditFiles(clip, "park.mp4")) for _ in range(2))
    store.update(first.id, state="done", output="result.mp4")
    store.update(second.id, state="running")
    store._lock.release()  # as the end of the process does
    again = JobStore(tmp_path / "jobs")
    assert [job.state for job in again.jobs()] == ["done", "queued"]
    assert again.jobs()[0].request == REQUEST
    assert again.next_queued() == again.get(second.id)


def test_a_folder_that_holds_no_job_is_left_out(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    broken, whole = (store.add(REQUEST, EditFiles(clip, "park.mp4")) for _ in range(2))
    (store.folder(broken) / "job.json").write_text('{"id": ')
    (store.root / "notes").mkdir()
    store._lock.release()
    with pytest.warns(UserWarning, match="is left out"):
        assert [job.id for job in JobStore(tmp_path / "jobs").jobs()] == [whole.id]


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    with pytest.raises(UserError, match="another `rvedit studio` uses it"):
        JobStore(store.root)


def test_a_job_shows_its_own_files_only(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job = store.add(REQUEST, EditFiles(clip, "park.mp4"))
    (store.root / "secret.txt").write_text("secret")
    assert store.file(job.id, "source.mp4").read_bytes() == clip.read_bytes()
    for name in ("job.json", "../secret.txt", "/etc/passwd", "result.mp4", ""):
        with pytest.raises(UserError, match="has no file"):
            store.file(job.id, name)
    with pytest.raises(UserError, match=r"^no job \.\.: see /jobs"):
        store.file("..", "secret.txt")


def test_a_job_that_was_cancelled_stays_so_when_its_edit_ends(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job = store.add(REQUEST, EditFiles(clip, "park.mp4"))
    store.update(job.id, state="cancelled")
    assert not store.update(job.id, "running", state="done")
    assert store.get(job.id).state == "cancelled"
    assert Job.from_json(json.loads((store.folder(job) / "job.json").read_text())) == store.get(job.id)


def test_a_job_whose_folder_was_deleted_is_forgotten(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    gone, kept = (store.add(REQUEST, EditFiles(clip, "park.mp4")) for _ in range(2))
    shutil.rmtree(store.folder(gone))
    with pytest.raises(UserError, match=f"^no job {gone.id}: see /jobs for the ids$"):
        store.get(gone.id)
    assert store.jobs() == [kept]
    later = store.add(REQUEST, EditFiles(clip, "park.mp4"))
    assert kept.id[:22] < later.id[:22]  # ids stay in the order of the jobs


def test_a_job_that_cannot_be_queued_leaves_nothing(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job = store.add(REQUEST, EditFiles(clip, "park.mp4"))
    before = sorted(store.root.iterdir())
    with pytest.raises(UserError, match=r"^park\.mp4: cannot be queued"):
        store.add(REQUEST, EditFiles(clip, "park.mp4", mask=tmp_path / "deleted.png"))
    assert sorted(store.root.iterdir()) == before
    assert store.jobs() == [job]


def test_the_queue_goes_on_after_a_job_that_cannot_be_written(tmp_path: Path, clip: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    worker = Worker(store, LoadOptions("cpu"))
    jobs = [store.add(REQUEST, EditFiles(clip, "park.mp4")) for _ in range(3)]
    for job in (jobs[0], jobs[2]):  # cannot be replaced by a file, as on a disk that is full
        (store.folder(job) / "job.json").unlink()
        (store.folder(job) / "job.json").mkdir()
    shutil.rmtree(store.folder(jobs[1]))

    def run() -> None:
        worker.start()
        until(lambda: store.next_queued() is None, 10)

    with pytest.warns(UserWarning, match="is given up"):
        run()
    assert [(job.id, job.state) for job in store.jobs()] == [(jobs[0].id, "failed"), (jobs[2].id, "failed")]
    assert "cannot be written" in str(store.get(jobs[2].id).error)


def test_a_cancel_does_not_close_what_another_thread_reads(tmp_path: Path) -> None:
    worker = Worker(JobStore(tmp_path / "jobs"), LoadOptions("cpu"))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=wait, args=([theirs],), daemon=True)
    process.start()
    theirs.close()
    worker._child = process, ours
    worker.stop()
    assert not process.is_alive()
    with pytest.raises(EOFError):  # an OSError or a TypeError, if it were closed here
        ours.recv()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instructions": []}, "instructions .*: give another value"),
        ({}, "instructions: field required: give it"),
        ({"instructions": ["  "]}, "instructions.0   : string should have .*: give another value"),
        ({"instructions": ["a"], "seed": -1}, "seed -1: input should be .*: give another value"),
        ({"instructions": ["a"], "steps": "many"}, "steps many: input should be .*: give another value"),
        ({"instructions": ["a"], "detail": 3}, "detail 3: input should be .*: give another value"),
        (
            {"instructions": ["a"], "output": "/etc/passwd"},
            "output /etc/passwd: extra inputs are not permitted: leave it out",
        ),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        EditRequest.parse(values)


def test_the_command_has_every_setting() -> None:
    request = EditRequest(
        instructions=("make the man's hat red", "make it night"), model="DIR",
        lora=("a.safetensors:0.5", "b"), seed=4, steps=9, guidance=2.5, preserve=True,
        detail=0.5, description=("x", "y"),
        region="the hat", grow=3, invert_mask=True, start="0.5", stop="9f", fade=0.25,
    )  # fmt: skip
    files = EditFiles(Path("source.mp4"), "my clip.mp4", reference=Path("reference.png"))
    words = shlex.split(command_line(request, files))
    assert words[:5] == ["rvedit", "edit", "my clip.mp4", "make the man's hat red", "make it night"]
    for pair in (
        "--model DIR", "--lora a.safetensors:0.5", "--lora b", "--seed 4", "--steps 9", "--guidance 2.5",
        "--detail 0.5", "--description x", "--description y", "--reference reference.png", "--grow 3",
        "--from 0.5", "--to 9f", "--fade 0.25",
    ):  # fmt: skip
        assert pair in " ".join(words)
    assert words[words.index("--region") + 1] == "the hat"
    assert {"--preserve", "--invert-mask"} < set(words)
    dashed = command_line(REQUEST, EditFiles(Path("source.mp4"), "-x.mp4"))
    assert dashed == "rvedit edit --seed 3 -- -x.mp4 'make it sepia'"


@pytest.mark.slow
def test_the_command_does_what_the_job_did(tmp_path: Path, clip: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.tri(64, 96, dtype=np.uint8) * 255).save(mask)
    request = REQUEST.model_copy(update={"start": "2f", "detail": 0.5})
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "source.mp4").write_bytes(clip.read_bytes())
    (folder / "mask.png").write_bytes(mask.read_bytes())
    reports: list[dict[str, Any]] = []
    files = EditFiles(folder / "source.mp4", "park.mp4", folder / "mask.png")
    values = JobEditor(LoadOptions("cpu"))(request, files, reports.append)
    assert values["num_frames"] == 9
    assert reports[0]["stage"] == "loading the model"
    assert reports[-2]["share"] == 1.0
    assert {"window", "windows", "step", "steps", "seconds_left"} < reports[1].keys()
    _, *words = shlex.split(command_line(request, files))
    rvedit(*words, "--device", "cpu", cwd=tmp_path, check=0)
    assert (tmp_path / "park_edited.mp4").read_bytes() == (folder / "result.mp4").read_bytes()


@pytest.mark.slow
def test_an_edit_outlives_a_view_that_cannot_be_written(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "view.mp4").mkdir()
    reports: list[dict[str, Any]] = []
    with pytest.warns(UserWarning, match=r"^park\.mp4: the page shows no view"):
        values = JobEditor(LoadOptions("cpu"))(REQUEST, EditFiles(clip, clip.name), reports.append)
    assert reports[-1]["edited"] == values
    assert probe(tmp_path / values["output"]).num_frames == 9


def _report_and_die(connection: Any) -> None:
    connection.recv()
    connection.send(("progress", {"stage": "writing the view", "edited": {"output": "result.mp4"}}))


def test_an_edit_outlives_its_process_and_has_no_view(tmp_path: Path, clip: Path) -> None:
    studio = Studio(StudioConfig(tmp_path / "jobs"))
    job = studio.store.add(REQUEST, EditFiles(clip, "park.mp4"))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_report_and_die, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    studio.worker._child = process, ours
    studio.worker.start()
    until(lambda: studio.store.get(job.id).state not in ("queued", "running"), 30)
    files = studio.describe(studio.store.get(job.id))["files"]
    assert files.keys() == {"source", "output"}
    (studio.store.folder(job) / "view.mp4").touch()
    assert "view" in studio.describe(studio.store.get(job.id))["files"]


@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
def test_a_view_shows_source_and_edit_in_even_halves(tmp_path: Path, size: tuple[int, int]) -> None:
    before, after, view = (tmp_path / name for name in ("before.mkv", "after.gif", "view.mp4"))
    height, width = size
    for path, value in ((before, 60), (after, 200)):
        from rvedit.io.video import write_clip as write

        write(path, np.full((3, height, width, 3), value, np.uint8), 10)
    write_view(before, after, view)
    info = probe(view)
    assert (info.width % 4, info.height % 2, info.num_frames, info.pix_fmt) == (0, 0, 3, "yuv420p")
    with VideoReader(view) as reader:
        frame = next(iter(reader)).frame
    half = info.width // 2
    assert abs(int(frame[:, : half - 2].mean()) - 60) < 6
    assert abs(int(frame[:, half + 2 :].mean()) - 200) < 6


def test_uploads_are_files_of_their_folder(tmp_path: Path, upload: Path) -> None:
    uploads = upload.parents[1]
    assert check_upload(upload, uploads) == upload
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(upload.read_bytes())
    (uploads / "link.mp4").symlink_to(secret)
    for path in (secret, uploads / ".." / "secret.mp4", uploads / "link.mp4", "/etc/passwd", uploads, ""):
        with pytest.raises(UserError, match="does not have this upload"):
            check_upload(path, uploads)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\n",
        "ffconcat version 1.0\nfile /etc/passwd\n",
        '<?xml version="1.0"?><MPD type="static"><BaseURL>file:///etc/</BaseURL></MPD>',
        "v=0\nm=video 5004 RTP/AVP 96\nc=IN IP4 10.0.0.1\n",
    ],
)
def test_playlists_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(text.encode() + b"\0" * 20)
    with pytest.raises(UserError, match="is a playlist"):
        check_upload(path, tmp_path)


def test_a_strip_and_a_canvas_show_the_clip(clip: Path) -> None:
    strip = strip_of(clip)
    assert (strip["num_frames"], strip["width"], strip["height"]) == (9, 96, 64)
    assert len(strip["frames"]) == 8
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in strip["frames"])
    with VideoReader(clip) as reader:
        frames = [timed.frame for timed in reader]
    for moment, number in ((None, 0), ("4f", 4), ("0.5", 6), ("100", 8)):
        assert np.array_equal(canvas_of(clip, moment), frames[number])


def test_a_drawing_becomes_a_mask_of_the_clip(tmp_path: Path, clip: Path) -> None:
    layer = np.zeros((32, 48, 4), np.uint8)
    assert not write_drawn_mask([layer], clip, tmp_path / "mask.png")
    layer[8:16, 12:24] = 255
    assert write_drawn_mask([layer, np.zeros_like(layer)], clip, tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (64, 96)
    assert mask[16:32, 24:48].min() == 255
    assert int((mask > 0).sum()) == 16 * 24


def test_only_what_the_server_offers_is_loaded(tmp_path: Path, clip: Path) -> None:
    studio = Studio(StudioConfig(tmp_path / "jobs", models=("nano", "DIR"), loras=("a",)))
    path = studio.store.uploads / clip.name
    clip.rename(path)
    job = studio.submit({"instructions": ["make it sepia"], "model": "DIR", "lora": ["a"]}, path)
    assert studio.store.get(job.id).request.model == "DIR"
    assert studio.submit({"instructions": ["make it sepia"]}, path).request.model == "nano"
    for values in ({"model": "/etc"}, {"lora": ["/etc/passwd"]}):
        with pytest.raises(UserError, match="choose one that this server offers"):
            studio.submit({"instructions": ["make it sepia"], **values}, path)
    again = studio.again(job.id)
    assert again.request.seed != job.request.seed
    assert again.request.model_copy(update={"seed": job.request.seed}) == job.request


def test_a_file_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    studio = Studio(StudioConfig(tmp_path / "jobs"))
    path = studio.store.uploads / "clip.mp4"
    path.write_bytes(b"no clip at all" * 100)
    with pytest.raises(UserError, match=r"^clip\.mp4"):
        studio.submit({"instructions": ["make it sepia"]}, path)
    assert studio.store.jobs() == []


def test_other_addresses_need_a_password(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(UserError, match="other machines reach this address"):
            check_config(StudioConfig(tmp_path, host=host))
    for auth in ("", "user", "user:", ":password"):
        with pytest.raises(UserError, match="user:password"):
            check_config(StudioConfig(tmp_path, auth=auth))


def ask(
    guard: Guard, headers: dict[str, str], method: str = "GET", path: str = "/", body: bytes = b""
) -> int:
    """Return the status of a response."""
    messages = [{"type": "http.request", "body": body[n : n + 10]} for n in range(0, max(1, len(body)), 10)]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded}
    asyncio.run(guard(scope, receive, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


async def reading_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, then answers."""
    size, expected = 0, int(dict(scope["headers"]).get(b"x-size", b"0"))
    while size < expected:
        size += len((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_without_gradio_the_remedy_is_said(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio_client", None)
    files = EditFiles(clip, clip.name)
    with pytest.raises(UserError, match=r"pip install 'rvedit\[ui\]'"):
        RemoteStudio("http://127.0.0.1:1").edit({"instructions": ["make it sepia"]}, files, clip)


def test_an_edit_that_cannot_be_fetched_is_said_with_its_address(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"^{url}/jobs/x/result.mp4: the edit is done, .*: get it from"):
        RemoteStudio(url)._download("/jobs/x/result.mp4", tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_helping_process_ends_with_a_killed_server(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path;"
        "from rvedit.studio.studio import Studio, StudioConfig;"
        "print(Studio(StudioConfig(Path(sys.argv[1])))._help(os.getpid), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "jobs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        helper = Path("/proc") / server.stdout.readline().strip() / "stat"
        assert helper.exists()
        server.kill()
    until(lambda: not helper.exists() or ") Z " in helper.read_text(), 10)


def test_hosts_and_origins() -> None:
    guard = Guard(reading_app, 100)
    local = {"Host": "127.0.0.1:7860"}
    assert ask(guard, local) == 200
    assert ask(guard, {"Host": "[::1]:7860"}) == 200
    assert ask(guard, {**local, "Origin": "http://127.0.0.1:7860"}, "POST") == 200
    assert ask(guard, {"Host": "evil.example:7860"}) == 421  # a name that points to this machine
    assert ask(guard, {}) == 421
    for origin in ("http://evil.example", "http://127.0.0.1:8000", "null"):
        assert ask(guard, {**local, "Origin": origin}, "POST") == 403
    for site in ("cross-site", "same-site"):
        assert ask(guard, {**local, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}) == 403
        assert ask(guard, {**local, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == 200  # a link
        assert ask(guard, {**local, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}, "POST") == 403
    for route in ("file=http", "file=https", "file/http", "file/https", "proxy=http"):
        path = f"/gradio_api/{route}://10.0.0.1/"
        assert ask(guard, local, path=path) == 403


def test_passwords() -> None:
    guard = Guard(reading_app, 100, "ann:pässword")

    def basic(text: str) -> dict[str, str]:
        return {"Host": "gpu:7860", "Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    assert ask(guard, basic("ann:pässword")) == 200
    for text in ("ann:password", "ann:", "bob:pässword", "ann"):
        assert ask(guard, basic(text)) == 401
    assert ask(guard, {"Host": "gpu:7860"}) == 401
    assert ask(guard, {"Host": "gpu:7860", "Authorization": "Bearer x"}) == 401


def test_sizes_with_and_without_a_stated_length() -> None:
    guard = Guard(reading_app, 100)
    local = {"Host": "localhost"}
    assert ask(guard, {**local, "X-Size": "90", "Content-Length": "90"}, "POST", body=b"x" * 90) == 200
    assert ask(guard, {**local, "X-Size": "110", "Content-Length": "110"}, "POST", body=b"x" * 110) == 413
    assert ask(guard, {**local, "X-Size": "110"}, "POST", body=b"x" * 110) == 413
