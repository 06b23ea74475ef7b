"""The command as users meet it: real files in, real files out, and one clear line for every mistake."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from processes import rvedit

from rvedit.evaluation.measures import SUCCESS_GAIN, edit_gain, preservation
from rvedit.playground.demo import PARK as PARK_SCENE
from rvedit.playground.world import edit_mask, render

ROOT = Path(__file__).parent.parent
PARK = ROOT / "assets" / "park.mp4"
INSTRUCTION = "replace the dog with a corgi"


def decoded(path):
    with av.open(str(path)) as container:
        frames = [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [float(t) for t, _ in frames], np.stack([f for _, f in frames])


def audio_packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """Five frames of the park."""
    path = tmp_path_factory.mktemp("clips") / "short.mp4"
    _, frames = decoded(PARK)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for frame in frames[:5]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.slow
def test_the_readmes_edit(tmp_path):
    command = [sys.executable, "-m", "rvedit_cli", "edit", str(PARK), INSTRUCTION, "--compare"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    times, before = decoded(PARK)
    edited_times, after = decoded(tmp_path / "park_edited.mp4")
    assert after.shape == before.shape
    np.testing.assert_allclose(edited_times, times, atol=1e-3)
    assert audio_packets(tmp_path / "park_edited.mp4") == audio_packets(PARK)
    assert decoded(tmp_path / "park_edited_compare.mp4")[1].shape == (len(before), 512, 1026, 3)
    assert "park_edited.mp4: 33 frames, 512x512" in done.stdout
    assert "nano" in done.stderr
    assert "--model" in done.stderr
    assert "\x1b" not in done.stderr  # no progress bar where there is no terminal
    (dog,) = PARK_SCENE.things
    corgi = render(replace(PARK_SCENE, things=(replace(dog, noun="corgi"),)), len(before), 512, 512)
    region = edit_mask(before, corgi, threshold=24)  # above what the encoder of the clip changes
    assert edit_gain(before, after, corgi, region) > SUCCESS_GAIN
    assert preservation(after, corgi, region) > 20


@pytest.mark.slow
def test_json_and_seed(tmp_path, short):
    results = []
    for name, seed in (("a.mp4", 1), ("b.mp4", 1), ("c.mp4", 2)):
        done = rvedit(
            "edit",
            short,
            INSTRUCTION,
            "-o",
            name,
            "--seed",
            seed,
            "--steps",
            2,
            "--json",
            cwd=tmp_path,
            check=0,
        )
        results.append(json.loads(done.stdout))
        assert done.stderr == ""
    assert results[0]["num_frames"] == 5
    assert results[0]["output"] == "a.mp4"
    a, b, c = (decoded(tmp_path / name)[1] for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.slow
def test_still_image_and_folder_of_frames(tmp_path):
    frame = decoded(PARK)[1][0]
    Image.fromarray(frame).save(tmp_path / "photo.png")
    rvedit("edit", "photo.png", INSTRUCTION, "--steps", 2, cwd=tmp_path, check=0)
    assert Image.open(tmp_path / "photo_edited.png").size == (512, 512)
    (tmp_path / "frames").mkdir()
    for index in range(3):
        Image.fromarray(frame[:101, :77]).save(tmp_path / "frames" / f"{index}.png")
    rvedit("edit", "frames", INSTRUCTION, "--steps", 2, cwd=tmp_path, check=0)
    assert decoded(tmp_path / "frames_edited.mp4")[1].shape == (3, 101, 77, 3)


def test_model_from_the_environment(tmp_path, short):
    done = rvedit("edit", short, INSTRUCTION, cwd=tmp_path, RVEDIT_MODEL=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def broken_checkpoint(folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(ROOT / "rvedit" / "nano", folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["blocks.0.attn2.to_q.wrong"] = weights.pop("blocks.0.attn2.to_q.weight")
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.mp4", INSTRUCTION], "none.mp4"),
        (["text.mp4", INSTRUCTION], "text.mp4"),
        (["sound.m4a", INSTRUCTION], "sound.m4a"),
        (["cut.mp4", INSTRUCTION], "--allow-truncated"),
        (["short.mp4", "  "], "instruction is empty"),
        (["short.mp4", INSTRUCTION, "--model", "nowhere"], "nowhere"),
        (["short.mp4", INSTRUCTION, "--model", "empty"], "model_index.json"),
        (["short.mp4", INSTRUCTION, "--model", "broken"], "blocks.0.attn2.to_q"),
        (["short.mp4", INSTRUCTION, "-o", "there.mp4"], "--overwrite"),
        (["short.mp4", INSTRUCTION, "-o", "short.mp4", "--overwrite"], "the input itself"),
        (["short.mp4", INSTRUCTION, "-o", "text.mp4/x.mp4"], "text.mp4"),
        (["short.mp4", INSTRUCTION, "-o", "/proc/x.mp4"], "/proc"),
        (["short.mp4", INSTRUCTION, "-o", "x.doc"], ".mp4"),
        (["short.mp4", INSTRUCTION, "--device", "cuda:9"], "--device cuda:9: "),
        (["short.mp4", INSTRUCTION, "--device", "toaster"], "no such device"),
        (["short.mp4", INSTRUCTION, "--device", "meta"], "no such device"),
        (["short.mp4", INSTRUCTION, "--dtype", "fp8"], "choose one of fp32"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, short, arguments, says):
    shutil.copy(short, tmp_path / "short.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "there.mp4").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    if "broken" in arguments:
        broken_checkpoint(tmp_path / "broken")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with (
        av.open(str(PARK)) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    done = rvedit("edit", *arguments, cwd=tmp_path, check=2)
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if not line.startswith("note:")]
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_unknown_recipe_key(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 1}\n")
    done = rvedit("train", "mine.yaml", cwd=tmp_path, check=2)
    assert done.stderr.count("\n") == 1
    assert "mine.yaml: unknown key optimizer.lr: choose one of" in done.stderr


def test_help_is_instant_because_torch_stays_unloaded(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['rvedit', '--help']\n"
        "import rvedit_cli.main as m\n"
        "try: m.app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'av', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "edit" in done.stdout


def test_prepare_playground_is_deterministic_and_resumes(tmp_path):
    common = ("prepare", "playground", "--count", 3, "--num-frames", 4, "--height", 48, "--width", 64)
    rvedit(*common, "--out", "a", "--workers", 1, cwd=tmp_path, check=0)
    done = rvedit(*common, "--out", "b", "--workers", 2, "--json", cwd=tmp_path, check=0)
    assert json.loads(done.stdout)["count"] == 3
    a, b = ((tmp_path / name / "manifest.jsonl").read_text() for name in "ab")
    assert a == b
    rows = [json.loads(line) for line in a.splitlines()]
    for row in rows:
        for side in ("source", "target"):
            assert (tmp_path / "a" / row[side]).read_bytes() == (tmp_path / "b" / row[side]).read_bytes()
            assert decoded(tmp_path / "a" / row[side])[1].shape == (4, 48, 64, 3)
    kept, lost = (tmp_path / "a" / row["source"] for row in rows[:2])
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    rvedit(*common, "--out", "a", cwd=tmp_path, check=0)
    assert lost.exists()
    assert kept.stat().st_mtime_ns == stamp


def test_prepare_refuses_nonsense(tmp_path):
    assert (
        "choose one of train"
        in rvedit("prepare", "playground", "--out", "x", "--split", "dev", cwd=tmp_path, check=2).stderr
    )
    assert (
        "--count 0"
        in rvedit("prepare", "playground", "--out", "x", "--count", 0, cwd=tmp_path, check=2).stderr
    )
    assert list(tmp_path.iterdir()) == []
