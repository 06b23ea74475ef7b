"""The measures without a model, on clips whose answer is known."""

import json

import numpy as np
import pytest
from clips import write_clip
from typer.testing import CliRunner

from rvedit.evaluation.measure_table import DEFINITIONS
from rvedit.evaluation.model_free import (
    changed_region,
    color_difference,
    frame_change,
    measure_edit,
    measure_frames,
    sharpness,
    squared_error,
    warping_error,
)
from rvedit.io.errors import UserError
from rvedit.playground.world import render, sample_triplet
from rvedit_cli.main import app


@pytest.fixture(scope="module")
def pair():
    """A source, and its edit with another thing in it."""
    triplet = sample_triplet(5, 0, "test")
    return [render(scene, 5, 64, 64) for scene in (triplet.source, triplet.target)]


def measured(source, edited):
    return measure_frames(zip(source, edited, strict=True))


def test_an_unchanged_clip_is_perfect(pair):
    source, _ = pair
    for name, value in measured(source, source.copy()).items():
        assert value == DEFINITIONS[name].perfect, name


def test_damage_is_ranked_by_its_strength(pair):
    """Shifts, flicker, blur and color casts; the benchmark has many clips."""
    from scipy.ndimage import gaussian_filter

    _, edit = pair
    sign = np.where(np.arange(len(edit)) % 2, 1, -1)[:, None, None, None]
    tint = np.array([1, 0, -1])
    noise = np.random.default_rng(0).normal(0, 5, edit.shape)

    def add(levels):
        return np.clip(edit + levels, 0, 255).astype(np.uint8)

    flickering = [add(level * sign) for level in (0, 5, 12)]
    damages = {
        "displacement": (1, [np.roll(edit, pixels, axis=2) for pixels in (0, 1, 3)]),
        "psnr": (-1, [edit, add(noise), add(3 * noise)]),
        "frame_change": (1, flickering),
        "warping_error": (1, flickering),
        "sharpness": (-1, [edit, *(gaussian_filter(edit, (0, sigma, sigma, 0)) for sigma in (1, 2))]),
        "color_shift": (1, [add(level * tint) for level in (0, 9, 30)]),
    }
    for name, (direction, clips) in damages.items():
        values = [measured(edit, clip)[name] for clip in clips]
        assert (np.diff(values) * direction > 0).all(), (name, values)


def test_the_changed_region_is_where_the_edit_is(pair):
    source = np.full((64, 64, 3), 100, np.uint8)
    edited = source.copy()
    edited[20:40, 10:30] = 180
    noise = np.random.default_rng(0).integers(-6, 7, source.shape)
    region = changed_region(source, np.clip(edited + noise, 0, 255).astype(np.uint8))
    assert region[20:40, 10:30].all()
    assert not region[:12].any()
    assert not region[:, 40:].any()
    thin = source.copy()
    thin[:, 30:32] = 180  # as the edge of a thing that moved by two pixels
    assert not changed_region(source, thin).any()


def test_preservation_is_that_of_the_rest():
    """A patch that is edited, and elsewhere an error of 12 levels in every other line."""
    source = np.full((2, 64, 64, 3), 100, np.uint8)
    edited = source.copy()
    edited[:, ::2] += 12  # lines, which smoothing makes 6 levels
    edited[:, 20:40, 10:30] = 180
    result = measured(source, edited)
    assert result["psnr"] == pytest.approx(-10 * np.log10((12 / 255) ** 2 / 2), abs=0.05)
    assert result["changed"] == pytest.approx(28 * 28 / 64**2, abs=0.03)
    everywhere = measured(source, source + 100)
    assert (everywhere["changed"], everywhere["psnr"], everywhere["ssim"]) == (1, None, None)


def test_values_by_hand():
    black, gray = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    assert squared_error(black, gray) == pytest.approx(np.full((8, 8), 0.04))
    assert frame_change(black, gray) == 51
    assert color_difference(black, np.full_like(black, 255)) == pytest.approx(100, abs=0.01)
    assert color_difference(gray, gray) == 0
    checks = (np.indices((16, 16)).sum(0) % 2 * 10).astype(np.uint8)[..., None].repeat(3, 2)
    # 4 neighbors that differ by 10: +-40 everywhere, but for the borders, which are reflected.
    assert sharpness(checks) == pytest.approx(1600)


