"""Checkpoints by their names: what the hub refuses is one line with the remedy."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import GatedRepoError

from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints import find_checkpoint
from rvedit_cli import main


def refuse_with(monkeypatch, error):
    def snapshot_download(name, ignore_patterns):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def test_a_gated_hub_id_says_where_to_ask(monkeypatch):
    refuse_with(monkeypatch, GatedRepoError.__new__(GatedRepoError))  # its arguments are the web library's
    with pytest.raises(
        UserError, match=r"accept the terms on https://huggingface.co/owner/name and set HF_TOKEN"
    ):
        find_checkpoint("owner/name")


def test_of_the_hub_no_pickles_are_fetched(monkeypatch, tmp_path):
    """The hub's client here is a stand-in that keeps what it was asked."""
    asked = {}

    def snapshot_download(name, ignore_patterns):
        asked[name] = ignore_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_checkpoint("owner/name") == tmp_path
    (patterns,) = asked.values()
    names = ["model.safetensors", "model_index.json", "spiece.model", "merges.txt", "Wan2.2_VAE.pth", "a.bin"]
    left = [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert left == names[:4]


def test_an_unreachable_hub_is_one_line(monkeypatch):
    refuse_with(monkeypatch, ConnectionError("no route to host\nand a long story"))
    with pytest.raises(UserError) as caught:
        find_checkpoint("owner/name", "RVEDIT_WAN")
    assert str(caught.value).endswith("cannot be downloaded from the hub: no route to host")
    assert str(caught.value).startswith("RVEDIT_WAN owner/name: not a local folder")


def test_a_full_device_is_one_line(monkeypatch, capsys):
    """Raised by whatever was computing, so it is told by its name."""

    def app():
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "out of GPU memory" in said
    assert "--offload model" in said
    assert "Traceback" not in said
