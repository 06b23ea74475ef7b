"""A running studio: what it refuses, its API, and a kill in the middle of an edit."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from clips import write_clip
from conftest import random_clip
from processes import rvedit
from studio_server import ROOT, StudioServer, until

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow
PARK = ROOT / "assets" / "park.mp4"
AUTH = "ann:secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    folder = tmp_path_factory.mktemp("studio") / "jobs"
    with StudioServer(folder, "--max-upload", "0.001") as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "small.mp4"
    write_clip(path, random_clip(9, 64, 64))
    return path


def request(
    server: StudioServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Return status and body; the path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def multipart(name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}


def upload(server: StudioServer, name: str, data: bytes) -> str:
    body, headers = multipart(name, data)
    status, reply = request(server, "POST", "/gradio_api/upload", body, **headers)
    assert status == 200, reply
    return str(json.loads(reply)[0])


def call(server: StudioServer, endpoint: str, *values: Any) -> tuple[int, Any]:
    if endpoint == "edit":  # options, mask and reference picture may be left out by gradio_client alone
        values = (*values, *(None,) * (5 - len(values)))
    body = json.dumps({"data": values}).encode()
    status, reply = request(
        server, "POST", f"/gradio_api/run/{endpoint}", body, Content_Type="application/json"
    )
    return status, json.loads(reply)


def jobs_on_disk(server: StudioServer) -> list[dict[str, Any]]:
    """Return the jobs as their folders have them."""
    return [json.loads(path.read_text()) for path in sorted(server.folder.glob("*/job.json"))]


def test_paths_of_other_files_are_refused(server: StudioServer, clip: Path) -> None:
    path = upload(server, "small.mp4", clip.read_bytes())
    status, reply = call(server, "edit", {"path": path}, ["make it sepia"])
    assert status == 200
    job = call(server, "job", *reply["data"])[1]["data"][0]
    assert request(server, "GET", job["files"]["source"]) == (200, clip.read_bytes())
    secret = server.folder.parent / "secret.txt"
    secret.write_text("secret")
    call(server, "cancel", job["id"])
    for name in (
        f"/jobs/{job['id']}/job.json",
        f"/jobs/{job['id']}/../../secret.txt",
        f"/jobs/{job['id']}/..%2f..%2fsecret.txt",
        f"/jobs/{job['id']}/%2e%2e%2fjob.json",
        "/jobs/../secret.txt",
        "/jobs/..%2f/secret.txt",
        f"/gradio_api/file={secret}",
        f"/gradio_api/file={server.folder}/{job['id']}/job.json",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/file/http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
    ):
        status, reply = request(server, "GET", name)
        assert status in (403, 404), name
        assert b"secret\n" not in reply
    # Nor does the page take the path of another file for an upload.
    for other in (str(secret), "/etc/passwd", f"{path}/../../../../secret.txt"):
        status, reply = call(server, "edit", {"path": other}, ["make it sepia"])
        assert status != 200
        assert "does not have this upload" in json.dumps(reply)
    for values in ({"model": "/etc"}, {"output": "/tmp/x.mp4"}):
        assert call(server, "edit", {"path": path}, ["make it sepia"], values)[0] != 200


def test_an_address_in_place_of_an_upload_is_not_fetched(server: StudioServer) -> None:
    file = {"path": "http://127.0.0.1:1/x.mp4", "meta": {"_type": "gradio.FileData"}}
    status, reply = call(server, "edit", file, ["make it sepia"])
    assert status != 200
    assert "other addresses are not fetched" in json.dumps(reply)
    assert not list(server.folder.glob(".uploads/**/x.mp4"))


def test_a_large_body_without_a_stated_length_is_refused(server: StudioServer) -> None:
    for path, kind in (
        ("/gradio_api/upload", "multipart/form-data; boundary=x"),
        ("/gradio_api/run/edit", "application/json"),
    ):
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        parts = iter([multipart("large.mp4", b"x" * 500_000)[0][:-9], b"x" * 600_000])
        connection.request("POST", path, parts, {"Content-Type": kind}, encode_chunked=True)
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:15]) == (413, b"larger than the"), path
        connection.close()


def test_a_name_of_an_upload_is_no_path(server: StudioServer, clip: Path) -> None:
    path = Path(upload(server, "../../../evil.mp4", clip.read_bytes()))
    assert path.resolve().is_relative_to(server.folder / ".uploads")
    status, reply = call(server, "edit", {"path": str(path)}, ["make it sepia"])
    assert status == 200
    call(server, "cancel", *reply["data"])
    assert sorted(entry.name for entry in server.folder.parent.iterdir()) in (
        ["jobs"],
        ["jobs", "secret.txt"],
    )


def test_large_uploads_are_refused(server: StudioServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", "1100000")
    connection.endheaders()
    assert connection.getresponse().status == 413  # before anything of it is read
    connection.close()
    body, headers = multipart("large.mp4", b"x" * 1_002_000)  # within what surrounds a file
    assert request(server, "POST", "/gradio_api/upload", body, **headers)[0] == 413
    assert not any(path.stat().st_size > 1_000_000 for path in server.folder.rglob("*.mp4"))


def test_other_origins_are_refused(server: StudioServer) -> None:
    body, headers = multipart("small.mp4", b"x")
    for origin in ("http://evil.example", "http://127.0.0.1:1", "null"):
        assert request(server, "POST", "/gradio_api/upload", body, **headers, Origin=origin)[0] == 403
        assert request(server, "GET", "/config", Origin=origin)[0] == 403
    assert request(server, "GET", "/", Host="evil.example")[0] == 421
    assert request(server, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert request(server, "POST", "/gradio_api/upload", body, **headers, Origin=server.url)[0] == 200


def test_nothing_on_the_page_comes_from_elsewhere(server: StudioServer) -> None:
    for path in ("/", "/theme.css"):
        page = request(server, "GET", path)[1].decode()
        assert not re.search(r"""(?:src|href)=["']?https?://|@import|url\(["']?https?:""", page)


def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    with StudioServer(tmp_path / "jobs", RVEDIT_STUDIO_AUTH=AUTH) as server:

        def basic(text: str) -> dict[str, str]:
            return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

        for path in (
            "/",
            "/config",
            "/jobs/x/y",
            "/gradio_api/upload",
            "/theme.css",
            "/gradio_api/startup-events",
        ):
            assert request(server, "GET", path)[0] == 401
            assert request(server, "GET", path, **basic("ann:wrong"))[0] == 401
        assert request(server, "GET", "/", **basic(AUTH))[0] == 200
        send = ("edit", PARK, "make it sepia", "--server", server.url, "--steps", 1, "-o", "out.mp4")
        refused = rvedit(*send, cwd=tmp_path, check=2, RVEDIT_STUDIO_AUTH="ann:wrong")
        assert "RVEDIT_STUDIO_AUTH" in refused.stderr
        done = rvedit(*send, "--to", "4f", cwd=tmp_path, check=0, RVEDIT_STUDIO_AUTH=AUTH)
        assert done.stdout.startswith("out.mp4: 33 frames, 512x512")
        for wrong in (
            ("--compare",),
            ("--model", "/etc"),
            ("--device", "cpu"),
            ("-o", "out.webm", "--overwrite"),
        ):
            refused = rvedit(*send[:-2], *wrong, cwd=tmp_path, check=2, RVEDIT_STUDIO_AUTH=AUTH)
            assert len(refused.stderr.splitlines()) == 1


def test_the_documented_example_of_the_api(tmp_path: Path, server: StudioServer, clip: Path) -> None:
    text = (ROOT / "docs" / "studio.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    code = example[1].replace("http://127.0.0.1:7860", server.url).replace("clip.mp4", str(clip))
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(compile(code, "docs/studio.md", "exec"), {})
    finally:
        os.chdir(here)
    assert (tmp_path / "edited.mp4").stat().st_size > 1000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_queue_comes_back_after_the_server_is_killed(
    tmp_path: Path, clip: Path, number: signal.Signals
) -> None:
    with StudioServer(tmp_path / "jobs") as server:
        first = call(server, "edit", {"path": upload(server, "a.mp4", clip.read_bytes())}, ["make it sepia"])
        done = first[1]["data"][0]
        until(lambda: call(server, "job", done)[1]["data"][0]["state"] == "done")
        paths = [upload(server, f"{name}.mp4", PARK.read_bytes()) for name in "bc"]
        running, queued = (
            call(server, "edit", {"path": path}, ["make it snow"])[1]["data"][0] for path in paths
        )
        until(lambda: (call(server, "job", running)[1]["data"][0]["progress"] or {}).get("window"))
        result = (server.folder / done / "result.mp4").read_bytes()
        server.end(number)
        states = {job["id"]: job["state"] for job in jobs_on_disk(server)}
        assert states == {done: "done", running: "running", queued: "queued"}
        assert not (server.folder / running / "result.mp4").exists()
        server.start()
        assert [job["state"] for job in call(server, "jobs")[1]["data"][0]][2] == "queued"
        until(lambda: all(job["state"] == "done" for job in jobs_on_disk(server)))
        assert (server.folder / done / "result.mp4").read_bytes() == result
        names = sorted(path.name for path in (server.folder / running).iterdir())
        assert names == ["job.json", "preview.webp", "result.mp4", "source.mp4", "view.mp4"]
