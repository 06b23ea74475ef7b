"""Reference images through the driver, the command, a batch and a plan."""

from __future__ import annotations

import json
from pathlib import Path

import foreign
import numpy as np
import pytest
from conftest import edit, random_clip
from PIL import Image
from typer.testing import CliRunner

from rvedit.editing.long_video import edit_videos_together
from rvedit.editing.memory_plan import EditPlanOptions, plan_edit
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.io.video import VideoReader, read_image, write_clip
from rvedit.models.reference_images import as_pictures, pad_image
from rvedit.pipelines.checkpoints import load_checkpoint
from rvedit_cli.main import app

INSTRUCTION = "put this hat on the dog"
REFERENCE_MODEL = "linyq/kiwi-edit-5b-instruct-reference-diffusers"


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory) -> Path:
    return foreign.save_kiwi(tmp_path_factory.mktemp("kiwi") / "reference", tiny_tokenizer, False)


@pytest.fixture(scope="module")
def plain_folder(tiny_tokenizer, tmp_path_factory) -> Path:
    return foreign.save_kiwi(tmp_path_factory.mktemp("kiwi") / "plain", tiny_tokenizer)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A clip and two pictures."""
    place = tmp_path_factory.mktemp("files")
    write_clip(place / "clip.mp4", random_clip(5, 256, 256), 12)
    for seed, name in enumerate(("hat.png", "coat.png")):
        Image.fromarray(random_clip(1, 90, 60, seed=seed)[0]).save(place / name)
    return place


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, ["edit", *map(str, words)])
    return f"rc {result.exit_code}: {result.output}{result.exception or ''}"


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.stack([timed.frame for timed in reader])


def test_padding_keeps_the_aspect_ratio_on_white():
    picture = np.zeros((10, 40, 3), np.uint8)
    padded = pad_image(picture, 40, 40)
    assert padded.shape == (40, 40, 3)
    assert (padded[15:25] == 0).all()
    assert (padded[:15] == 255).all()
    assert (padded[25:] == 255).all()
    smaller = pad_image(picture, 40, 40, scale=0.5)
    rows, columns = np.nonzero((smaller < 128).all(axis=-1))
    assert (rows.min(), rows.max() + 1) == (18, 22) or (rows.min(), rows.max() + 1) == (17, 23)
    assert (columns.min(), columns.max() + 1) == (10, 30)


def test_one_picture_serves_all_clips_and_lists_must_fit():
    picture = random_clip(1, 8, 8)[0]
    assert len(as_pictures(Image.fromarray(picture), 3)) == 3
    assert np.array_equal(as_pictures([picture, picture[::-1]], 2)[1], picture[::-1])
    with pytest.raises(ValueError, match="2 pictures for 3 clips"):
        as_pictures([picture, picture], 3)


def test_pictures_that_cannot_be_used_are_named():
    pictures = np.stack([random_clip(1, 8, 8, seed=seed)[0] for seed in (0, 1)])
    assert np.array_equal(as_pictures(pictures, 2)[1], pictures[1]), "a leading axis is several pictures"
    with pytest.raises(ValueError, match="2 pictures for 3 clips"):
        as_pictures(pictures, 3)
    with pytest.raises(ValueError, match=r"`reference_image`: the picture holds a str"):
        as_pictures("hat.png", 1)
    with pytest.raises(ValueError, match="a reference image of 900x2: crop it"):
        as_pictures(np.zeros((2, 900, 3), np.uint8), 1)


def test_pictures_of_one_batch_need_one_shape(folder):
    pipe, clips = load_checkpoint(folder), [random_clip(5, 64, 64), random_clip(5, 64, 64, seed=1)]
    pictures = [random_clip(1, 60, 90)[0], random_clip(1, 90, 60)[0]]
    with pytest.raises(ValueError, match="pictures of different shapes: edit the clips one by one"):
        pipe(clips, INSTRUCTION, reference_image=pictures, num_inference_steps=1)


def test_transparent_parts_of_a_picture_are_white(tmp_path):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:4] = (200, 0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "cut_out.png")
    read = read_image(tmp_path / "cut_out.png")
    assert (read[:4] == (200, 0, 0)).all()
    assert (read[4:] == 255).all()


def test_the_driver_reads_a_file_or_a_picture(folder, files):
    pipe, clip = load_checkpoint(folder), frames_of(files / "clip.mp4")
    hat = files / "hat.png"
    pictures = (None, hat, str(hat), Image.open(hat), files / "coat.png")
    given = [edit(pipe, clip, INSTRUCTION, num_inference_steps=2, reference_image=x) for x in pictures]
    assert np.array_equal(given[1], given[2])
    assert np.array_equal(given[1], given[3])
    for other in (given[0], given[4]):
        assert np.abs(given[1].astype(int) - other).mean() > 1, "the picture has no effect"


def test_clips_together_share_one_picture(folder, files):
    from rvedit.editing.config import EditConfig

    pipe, clip = load_checkpoint(folder), frames_of(files / "clip.mp4")
    config = EditConfig(2, reference_image=files / "hat.png")
    together = edit_videos_together(pipe, [clip, clip], [INSTRUCTION, "remove it"], config)
    alone = edit(pipe, clip, INSTRUCTION, num_inference_steps=2, reference_image=files / "hat.png")
    assert np.abs(together[0].astype(int) - alone).max() <= 1


def test_a_clip_of_several_windows_gets_it_in_each(folder, files):
    pipe = load_checkpoint(folder)
    pipe.register_to_config(window_frames=5, window_stride=4)
    clip = random_clip(9, 64, 64)
    options = {"num_inference_steps": 2, "detail": 0}
    with_it = edit(pipe, clip, INSTRUCTION, reference_image=files / "hat.png", **options)
    without = edit(pipe, clip, INSTRUCTION, **options)
    change = np.abs(with_it.astype(int) - without).mean(axis=(1, 2, 3))
    assert (change > 1).all(), change


@pytest.mark.usefixtures("companions")
def test_the_command_edits_with_it(folder, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (files / "clip.mp4", INSTRUCTION, "--model", folder, "--steps", "2", "--device", "cpu", "--json")
    said = run(*words, "--reference", files / "hat.png", "-o", tmp_path / "hat.mp4")
    assert said.startswith("rc 0"), said
    assert json.loads(said[said.index("{") :])["reference"] == [str(files / "hat.png")]
    assert run(*words, "-o", tmp_path / "plain.mp4").startswith("rc 0")
    change = np.abs(frames_of(tmp_path / "hat.mp4").astype(int) - frames_of(tmp_path / "plain.mp4")).mean()
    assert change > 1


def test_mistakes_are_one_line(folder, plain_folder, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (files / "clip.mp4", INSTRUCTION, "--device", "cpu", "--steps", "1")
    hat = files / "hat.png"
    mistakes = {
        "`reference_image`: this model reads none": (*words, "--reference", hat, "--model", plain_folder),
        "reads none: omit it, or use one": (*words, "--reference", hat),
        "nowhere.png: no such file": (*words, "--reference", "nowhere.png", "--model", folder),
        "has 5 frames; give an image": (*words, "--reference", files / "clip.mp4", "--model", folder),
        "given 2 times: give it once": (*words, "--reference", hat, "--reference", hat, "--model", folder),
        "is given by `output` and by `reference`": (*words, "--reference", hat, "-o", hat, "--model", folder),
        "with --batch give pictures in the list": ("--batch", files, "--out-dir", tmp_path / "out",
                                                   "--reference", hat, "--model", folder),
    }  # fmt: skip
    for expected, given in mistakes.items():
        said = run(*given)
        assert not said.startswith("rc 0"), said
        assert expected in " ".join(said.split()), said
    assert not list(tmp_path.glob("*.mp4"))


def write_list(path: Path, files: Path) -> Path:
    rows = [
        "edited_type,prompt,original_video,ref_image",
        f"local_add,{INSTRUCTION},{files / 'clip.mp4'},{files / 'hat.png'}",
        f"local_add,{INSTRUCTION},{files / 'clip.mp4'},",
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_list_names_a_picture_for_each_clip(folder, plain_folder, files, tmp_path):
    bench = write_list(tmp_path / "list.csv", files)
    words = ("--batch", bench, "--steps", "2", "--device", "cpu")
    said = run(*words, "--out-dir", tmp_path / "edits", "--model", folder)
    assert said.startswith("rc 0"), said
    edits = sorted((tmp_path / "edits").glob("*.mp4"))
    assert len(edits) == 2
    assert np.abs(frames_of(edits[0]).astype(int) - frames_of(edits[1])).mean() > 1
    rows = [json.loads(line) for line in (tmp_path / "edits" / "edits.jsonl").read_text().splitlines()]
    assert [row["reference_image"] for row in rows] == [str(files / "hat.png"), None]
    with pytest.warns(UserWarning, match="the list has reference images, which this model does not read"):
        run(*words, "--out-dir", tmp_path / "plain", "--model", plain_folder)


def test_a_plan_counts_it():
    clip = ClipShape(81, 704, 1280)
    plain, with_it = (
        plan_edit(clip, REFERENCE_MODEL, EditPlanOptions(reference_image=given)) for given in (False, True)
    )
    ratio = with_it.as_json()["step_flops"] / plain.as_json()["step_flops"]
    assert 1 + 1 / 21 < ratio < 1.12, "a latent frame of 22, to whose square self-attention grows"
    for stage in ("editing tokens", "a step"):
        assert with_it.as_json()["stage_bytes"][stage] > plain.as_json()["stage_bytes"][stage]
    with pytest.raises(UserError, match="`reference`: this model reads no reference image"):
        plan_edit(clip, REFERENCE_MODEL.replace("reference", "only"), EditPlanOptions(reference_image=True))
