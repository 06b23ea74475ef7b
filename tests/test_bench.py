"""Lists of items, and how the edits of other editors are found."""

import csv
import shutil
from pathlib import Path

import pytest

from rvedit.editing.batch import BatchConfig, plan_batch
from rvedit.io.bench import read_bench, resolve_edits, write_batch
from rvedit.io.errors import UserError
from rvedit.io.records import Category

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "openve_sample"


@pytest.fixture
def bench(tmp_path):
    """Four items as the benchmark has them: the file names lie about the category."""
    rows = [
        ("local_change", "Replace the sweater.", "OpenVE-Bench/videos/0001_local_add_A_brown_dog.mp4"),
        ("local_remove", "Remove the bird.", "videos/0002_local_remove_The_bird.mp4"),
        ("global_style", "Make it snow, {now}.", "videos/0003_local_change_Snow.mp4"),
        ("background_change", "Put it on Mars.", "videos/0004_background.mp4"),
    ]
    (tmp_path / "videos").mkdir()
    for _, _, name in rows:
        (tmp_path / "videos" / Path(name).name).touch()
    path = tmp_path / "benchmark_videos.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("edited_type", "prompt", "original_video"), *rows])
    return path


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_category_comes_from_the_csv_alone(bench):
    items = read_bench(bench)
    assert [item.category for item in items] == [Category.CHANGE, Category.REMOVE, Category.STYLE, None]
    assert [item.dataset_category for item in items][-1] == "background_change"
    assert all(item.source.is_file() for item in items)
    assert items[2].instruction == "Make it snow, {now}."
    assert read_bench(bench.parent) == items


STEM = "0002_local_remove_The_bird"


@pytest.mark.parametrize(
    "name",
    [
        f"{STEM}_edited.mp4",
        f"{STEM}.mp4",
        f"{STEM}.webm",
        f"local_remove/{STEM}_edited.mp4",
        f"local_remove/{STEM}.mp4",
        f"remove/{STEM}.mp4",
        f"{STEM}_id7_edited.mp4",
        "1/generate.mp4",
        "001_edited.mp4",
    ],
)
def test_every_editors_names_are_found(bench, tmp_path, name):
    items = read_bench(bench)
    folder = put(
        tmp_path / "out", name, f"concat_{STEM}_edited.mp4", f"{STEM}_edited_compare.mp4", "src_video.mp4"
    )
    assert resolve_edits(items, folder) == {items[1].id: folder / name}


def test_the_first_form_wins_and_two_of_one_form_are_refused(bench, tmp_path):
    items = read_bench(bench)
    folder = put(tmp_path / "out", f"{STEM}_edited.mp4", f"{STEM}.mp4")
    assert resolve_edits(items, folder)[STEM].name == f"{STEM}_edited.mp4"
    put(folder, f"{STEM}_edited.webm")
    with pytest.raises(UserError, match="both could be the edit"):
        resolve_edits(items, folder)
    other = put(tmp_path / "ids", f"{STEM}_id3_edited.mp4", f"{STEM}_id12_edited.mp4")
    with pytest.raises(UserError, match="both could be the edit"):
        resolve_edits(items, other)
    with pytest.raises(UserError, match="no such folder"):
        resolve_edits(items, tmp_path / "nowhere")


def test_a_column_names_the_edit(bench, tmp_path):
    text = bench.read_text().splitlines()
    text[0] += ",edited_result_path"
    text[1] += ",mine.mp4"
    text[2:] = [line + "," for line in text[2:]]
    bench.write_text("\n".join(text))
    folder = put(tmp_path / "out", "mine.mp4", f"{STEM}_edited.mp4")
    found = resolve_edits(read_bench(bench), folder)
    assert [path.name for path in found.values()] == ["mine.mp4", f"{STEM}_edited.mp4"]


def test_a_column_describes_the_edit(bench):
    """What VACE is told; it may be left out, as a whole and in a row."""
    assert {item.description for item in read_bench(bench)} == {None}
    text = bench.read_text().splitlines()
    text[0] += ",description"
    text[1] += ",A corgi in a park."
    text[2:] = [line + "," for line in text[2:]]
    bench.write_text("\n".join(text))
    first, *others = read_bench(bench)
    assert first.description == "A corgi in a park."
    assert {item.description for item in others} == {None}


