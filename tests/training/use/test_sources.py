"""Rows of files as sources: what is embedded of each, what is known of it, and what changes a stamp."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_specs.shard import REGION_SCHEMA
from training.errors import InputError
from training.use.sources import MixedSource, PictureSource, RowSource, TextSource, part_rows


def draw(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(path)
    return path


def test_a_folder_is_its_pictures_by_name_however_deep(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.PNG", "a/b/d.webp", "z.txt", ".hidden.jpg"):
        draw(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    source = PictureSource([str(tmp_path), str(tmp_path / "b.jpg")])
    assert [str(Path(file).relative_to(tmp_path)) for file in source.files] == ["b.jpg", "a/c.PNG", "a/b/d.webp"]
    assert (source.name, len(source), source.has_images, source.has_texts) == (tmp_path.name, 3, True, False)
    entry = source.entries([1])[0]
    assert (entry.content, entry.boxes, entry.text) == ((tmp_path / "a/c.PNG").read_bytes(), None, None)
    where = source.table([1])["where"][0].as_py()
    assert where == {"path": str(tmp_path / "a/c.PNG"), "offset": 0, "size": len(entry.content or b""), "sha256": ""}
    with pytest.raises(InputError, match="contains no pictures"):
        PictureSource([str(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")])


def test_ids_are_of_the_folder_that_a_name_means_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        draw(tmp_path / name / "p" / "1.png")
        monkeypatch.chdir(tmp_path / name)
        [row] = PictureSource(["p"], whole=True).table([0])["id"].to_pylist()
        assert row == str(tmp_path / name / "p" / "1.png")


def test_a_stamp_of_a_picture_changes_with_its_file_and_its_boxes(tmp_path: Path) -> None:
    files = [draw(tmp_path / f"p/{n}.png", n) for n in range(5)]
    before = PictureSource([str(tmp_path / "p")]).stamps(range(5))
    os.utime(files[2], ns=(1, 1))
    after = PictureSource([str(tmp_path / "p")]).stamps(range(5))
    assert (before == after).tolist() == [True, True, False, True, True]
    boxes = regions(tmp_path / "r.parquet", files[3])
    assert (PictureSource([str(tmp_path / "p")], boxes).stamps(range(5)) == after).tolist() == [True] * 3 + [
        False,
        True,
    ]


def regions(file: Path, picture: Path) -> Path:
    """Boxes of one picture."""
    row = {"key": "k", "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(), "boxes": [0, 0, 4, 4]}
    rows = [{**row, "scores": [0.5], "labels": [0]}]
    pq.write_table(pa.Table.from_pylist(rows, schema=REGION_SCHEMA), file)
    return file


def test_rows_of_several_sources_are_cut_where_one_ends(tmp_path: Path) -> None:
    for n in range(3):
        draw(tmp_path / f"p/{n}.png", n)
    source = MixedSource(
        [PictureSource([str(tmp_path / "p")]), TextSource(write(tmp_path / "t.txt", "红", "白", "黑"))]
    )
    assert [list(run) for run in source.runs(range(6), 2)] == [[0, 1], [2], [3, 4], [5]]
    assert [list(run) for run in source.runs([1, 2, 4, 5], 9)] == [[1, 2], [4, 5]]
    whole = source.stamps(range(6))
    assert (source.stamps([1, 4]) == whole[[1, 4]]).all()
    assert source.table([4])["caption"].to_pylist() == ["白"]


def test_what_is_no_picture_file_is_a_problem_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    source = PictureSource([str(tmp_path / "pipe.jpg"), str(tmp_path / "gone.jpg"), str(tmp_path / "nul\0.jpg")])
    problems = [entry.problem for entry in source.entries(range(3))]
    assert problems[:2] == ["not a regular file", "No such file or directory"]
    assert problems[2]


def test_boxes_of_a_regions_file_come_with_the_pictures_that_it_knows(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "p/1.png", 1), draw(tmp_path / "p/2.png", 2)
    regions(tmp_path / "r.parquet", first)
    known, unknown = PictureSource([str(first), str(second)], tmp_path / "r.parquet").entries([0, 1])
    assert [list(box) for box in known.boxes or ()] == [[0, 0, 4, 4]]
    assert unknown.boxes is None


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes((b"\xef\xbb\xbf" if end == "\n" else b"") + ("\n".join(lines) + end).encode())
    return path


@pytest.mark.parametrize("end", ["\n", ""])
def test_texts_are_lines_and_what_follows_a_tab_is_shown(tmp_path: Path, end: str) -> None:
    file = write(tmp_path / "t.txt", "但愿人长久\t苏轼《水调歌头》", "红船", "", "红船", "白云\r", end=end)
    source = TextSource(file)
    assert (len(source), source.repeated) == (4, 1)
    assert [entry.text for entry in source.entries(range(4))] == ["但愿人长久", "红船", None, "白云"]
    assert [entry.problem for entry in source.entries(range(4))] == ["", "", "empty line", ""]
    table = source.table(range(4))
    assert table["texts"][0].as_py() == [
        {"kind": "text", "text": "但愿人长久"},
        {"kind": "title", "text": "苏轼《水调歌头》"},
    ]
    assert table["id"].to_pylist()[1:3] == [hashlib.sha256("红船".encode()).hexdigest()[:32], ""]

    every = TextSource(file, distinct=False)
    assert [entry.text for entry in every.entries(range(5))] == ["但愿人长久", "红船", None, "红船", "白云"]
    assert every.table(range(5))["id"].to_pylist() == ["1", "2", "", "4", "5"]


def test_a_text_that_is_not_utf8_is_a_problem_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("好\n".encode() + b"\xff\xfe\n")
    entry = TextSource(tmp_path / "t.txt").entries([1])[0]
    assert (entry.problem, entry.name) == ("not UTF-8", f"{tmp_path / 't.txt'}:line 2")
    (tmp_path / "e.txt").write_bytes(b"")
    with pytest.raises(InputError, match="contains no lines"):
        TextSource(tmp_path / "e.txt")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\t\r", exclude_categories=["Cs"]), max_size=6), min_size=1))
def test_every_line_is_one_row_whichever_rows_are_asked_for(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    file = tmp_path_factory.mktemp("lines") / "t.txt"
    file.write_bytes("".join(f"{line}\n" for line in lines).encode())
    every, distinct = TextSource(file, distinct=False), TextSource(file)
    first = lines[0].removeprefix("\ufeff")  # a mark of the byte order at the beginning is none of the text
    expected = [first, *lines[1:]]
    rows = list(range(len(lines)))[::-1]
    assert [e.text or "" for e in every.entries(rows)] == [x if x.strip() else "" for x in expected[::-1]]
    assert len(distinct) == len(dict.fromkeys(expected))


def test_rows_of_the_release_with_ids_of_their_own(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 7)
    box = [[0, 0, 4, 4]]
    lines = [
        {"image_id": "a.png", "sentences": [["alt_text", "红船"], ["sur_text", "山水。白云"]], "bbox": box},
        {"image_id": "a.png", "sentences": [["alt_text", "白云"]]},
        {"image_id": "b.png", "sentences": [["alt_text", "没有"]]},
    ]
    file = tmp_path / "r.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\nbroken\n", encoding="utf-8")
    source = RowSource(file, "alt_text")
    assert len(source) == 4
    entries = source.entries(range(4))
    assert [entry.text for entry in entries] == ["红船", "白云", "没有", None]
    assert [bool(entry.problem) for entry in entries] == [False, False, True, True]
    assert [list(map(list, entry.boxes)) if entry.boxes else None for entry in entries] == [box, None, None, None]
    table = source.table(range(4))
    assert table["id"].to_pylist() == ["a.png", "a.png#3", "b.png", ""]
    assert table["where"][0].as_py()["path"] == str(tmp_path / "a.png")
    assert [text["kind"] for text in table["texts"][0].as_py()] == ["alt", "surrounding"]
    no_kind = RowSource(file, "caption").entries([0])[0]
    assert "no text of kind caption" in no_kind.problem

    before = source.stamps(range(4))
    draw(tmp_path / "b.png", 1)
    assert (before == RowSource(file, "alt_text").stamps(range(4))).tolist() == [True, True, False, True]


def test_parts_are_large_where_there_is_much_and_small_where_little_must_not_be_repeated() -> None:
    assert [part_rows(total) for total in (1, 30_000, 100_000, 10_000_000)] == [1_000, 1_500, 5_000, 10_000]


def test_a_row_with_half_of_a_surrogate_pair_is_a_problem_of_that_row_alone(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 7)
    lines = [r'{"image_id": "a.png", "sentences": [["alt_text", "笑\ud83d"]]}', r'{"image_id": "\udc00.png"}']
    lines.append('{"image_id": "a.png", "sentences": [["alt_text", "红船"]]}')
    (tmp_path / "r.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = RowSource(tmp_path / "r.jsonl", "primary")
    assert len(set(source.stamps(range(3)).tolist())) == 3
    assert [bool(entry.problem) for entry in source.entries(range(3))] == [True, True, False]
    assert [bool(name) for name in source.table(range(3))["id"].to_pylist()] == [False, False, True]
