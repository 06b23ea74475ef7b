"""Readers of training sets, on small folders in each set's real layout, traps included."""

import csv
import json

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from rvedit.datasets.sources import SOURCES, BadRow
from rvedit.datasets.sources.base import category_of_instruction, row_id
from rvedit.datasets.survey import DatasetConfig, survey_dataset
from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path
from rvedit.io.records import Category
from rvedit.io.video import write_clip

SOURCE_LEVEL, TARGET_LEVEL = 40, 200  # brightness: which clip is which can be seen


def clip(path, level, num_frames=5, height=24, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.full((num_frames, height, width, 3), level, np.uint8)
    frames[:, :, :8] += np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    write_clip(path, frames, 12)
    return path


def source_clip(path, **shape):
    return clip(path, SOURCE_LEVEL, **shape)


def target_clip(path, **shape):
    return clip(path, TARGET_LEVEL, **shape)


def write_csv(path, header, rows, delimiter=",", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def make_openve(folder):
    """One pool; `video` is the target, one with two prompts; a byte order mark; a `;` in a prompt."""
    for name in ("cat", "park"):
        source_clip(folder / "videos" / f"{name}.mp4")
    for name in ("cat_edit", "park_edit", "park_add", "park_bg"):
        target_clip(folder / "videos" / f"{name}.mp4")
    header = ("video", "prompt", "original_video")
    write_csv(
        folder / "local_change.csv",
        header,
        [
            ("cat_edit.mp4", 'make the "cat" a dog; keep the rest', "cat.mp4"),
            ("cat_edit.mp4", "turn the cat into a dog", "cat.mp4"),
        ],
        delimiter=";",
        encoding="utf-8-sig",
    )
    # Another order, an unknown column, paths with and without folders.
    write_csv(
        folder / "local_add.csv",
        ("score", "original_video", "video", "prompt"),
        [("0.5", "videos/park.mp4", "OpenVE-3M/videos/park_add.mp4", "add a bench")],
        delimiter=";",
    )
    write_csv(folder / "global_style.csv", header, [("park_edit.mp4", "as a comic", "park.mp4")], ";")
    write_csv(folder / "background_change.csv", header, [("park_bg.mp4", "at the sea", "park.mp4")], ";")
    return folder


def make_reco(folder):
    """`tar` is the target; null instructions occur."""
    for task in ("add", "remove", "replace", "style"):
        rows = []
        for index in range(2):
            source_clip(folder / task / "src_videos" / f"{index}.mp4")
            target_clip(folder / task / "tar_videos" / f"{index}.mp4")
            rows.append(
                {
                    "src_video": f"{task}/src_videos/{index}.mp4",
                    "tar_video": f"{task}/tar_videos/{index}.mp4",
                    "instruction_final_refine": f"{task} thing {index}",
                    "instruction_ori": "not this one",
                }
            )
        write_json(folder / task / f"{task}_data_configs.json", rows)
    return folder


def make_ditto(folder, layout="json"):
    """Both layouts; local_replace is a part of local."""
    videos = folder / "videos"
    source_clip(videos / "source" / "a.mp4")
    edits = {
        "global_style1/a.mp4": "make it a watercolor",
        "global_freeform2/a.mp4": "let it snow",
        "local/replaced.mp4": "Replace the hat with a crown",
        "local/removed.mp4": "Please remove the hat",
        "local/added.mp4": "Put a bird on the roof, and turn nothing else",
    }
    for path in edits:
        target_clip(videos / path)
    local = {path: text for path, text in edits.items() if path.startswith("local")}
    sets = {
        "global_style": {"global_style1/a.mp4": edits["global_style1/a.mp4"]},
        "global_freeform": {"global_freeform2/a.mp4": edits["global_freeform2/a.mp4"]},
        "local": local,
        "local_replace": {"local/replaced.mp4": edits["local/replaced.mp4"]},
    }
    for name, rows in sets.items():
        if layout in ("json", "both"):
            write_json(
                folder / "training_metadata" / f"{name}.json",
                [
                    {"source_path": "source/a.mp4", "instruction": text, "edited_path": path}
                    for path, text in rows.items()
                ],
            )
        if layout in ("csv", "both"):
            write_csv(
                folder / "csvs_for_DiffSynth" / f"{name}.csv",
                ("video", "vace_video", "prompt"),
                [
                    (path, "source/a.mp4", f"{text}." if layout == "both" else text)
                    for path, text in rows.items()
                ],
            )
    return folder


def make_kiwi(folder, videos):
    """CSV files in any column order and parquet chunks, over another set's clips."""
    write_csv(
        folder / "video_edit_metadata" / "reco.csv",
        ("prompt", "tgt_video", "ref_image", "src_video"),
        [("remove thing 0", "remove/tar_videos/0.mp4", "", "remove/src_videos/0.mp4")],
    )
    write_csv(
        folder / "image_edit_metadata" / "x.csv", ("src_image", "tgt_image", "prompt"), [("a", "b", "c")]
    )
    chunk = folder / "refvie_477k" / "chunk_0.parquet"
    chunk.parent.mkdir(parents=True)
    row = {
        "iid": "7",
        "prompt": "swap the hat for the one of the picture",
        "src_video": str(source_clip(videos / "pool" / "s.mp4")),
        "tgt_video": "pool/t.mp4",
        "ref_image_bytes": b"\x89PNG",
    }
    target_clip(videos / "pool" / "t.mp4")
    parquet.write_table(arrow.Table.from_pylist([row]), chunk)
    return folder


def survey(dataset, *folders, out=None, **options):
    out = out or folders[0].parent / "out"
    out.mkdir(exist_ok=True)
    return survey_dataset(DatasetConfig(dataset, folders, out, **options))


def brightness(path):
    import av

    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="gray").mean()


def check_direction(found, out):
    """Sources and targets are not mixed up, and the manifest's paths lead to them."""
    manifest = out / "manifest.parquet"
    for triplet in found.candidates:
        assert brightness(clip_path(manifest, triplet, "source")) < 100
        assert brightness(clip_path(manifest, triplet, "target")) > 100


def test_openve(tmp_path):
    found = survey("openve", make_openve(tmp_path / "OpenVE-3M"))
    check_direction(found, tmp_path / "out")
    assert found.failures == []
    by_words = {(t.dataset_category, t.category, t.instruction) for t in found.candidates}
    assert by_words == {
        ("local_change", Category.CHANGE, 'make the "cat" a dog; keep the rest'),
        ("local_change", Category.CHANGE, "turn the cat into a dog"),
        ("local_add", Category.ADD, "add a bench"),
        ("global_style", Category.STYLE, "as a comic"),
        ("background_change", None, "at the sea"),
    }
    assert len({t.id for t in found.candidates}) == 5
    assert {t.root for t in found.candidates} == {"../OpenVE-3M"}
    assert {t.licence for t in found.candidates} == {"CC BY-NC 4.0"}


def test_a_clip_that_two_folders_have_is_not_guessed(tmp_path):
    folder = make_openve(tmp_path / "OpenVE-3M")
    source_clip(folder / "more" / "cat.mp4")
    found = survey("openve", folder)
    assert len(found.candidates) == 3
    assert {failure.reason for failure in found.failures} == {"ambiguous source"}
    assert "more/cat.mp4" in found.failures[0].detail


def test_ids_are_those_of_rows_wherever_and_in_whatever_order(tmp_path):
    first = survey("openve", make_openve(tmp_path / "a" / "x"))
    again = make_openve(tmp_path / "b" / "y")
    lines = (again / "local_change.csv").read_text(encoding="utf-8-sig").splitlines()
    (again / "local_change.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    second = survey("openve", again)
    ids = [{t.id: t.instruction for t in found.candidates} for found in (first, second)]
    assert ids[0] == ids[1]


def test_openves_own_words_select(tmp_path):
    folder = make_openve(tmp_path / "OpenVE-3M")
    background = survey("openve", folder, categories=("background_change",))
    assert [t.dataset_category for t in background.candidates] == ["background_change"]
    mixed = survey("openve", folder, categories=("change", "background_change"))
    assert len(mixed.candidates) == 3
    with pytest.raises(UserError, match=r"`category` paint: not in openve: choose from change, .*creative"):
        survey("openve", folder, categories=("paint",))
    with pytest.raises(UserError, match="`category` camera: no row"):
        survey("openve", folder, categories=("camera",))


def test_a_row_that_cannot_be_read_is_named_and_spoils_no_other(tmp_path):
    folder = make_openve(tmp_path / "OpenVE-3M")
    file = folder / "local_remove.csv"
    file.write_bytes(
        b"video;prompt;original_video\n"
        b"cat_edit.mp4;remove; then wait;cat.mp4\n"
        b"cat_edit.mp4;remove caf\xe9;cat.mp4\n"
        b"\n"
        b"cat_edit.mp4;;cat.mp4\n"
        b"gone.mp4;remove it;cat.mp4\n"
        b"cat_edit.mp4;remove it;cat.mp4\n"
        b"cat_edit.mp4;remove it;cat.mp4\n"
        b'cat_edit.mp4;"remove and never close;cat.mp4\n'
        b"park_edit.mp4;remove;cat.mp4\n"
    )
    found = survey("openve", folder, categories=("local_remove",))
    assert [t.instruction for t in found.candidates] == ["remove it"]
    assert all(failure.file == str(file) for failure in found.failures)
    assert [(failure.row, failure.reason) for failure in found.failures] == [
        (1, "unreadable row"),
        (2, "unreadable row"),
        (3, "empty instruction"),
        (4, "missing target"),
        (6, "repeated row"),
        (7, "unreadable row"),
    ]
    details = {failure.row: failure.detail for failure in found.failures}
    assert "4 fields for 3 columns" in details[1]
    assert "UTF-8" in details[2]
    assert details[6].endswith("local_remove.csv, row 5")
    assert "never closed" in details[7]


def test_metadata_saved_by_a_spreadsheet_are_read(tmp_path):
    folder = make_openve(tmp_path / "OpenVE-3M")
    for file in folder.glob("*.csv"):
        text = file.read_text(encoding="utf-8-sig").replace("/", "\\")
        (folder / f"{file.stem.upper()}.CSV").write_text(f"{text};;\n", encoding="utf-16", newline="\r\n")
        file.unlink()
    found = survey("openve", folder)
    assert len(found.candidates) == 5
    assert found.failures == []


def test_reco(tmp_path):
    folder = make_reco(tmp_path / "ReCo-Data")
    rows = json.loads((folder / "add" / "add_data_configs.json").read_text())
    bad = [
        "text",
        {"src_video": "x"},
        {**rows[0], "tar_video": 3},
        {**rows[0], "instruction_final_refine": None},
    ]
    write_json(folder / "add" / "add_data_configs.json", [*rows, *bad])
    found = survey("reco", folder)
    check_direction(found, tmp_path / "out")
    assert {(t.dataset_category, t.category) for t in found.candidates} == {
        ("add", Category.ADD),
        ("remove", Category.REMOVE),
        ("replace", Category.CHANGE),
        ("style", Category.STYLE),
    }
    assert len(found.candidates) == 8
    assert [(failure.row, failure.reason) for failure in found.failures] == [
        (3, "unreadable row"),
        (4, "unreadable row"),
        (5, "unreadable row"),
        (6, "empty instruction"),
    ]


@pytest.mark.parametrize("layout", ["json", "csv", "both"])
def test_ditto(tmp_path, layout):
    found = survey("ditto", make_ditto(tmp_path / "Ditto-1M", layout))
    check_direction(found, tmp_path / "out")
    by_target = {t.target: (t.dataset_category, t.category) for t in found.candidates}
    assert by_target == {
        "videos/global_style1/a.mp4": ("global_style", Category.STYLE),
        "videos/global_freeform2/a.mp4": ("global_freeform", None),
        "videos/local/replaced.mp4": ("local_replace", Category.CHANGE),
        "videos/local/removed.mp4": ("local", Category.REMOVE),
        "videos/local/added.mp4": ("local", Category.ADD),
    }
    assert len(found.candidates) == 5  # local_replace is not counted twice,
    (repeated,) = found.failures  # and the row of local that it repeats is told
    assert repeated.reason == "repeated row"
    if layout == "both":
        assert not any(t.instruction.endswith(".") for t in found.candidates)  # the JSON's wording


def test_ditto_extracted_one_folder_too_deep(tmp_path):
    folder = make_ditto(tmp_path / "Ditto-1M")
    for name in ("local", "source"):
        (folder / "videos" / name).rename(folder / "videos" / "x")
        (folder / "videos" / name).mkdir()
        (folder / "videos" / "x").rename(folder / "videos" / name / name)
    found = survey("ditto", folder)
    check_direction(found, tmp_path / "out")
    assert len(found.candidates) == 5


def test_dittos_two_layouts_give_the_same_ids(tmp_path):
    ids = [
        {t.id for t in survey("ditto", make_ditto(tmp_path / layout, layout)).candidates}
        for layout in ("json", "csv")
    ]
    assert ids[0] == ids[1]


def test_kiwi_points_to_other_sets_clips(tmp_path):
    videos = make_reco(tmp_path / "ReCo-Data")
    found = survey("kiwi", make_kiwi(tmp_path / "kiwi", videos), videos)
    check_direction(found, tmp_path / "out")
    assert {(t.dataset_category, t.category) for t in found.candidates} == {
        ("remove", Category.REMOVE),
        ("refvie", Category.CHANGE),
    }
    assert {t.root for t in found.candidates} == {"../ReCo-Data"}


@pytest.mark.parametrize(
    ("archives", "says"),
    [
        (
            ["videos/local/local.tar.gz.00", "videos/local/local.tar.gz.01"],
            ["(2 parts)", "cat local.tar.gz.* | tar -xz -C .."],
        ),
        (["videos/local/shard 1.tar"], ["tar -xf 'shard 1.tar' -C .."]),
        (["videos.zip"], ["unzip videos.zip -d .."]),
    ],
)
def test_archives_are_named_never_unpacked(tmp_path, archives, says):
    folder = make_ditto(tmp_path / "Ditto-1M")
    for name in archives:
        (folder / name).write_bytes(b"archive")
    assert survey("ditto", folder).archives == []  # nothing is missing
    (folder / "videos" / "local" / "removed.mp4").unlink()
    found = survey("ditto", folder)
    assert [failure.reason for failure in found.failures if failure.row == 2] == ["missing target"]
    (line,) = found.archives
    assert all(part in line for part in says), line
    for path in (folder / "videos").rglob("*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match="archives that are not extracted") as caught:
        survey("ditto", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", SOURCES)
def test_no_metadata_is_one_line_with_what_was_expected(tmp_path, dataset):
    (tmp_path / "other.csv").write_text("edited_type,prompt,original_video\na,b,c\n")
    with pytest.raises(UserError, match=f"no metadata of {dataset}: expected .*"):
        survey(dataset, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        survey(dataset, tmp_path / "none")


@pytest.mark.parametrize(
    ("dataset", "make", "file"),
    [
        ("reco", make_reco, "add/add_data_configs.json"),
        ("ditto", make_ditto, "training_metadata/local.json"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, dataset, make, file):
    path = make(tmp_path / "set") / file
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="not JSON") as caught:
        survey(dataset, tmp_path / "set")
    assert str(caught.value).startswith(f"{path}, line 1")


def test_readers_give_a_number_to_every_row(tmp_path):
    folder = make_openve(tmp_path / "set")
    source = SOURCES["openve"]
    for file in source.metadata(folder):
        rows = list(source.read(file))
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        assert not any(isinstance(row, BadRow) for row in rows)
        assert len({row_id(row, source.id_fields) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("instruction", "category"),
    [
        ("Please remove the hat and add nothing", Category.REMOVE),
        ("PLACE a vase there", Category.ADD),
        ("Could you swap it?", Category.CHANGE),
        ("more light", None),
    ],
)
def test_the_first_verb_decides(instruction, category):
    assert category_of_instruction(instruction) == category