def test_one_clip_with_two_instructions(bench, tmp_path):
    lines = bench.read_text().splitlines()
    bench.write_text("\n".join([*lines, "local_add,Add a hat.,videos/0002_local_remove_The_bird.mp4"]))
    items = read_bench(bench)
    assert len({item.id for item in items}) == 5
    with pytest.raises(UserError, match="is the edit of two items"):
        resolve_edits(items, put(tmp_path / "out", f"{STEM}_edited.mp4"))


def test_what_a_batch_leaves_is_read_back(bench, tmp_path):
    from dataclasses import replace

    out = tmp_path / "out"
    items = [replace(item, edited=out / f"{item.id}_edited.mp4") for item in read_bench(bench)]
    out.mkdir()
    write_batch(out, items)
    put(out, f"{items[0].id}_edited.mp4")
    back = read_bench(out)
    assert [(b.id, b.instruction, b.category, b.dataset_category) for b in back] == [
        (i.id, i.instruction, i.category, i.dataset_category) for i in items
    ]
    assert all(b.source.samefile(i.source) for b, i in zip(back, items, strict=True))
    assert list(resolve_edits(back, out)) == [items[0].id]
    moved = shutil.move(out, tmp_path / "elsewhere")
    assert list(resolve_edits(read_bench(Path(moved)), Path(moved))) == [items[0].id]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("edited_type,prompt\nlocal_add,x\n", "has no column original_video"),
        ("edited_type,prompt,original_video\nlocal_add,,videos/a.mp4\n", "row 1: prompt is empty"),
        ("edited_type,prompt,original_video\n", "holds no rows"),
    ],
)
def test_mistakes_are_named(tmp_path, text, says):
    path = tmp_path / "bench.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_bench(path)
    with pytest.raises(UserError, match="no such file"):
        read_bench(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of"):
        read_bench(tmp_path / "empty")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of the benchmark is not at hand")
def test_the_real_benchmarks_names():
    items = read_bench(SAMPLE)
    found = resolve_edits(items, SAMPLE / "outputs")
    assert set(found) == {item.id for item in items}
    assert {item.id[:4]: item.category for item in items} == {
        "0062": Category.CHANGE,
        "0239": Category.REMOVE,
        "0269": Category.ADD,
        "0016": Category.STYLE,
    }


def test_another_editors_folder_is_not_answered_with_the_lists_own_edits(bench, tmp_path):
    from dataclasses import replace

    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    items = [replace(item, edited=a / f"{item.id}_edited.mp4") for item in read_bench(bench)]
    write_batch(a, items)
    put(a, *(f"{item.id}_edited.mp4" for item in items))
    put(b, f"{items[1].id}_edited.mp4")
    assert resolve_edits(read_bench(a), b) == {items[1].id: b / f"{items[1].id}_edited.mp4"}


def test_a_source_is_not_its_own_edit(bench):
    assert resolve_edits(read_bench(bench), bench.parent / "videos") == {}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"instruction": "x", "original_video": "a.mp4", "category": "foo"}', "category is 'foo'"),
        ('{"instruction": "x", "original_video": 3}', "original_video is not text"),
    ],
)
def test_mistakes_of_a_batchs_list(tmp_path, row, says):
    (tmp_path / "edits.jsonl").write_text(row)
    with pytest.raises(UserError, match=says):
        read_bench(tmp_path)


