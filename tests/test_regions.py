"""`--region`, `--mask`, several instructions and the contact sheet: from the command line, as functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import edit, random_clip
from PIL import Image
from processes import rvedit

from rvedit.editing.batch import BatchConfig, edit_batch, plan_batch
from rvedit.editing.config import EditConfig
from rvedit.editing.contact_sheet import write_contact_sheet
from rvedit.editing.edit_file import checked_instructions, edit_file
from rvedit.editing.mask import write_mask
from rvedit.editing.regions import Box, StoredMasks, find_region, read_regions
from rvedit.editing.time_range import frame_range
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, VideoWriter, frame_times, write_clip


class Bright:
    """Finds what is bright, whatever the words are."""

    def masks(self, frames, words):
        return (frame.mean(axis=-1) > 200 for frame in frames)


def moving_square(count=6, height=48, width=64):
    clip = np.full((count, height, width, 3), 60, np.uint8)
    for number in range(count):
        clip[number, 10:20, 5 * number : 5 * number + 12] = 250
    return clip


def read(path):
    with VideoReader(path) as reader:
        return np.stack([timed.frame for timed in reader])


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("10%,20%,40%,50%", (20, 70), (20, 100)),
        ("20,20,80,50", (20, 70), (20, 100)),
        (" 20 , 20% , 40% , 50 ", (20, 70), (20, 100)),
        ("0,0,100%,100%", (0, 100), (0, 200)),
        ("99.5%,0,0.5%,1", (0, 1), (199, 200)),
    ],
)
def test_a_box_is_left_top_width_height(text, rows, columns):
    expected = np.zeros((100, 200), bool)
    expected[slice(*rows), slice(*columns)] = True
    box = Box.parse(text)
    assert box is not None
    assert np.array_equal(box.mask(100, 200), expected)
    assert str(box) == text


@pytest.mark.parametrize("text", ["the dog", "dog, cat", "a 10% discount sign", "no. 5"])
def test_words_are_no_box(text):
    assert Box.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "10,20,30",
        "10%,20%,30%,40%,50%",
        "10,20,thirty,40",
        "10",
        "10 20 30 40",
        "10;20;30;40",
        "10px,20px,3px,4px",
    ],
)
def test_numbers_that_are_no_box_are_refused(text):
    with pytest.raises(UserError, match="give a box as left,top,width,height"):
        Box.parse(text)


@pytest.mark.parametrize("text", ["-1,0,10,10", "60%,0,50%,10%", "0,95,10,10", "300,300,5,5"])
def test_a_box_outside_the_frame_is_refused(text):
    with pytest.raises(UserError, match=f"`region` {text}: is not inside the frame of 200x100 pixels"):
        Box.parse(text).mask(100, 200)


@pytest.mark.parametrize("text", ["0,0,0,10", "0.1,0.2,0.3,0.4", "0%,0%,0.01%,50%"])
def test_a_box_smaller_than_a_pixel_is_refused(text):
    with pytest.raises(UserError, match=f"`region` {text}: is empty in the frame of 200x100 pixels"):
        Box.parse(text).mask(100, 200)


def test_masks_are_stored_and_can_be_read_again():
    masks, stored = np.random.default_rng(0).random((5, 33, 47)) > 0.7, StoredMasks(num_empty=2)
    for mask in masks:
        stored.append(mask)
    for _ in range(2):
        again = np.stack(list(stored))
        assert np.array_equal(again, np.concatenate([np.zeros((2, 33, 47), bool), masks]))
    assert stored.num_pixels == masks.sum()


def test_what_the_words_name_is_found_in_the_range_only():
    clip = moving_square()
    done = []
    masks = np.stack(list(find_region(iter(clip), "the square", Bright(), on_progress=done.append)))
    assert done == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(masks, clip[..., 0] == 250)
    part = frame_range([n for n in range(6)], 6, "2f", "4f")
    masks = np.stack(list(find_region(clip, "the square", Bright(), part)))
    assert masks.any(axis=(1, 2)).tolist() == [False, False, True, True]
    with pytest.raises(UserError, match='`region` "a unicorn": not found in the clip') as error:
        find_region(np.zeros_like(clip), "a unicorn", Bright())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("start", "stop"), [("2f", "4f"), (None, "1f"), (None, "3f"), ("4f", None)])
def test_the_mask_of_words_in_a_range_is_written_for_the_whole_clip(tmp_path, start, stop):
    """What was found ends with the range; the file goes on in black."""
    clip = moving_square()
    write_clip(tmp_path / "clip.mkv", clip, 10)
    with VideoReader(tmp_path / "clip.mkv") as reader:
        part = frame_range(*frame_times(reader.info), start, stop)
        masks = find_region((timed.frame for timed in reader), "the square", Bright(), part)
        write_mask(tmp_path / "mask.mkv", reader, EditConfig(mask=masks), part)
    written = read(tmp_path / "mask.mkv")[..., 0] > 127
    shown = [part.first <= number < part.stop for number in range(6)]
    assert written.any(axis=(1, 2)).tolist() == shown
    assert (written != (clip[..., 0] == 250) * np.array(shown)[:, None, None]).mean() < 0.01


def test_regions_belong_to_instructions_in_order(tmp_path):
    box = Box.parse("1,2,3,4")
    assert read_regions([], [], 2) == [None, None]
    assert read_regions([], ["1,2,3,4"], 2) == [box, box]
    assert read_regions([], ["1,2,3,4", " the dog "], 2) == [box, "the dog"]
    assert read_regions([tmp_path], [], 1) == [tmp_path]
    with pytest.raises(
        UserError, match="given 2 times, but there are 3 instructions: give it once, or 3 times"
    ):
        read_regions([], ["a", "b"], 3)
    with pytest.raises(UserError, match="give one of them"):
        read_regions([tmp_path], ["a"], 1)
    with pytest.raises(UserError, match="`region` is empty"):
        read_regions([], [" "], 1)


def test_an_instruction_without_quotes_is_noticed():
    assert checked_instructions([" make it red ", "make it sepia"]) == ["make it red", "make it sepia"]
    assert checked_instructions(["sepia"]) == ["sepia"]
    with pytest.raises(UserError, match="make: is one word: put each instruction in quotes"):
        checked_instructions(["make", "it", "red"])
    with pytest.raises(UserError, match="with: is one word"):
        checked_instructions(["the dog", "with", "a corgi"])
    with pytest.raises(UserError, match=r"out\.mp4: is a file, not an instruction"):
        checked_instructions(["make it red", "out.mp4"])


def test_instructions_edit_one_after_another_each_in_its_region(tmp_path, monkeypatch, tiny_pipeline):
    """The second one edits the frames of the first as they are, without any encoding in between."""
    write_clip(tmp_path / "clip.mkv", random_clip(12, 40, 64), 10)
    left, right = (EditConfig(num_inference_steps=1, mask=Box.parse(b)) for b in ("0,0,20,40", "40,0,24,40"))
    written, seen = [], []
    monkeypatch.setattr(VideoWriter, "write", lambda self, frame, *_: written.append(frame))
    monkeypatch.setattr(VideoWriter, "__exit__", lambda self, *_: self._sink.discard())
    with VideoReader(tmp_path / "clip.mkv") as reader:
        edit_file(reader, ["make it red", "make it blue"], tmp_path / "out.mkv", tiny_pipeline, [left, right],
                  on_progress=seen.append)  # fmt: skip
    source = read(tmp_path / "clip.mkv")
    red = edit(tiny_pipeline, source, "make it red", left)
    assert np.array_equal(np.stack(written), edit(tiny_pipeline, red, "make it blue", right))
    assert not np.array_equal(written[0][:, :20], source[0][:, :20])
    assert np.array_equal(written[0][:, 24:36], source[0][:, 24:36])
    assert not np.array_equal(written[0][:, 40:], source[0][:, 40:])
    assert {(p.edit, p.window) for p in seen} == {(e, w) for e in (1, 2) for w in (1, 2)}


def test_a_contact_sheet_has_source_above_edit(tmp_path):
    write_clip(tmp_path / "clip.mp4", moving_square(), 10)
    moments = [
        (n / 10, np.full((48, 64, 3), 10 * n, np.uint8), np.full((48, 64, 3), 200, np.uint8))
        for n in range(6)
    ]
    with VideoReader(tmp_path / "clip.mp4") as reader:
        write_contact_sheet(tmp_path / "sheet.png", reader.info, moments)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * (240 + 24), 4 * 320, 3)
    tiles = sheet.reshape(4, 264, 4, 320, 3)[:, 100, :, 160, 0]
    assert tiles.tolist() == [[0, 10, 20, 30], [200] * 4, [40, 50, 24, 24], [200, 200, 24, 24]]


@pytest.mark.slow
def test_regions_from_the_command_line(tmp_path):
    """A box, a range, a sheet and the mask; what is outside stays, and the mask can be given again."""
    write_clip(tmp_path / "clip.mp4", moving_square(12), 10)
    options = [
        "--steps",
        2,
        "--region",
        "50%,0%,50%,100%",
        "--grow",
        4,
        "--from",
        "0.2",
        "--to",
        "8f",
        "--fade",
        0.1,
    ]
    result = rvedit("edit", "clip.mp4", "make it night", *options, "--contact-sheet", "sheet.png",
                    "--save-mask", "mask.png", "--json", cwd=tmp_path, check=0)  # fmt: skip
    report = json.loads(result.stdout)
    assert report["contact_sheet"] == "sheet.png"
    assert report["mask"] == "mask.png"
    source, edited = read(tmp_path / "clip.mp4").astype(int), read(tmp_path / "clip_edited.mp4").astype(int)
    assert len(edited) == 12
    distances = np.abs(source - edited).mean(axis=(1, 3))  # by frame and column
    assert distances[:2].max() < 6
    assert distances[8:].max() < 6
    assert distances[2:8, :24].max() < 8
    assert distances[3:7, 32:].mean() > 10
    mask = np.asarray(Image.open(tmp_path / "mask.png"))[..., 0]
    assert (mask[0] == np.repeat([0, 255], [28, 36])).all()
    rvedit("edit", "clip.mp4", "make it sepia", "--steps", 2, "--mask", "mask.png", "-o", "again.mp4",
           "--save-mask", "mask.mp4", cwd=tmp_path, check=0)  # fmt: skip
    again = read(tmp_path / "again.mp4").astype(int)
    assert np.abs(source - again).mean(axis=(1, 3))[:, :24].max() < 8
    assert (read(tmp_path / "mask.mp4")[:, :, :, 0] > 127).all(axis=1).sum(axis=1).tolist() == [36] * 12
    result = rvedit("edit", "clip.mp4", "make it sepia", "make it night", "--region", "0,0,16,48", "--region",
                    "48,0,16,48", "--steps", 1, "-o", "two.mp4", cwd=tmp_path, check=0)  # fmt: skip
    distances = np.abs(source - read(tmp_path / "two.mp4")).mean(axis=(0, 1, 3))
    assert distances[20:44].max() < 8
    assert distances[:16].mean() > 10
    assert distances[48:].mean() > 10


@pytest.mark.slow
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path):
    write_clip(tmp_path / "clip.mp4", random_clip(6, 48, 64), 10)
    write_clip(tmp_path / "short.mkv", random_clip(4, 48, 64), 10)
    Image.new("L", (64, 40)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "black.png")
    Image.fromarray(np.full((48, 64, 4), (255, 255, 255, 0), np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "white.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    white = ["--mask", "white.png"]
    for options, said in [
        (["--mask", "small.png"], "--mask small.png: is 64x40 pixels, the clip 64x48"),
        (["--mask", "short.mkv"], "--mask short.mkv: has 4 frames, the clip 6"),
        (["--mask", "nowhere.png"], "--mask nowhere.png: no such file"),
        (["--mask", "black.png"], "--mask black.png: allows no change in any frame"),
        ([*white, "--invert-mask"], "--mask white.png: allows no change in any frame"),
        (["--mask", "alpha.png"], "--mask alpha.png: is partly transparent"),
        (["--mask", "small.png", "--region", "the dog"], "--mask and --region: give one of them"),
        (["--region", "60%,0,50%,50%"], "--region 60%,0,50%,50%: is not inside the frame of 64x48 pixels"),
        (["--region", "1,2,3"], "--region 1,2,3: give a box as left,top,width,height"),
        (
            ["--region", "1,2,3,4", "--region", "the dog"],
            "--region: given 2 times, but there is 1 instruction",
        ),
        (["--region", "the dog", "--segmenter", "nowhere/at-all"], "--segmenter nowhere/at-all"),
        (["--region", "the dog", "--save-mask", "short.mkv"], "--save-mask short.mkv: exists"),
        (["--region", "the dog", "--save-mask", "mask.png"], "--save-mask mask.png: holds one frame"),
        (["--region", "1,1,9,9", "--segmenter", "a"], "--segmenter: needs --region with words"),
        (["--grow", 3], "--grow: needs --mask or --region"),
        (["--from", "0.4", "--to", "0.2"], "--from 0.4 and --to 0.2: no frame is between them"),
        (["--from", "1:00"], "--from 1:00: the clip's 6 frames, 0f to 5f, end at 0.6 s"),
        (["--from", ""], "--from : give seconds"),
        (["--to", "soon"], "--to soon: give seconds"),
        (["--fade", 1], "--fade: needs --from or --to"),
        (["--contact-sheet", "sheet.mp4"], "--contact-sheet sheet.mp4: give a picture's name"),
        (["--contact-sheet", "small.png"], "small.png: exists"),
        ([*white, "--save-mask", "small.png"], "--save-mask small.png: exists"),
        (
            [*white, "--save-mask", "white.png", "--overwrite"],
            "is given by --save-mask and by --mask white.png",
        ),
        ([*white, "-o", "white.png", "--overwrite"], "is given by --output and by --mask white.png"),
        (["-o", "a.png", "--contact-sheet", "./a.png"], "a.png: is given by --contact-sheet and by --output"),
        (["out.mp4"], "out.mp4: is a file, not an instruction"),
        ([*white, "--save-mask", "m.png", "--device", "cuda:7"], "cuda:7"),
    ]:
        result = rvedit("edit", "clip.mp4", "make it red", *options, cwd=tmp_path, check=2)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1, lines
        assert said in lines[0]
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, options


def test_batches_take_a_box(tmp_path, tiny_pipeline):
    for name, width in (("a", 64), ("b", 32)):
        write_clip(tmp_path / f"{name}.mp4", random_clip(5, 48, width), 10)
    rows = [f"global_style,make it red,{name}.mp4" for name in "ab"]
    (tmp_path / "list.csv").write_text("\n".join(["edited_type,prompt,original_video", *rows]))
    batch = BatchConfig(tmp_path / "list.csv", tmp_path / "out")
    config = EditConfig(num_inference_steps=1, detail=0, mask=Box.parse("50%,0,50%,100%"))
    report = edit_batch(batch, plan_batch(batch), lambda: tiny_pipeline, config)
    assert (report.edited, report.failures) == (2, {})
    for name, width in (("a", 64), ("b", 32)):
        pair = read(tmp_path / f"{name}.mp4"), read(tmp_path / "out" / f"{name}_edited.mp4")
        columns = np.abs(pair[0].astype(int) - pair[1]).mean(axis=(0, 1, 3))
        assert columns[: width // 2 - 4].mean() < 10, "what H.264 loses of noise"
        assert columns[width // 2 :].mean() > 40
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["mask"] == "50%,0,50%,100%"