def test_motion_is_no_warping_error():
    """Blobs that move by three pixels are predicted by the flow; flicker is not."""
    from scipy.ndimage import gaussian_filter

    blobs = gaussian_filter(np.random.default_rng(1).normal(size=(96, 96)), 4)
    frame = np.interp(blobs, (blobs.min(), blobs.max()), (0, 230)).astype(np.uint8)[..., None].repeat(3, 2)
    moved = np.roll(frame, 3, axis=1)
    assert warping_error(frame[:, 8:-8], moved[:, 8:-8]) < 0.3 * frame_change(frame[:, 8:-8], moved[:, 8:-8])
    assert warping_error(frame, frame + 20) > 15
    assert warping_error(frame, frame) == 0


def test_files_of_other_length_size_and_rate(tmp_path, pair):
    source, _ = pair
    write_clip(tmp_path / "source.mp4", source, rate=10)
    half = source[:, ::2, ::2]
    write_clip(tmp_path / "half.mp4", half[:4], rate=10)
    result = measure_edit(tmp_path / "source.mp4", tmp_path / "half.mp4")
    assert (result["duration"], result["num_frames"], result["size"]) == (0.8, 0.8, 0.25)
    assert (result["frame_rate"], result["sound"]) == (1, None)
    # Twice the frames in the same time: each is set beside the one shown at its time.
    write_clip(tmp_path / "double.mp4", source.repeat(2, axis=0), rate=20)
    result = measure_edit(tmp_path / "source.mp4", tmp_path / "double.mp4")
    assert (result["num_frames"], result["frame_rate"], result["duration"]) == (2, 2, 1)
    assert result["psnr"] > 40
    same = measure_edit(tmp_path / "source.mp4", tmp_path / "source.mp4")
    assert {
        name: value for name, value in same.items() if value not in (None, DEFINITIONS[name].perfect)
    } == {}


@pytest.fixture
def outputs(tmp_path, pair):
    source, edited = pair
    rows = ["edited_type,prompt,original_video"]
    for name, kind in (("a", "local_add"), ("b", "background_change"), ("c", "local_add")):
        write_clip(tmp_path / f"{name}.mp4", source)
        write_clip(tmp_path / f"{name}_edited.mp4", edited)
        rows.append(f"{kind},add a dog,{name}.mp4")
    (tmp_path / "c_edited.mp4").write_bytes(b"no clip")
    (tmp_path / "bench.csv").write_text("\n".join(rows) + "\n")
    return ["judge", str(tmp_path), "--bench", str(tmp_path / "bench.csv"), "--json"]


def test_measures_have_a_table_of_their_own(outputs, tmp_path):
    result = CliRunner().invoke(app, [*outputs, "--judge", "measures"])
    summary = json.loads(result.stdout)
    judge = summary["judges"]["measures"]
    assert (judge["scored"], judge["dropped"], judge["table"]) == (2, 1, None)
    assert (summary["protocol"], summary["scale"]) == ("measures", None)
    means = summary["measures"]["means"]
    assert list(means) == ["add", "background_change", "overall"], "every category is measured"
    assert means["overall"]["sound"] is None
    rows = [json.loads(line) for line in (tmp_path / "judge_measures/scores.jsonl").read_text().splitlines()]
    assert means["overall"]["psnr"]["value"] == pytest.approx(rows[0]["measures"]["psnr"])
    assert all(row["scores"] is None for row in rows)
    assert "no clip" not in rows[2]["dropped"]
    assert "c_edited.mp4" in rows[2]["dropped"]
    again = json.loads(CliRunner().invoke(app, [*outputs, "--judge", "measures"]).stdout)
    assert again["judges"]["measures"]["from_cache"] == 2
    probe = json.loads(
        CliRunner().invoke(app, [*outputs, "--judge", "measures", "--probe", "identity"]).stdout
    )
    assert probe["measures"]["means"]["overall"]["psnr"]["value"] == 60
    page = (tmp_path / "judge_measures/report.html").read_text()
    assert "PSNR outside the changed region" in page


def test_measures_are_never_averaged_or_compared_with_scores(outputs, tmp_path):
    out = tmp_path / "out"
    both = ["--judge", "measures", "--judge", "reference", "--out", str(out)]
    result = CliRunner().invoke(app, [*outputs, *both])
    summary = json.loads(result.stdout)
    assert (summary["mean_over_judges"], summary["agreement"]) == (None, {})
    assert summary["judges"]["reference"]["scored"] == 0, "there are no true edits"
    assert summary["judges"]["measures"]["scored"] == 1, "the others' protocol has no other category"
    CliRunner().invoke(app, [*outputs, "--judge", "measures"])
    folder = str(tmp_path / "judge_measures")
    refused = CliRunner().invoke(app, ["judge", "--compare", folder, folder])
    assert isinstance(refused.exception, UserError)
    assert "has no scores on the axes" in str(refused.exception)