HEADER = "edited_type,prompt,original_video\n"
ROW = "global_style,make it sepia,videos/a.mp4\n"
LIST = HEADER + ROW
LINE = '{"instruction": "make it sepia", "original_video": "videos\\\\a.mp4"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.CSV", LIST.encode()),
        ("lines.csv", LIST.replace("\n", "\r\n").encode()),
        ("semicolons.csv", LIST.replace(",", ";").encode()),
        ("tabs.tsv", LIST.replace(",", "\t").encode()),
        ("backslashes.csv", LIST.replace("/", "\\").encode()),
        ("blank.csv", f"\n{HEADER},,\n\n{ROW} , ,\n,,,\n".encode()),
        ("spaces.csv", f'{HEADER}global_style, "make it sepia", videos/a.mp4'.encode()),
        ("more.csv", LIST.replace("\n", ",\n").encode()),
        ("fewer.csv", LIST.replace("video\n", "video,description\n").encode()),
        ("mark.csv", LIST.encode("utf-8-sig")),
        ("utf16.csv", LIST.encode("utf-16")),
        ("edits.JSONL", f"{LINE}\r\n\r\n".encode("utf-8-sig")),
        ("utf16.jsonl", LINE.encode("utf-16")),
    ],
)
def test_lists_of_every_spreadsheet_are_read(tmp_path, name, content):
    put(tmp_path, "videos/a.mp4")
    (tmp_path / name).write_bytes(content)
    (item,) = read_bench(tmp_path / name)
    assert item.instruction == "make it sepia"
    assert item.source == tmp_path / "videos" / "a.mp4"


def test_the_header_alone_decides_on_the_separator(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HEADER.replace(",", ";") + "global_style;one, two, three, four,;a.mp4\n")
    assert read_bench(path)[0].instruction == "one, two, three, four,"
    path.write_text(HEADER + 'global_style,"one; two; ""three"";\nfour",a.mp4\n')
    assert read_bench(path)[0].instruction == 'one; two; "three";\nfour'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            HEADER + "style,sepia, with grain,a.mp4",
            "row 1: 4 fields for 3 columns: quote the fields that contain ','",
        ),
        (LIST + "style,a.mp4", "row 2: 2 fields for 3 columns: add the missing ones"),
        (HEADER + ",,\n" + ROW + "style,café,a.mp4", "row 3: not UTF-8: save the file as UTF-8"),
        (LIST + 'style,"sepia,a.mp4', "row 2: a quotation mark is never closed"),
        (
            HEADER + 'style,"sepia,a.mp4\nstyle,5",b.mp4',
            "row 1: a quotation mark is never closed: the next rows",
        ),
        (HEADER + 'style,"so" he said,a.mp4', "row 1: a quotation mark is .* not doubled"),
        (LIST.replace(",", ":"), "has no column edited_type: .*; its first line is 'edited_type:prompt:orig"),
        ("\0e\0d\0i\0t\n", "not UTF-8: save the file as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_by_row(tmp_path, content, says):
    path = tmp_path / "list.csv"
    path.write_bytes(content.encode("cp1252"))
    with pytest.raises(UserError, match=f"^{path}.*{says}") as caught:
        read_bench(path)
    assert "\n" not in str(caught.value)


def test_lines_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "edits.jsonl"
    path.write_bytes(f"{LINE}\n{LINE.replace('sepia', 'café')}\n".encode("cp1252"))
    with pytest.raises(UserError, match="line 2: not UTF-8: save the file as UTF-8"):
        read_bench(path)
    path.write_bytes(LINE.encode("utf-16-le"))
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        read_bench(path)
    (tmp_path / "cut.csv").write_bytes(LIST.encode("utf-16")[:-1])
    with pytest.raises(UserError, match="its UTF-16 text is damaged"):
        read_bench(tmp_path / "cut.csv")


def test_a_text_that_is_too_long_for_a_name_is_no_clip(tmp_path):
    (tmp_path / "list.csv").write_text(f"{HEADER}{'x' * 300},make it sepia,{'long ' * 100}\n")
    items = read_bench(tmp_path / "list.csv")
    assert resolve_edits(items, tmp_path) == {}


def test_edits_of_clips_with_long_names_are_found(tmp_path):
    """Their names are cut where another editor's would be found, too."""
    long = "映" * 82  # 246 bytes of 255
    put(tmp_path, f"videos/{long}.mp4", "videos/a.mp4")
    (tmp_path / "list.csv").write_text(LIST + f"global_style,make it red,videos/{long}.mp4\n")
    batch = plan_batch(BatchConfig(tmp_path / "list.csv", tmp_path / "out"))
    names = [item.edited.name for item in batch]
    assert names == ["a_edited.mp4", "001_edited.mp4"]
    put(tmp_path / "out", *names)
    found = resolve_edits(read_bench(tmp_path / "list.csv"), tmp_path / "out")
    assert list(found.values()) == [item.edited for item in batch]
