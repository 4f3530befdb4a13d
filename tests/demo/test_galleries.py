"""galleries: verses out of an npm tarball as chinese-poetry is laid out, and out of the package itself."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.demo import galleries
from tests.demo.packages import DemoError

MOON = {
    "author": "蘇軾",
    "rhythmic": "水調歌頭",
    "paragraphs": ["明月幾時有？", "把酒問青天。", "但願人長久，千里共嬋娟。"],
}
DUCK = {"author": "骆宾王", "title": "咏鹅", "paragraphs": ["鹅，鹅，鹅，", "曲项向天歌。", "白毛□绿水，红掌拨清波。"]}
RIVER = {"author": "", "title": "", "paragraphs": ["大江東去，浪淘盡、千古風流人物。", "短", "把酒問青天。"]}


def package(folder: Path, works: dict[str, Any]) -> None:
    """A tarball as `npm pack` leaves it, where `download_npm` looks for one."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    with tarfile.open(packages / "chinese-poetry-2.0.1.tgz", "w:gz") as archive:
        for name, content in {"LICENSE": b"The MIT License (MIT)\n", **works}.items():
            data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_a_line_is_a_verse_in_simplified_characters_and_who_wrote_it(tmp_path: Path) -> None:
    package(
        tmp_path,
        {
            "dist/quantangshi/唐诗三百首.json": [DUCK],
            "dist/songci/宋词三百首.json": [MOON],
            "dist/songci/ci.song.0.json": [MOON, RIVER],
            "dist/yuanqu/yuanqu.json": [RIVER],
        },
    )
    poems, songs = galleries.make(tmp_path, 100, lambda _: None)
    assert poems.read_text("utf-8").splitlines() == [
        "鹅，鹅，鹅，\t骆宾王《咏鹅》",
        "曲项向天歌。\t骆宾王《咏鹅》",
        "明月几时有？\t苏轼《水调歌头》",
        "把酒问青天。\t苏轼《水调歌头》",
        "但愿人长久，千里共婵娟。\t苏轼《水调歌头》",
    ], "a verse that has lost a character is left out"
    lines = songs.read_text("utf-8").splitlines()
    assert lines[3:] == ["大江东去，浪淘尽、千古风流人物。\t佚名"], (
        "every verse once, under who has it first, and none too short"
    )
    assert "MIT" in (tmp_path / "LICENCE.txt").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENCE.txt", "packages", "poems.txt", "songs.txt"]


def test_a_long_paragraph_is_cut_into_sentences_and_a_verse_may_ask(tmp_path: Path) -> None:
    file = tmp_path / "songs.json"
    long = "春花秋月何时了？往事知多少。" * 4
    file.write_text(
        json.dumps(
            [{"author": "李煜", "rhythmic": "虞美人", "paragraphs": ["问君能有几多愁？。", long, "（末云）去也。"]}]
        )
    )
    texts = [verse.text for verse in galleries.verses_of(file)]
    assert texts == ["问君能有几多愁？", *["春花秋月何时了？", "往事知多少。"] * 4]


@pytest.mark.parametrize("content", [b"no json", b'{"a": 1}', b"[1]", b'[{"author": "x"}]'])
def test_a_file_that_is_laid_out_otherwise_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    package(tmp_path, {"dist/quantangshi/唐诗三百首.json": content})
    with pytest.raises(DemoError, match=r"唐诗三百首.json: not the file that chinese-poetry had"):
        galleries.make(tmp_path, 10, lambda _: None)
