"""Text files: their encoding and the separator of their columns, told by their bytes."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.sources._text_files import (
    HEAD,
    MAX_ROW,
    PACKED,
    Encoding,
    encoding_of,
    head_of,
    open_rows,
    rows_of,
    separator_of,
    text_of,
)

CAPTIONS = [
    "雪后的黄山日出",
    "我们在西湖边吃了一顿很好的晚饭。",
    "小狗，在草地上奔跑",
    "红烧肉",
    "2019年5月，妈妈和外婆",
    "一朵花在一片草地上，一只蝴蝶",
]
WRITTEN_AS = ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"]


@given(st.lists(st.booleans(), min_size=1))
def test_rows_of_two_encodings_are_read_in_that_of_most(utf8: list[bool]) -> None:
    rows = [f"{i},云{i}".encode("utf-8" if is_utf8 else "gb18030") for i, is_utf8 in enumerate(utf8)]
    if sum(utf8) * 2 >= len(utf8):
        assert encoding_of(b"\n".join(rows)) == "utf-8"
    if not any(utf8):
        assert encoding_of(b"\n".join(rows)) == "gb18030"


@given(st.lists(st.sampled_from(CAPTIONS), min_size=1), st.sampled_from(WRITTEN_AS), st.sampled_from(["\n", "\r\n"]))
def test_what_people_save_is_read_back_whatever_their_editor_wrote(captions: list[str], codec: str, end: str) -> None:
    text = f"a.jpg,{captions[0]}{end}" + end.join(captions)
    assert text_of(text.encode(codec), "auto") == text


def test_a_zero_in_a_cell_changes_no_encoding() -> None:
    rows = ["url,caption", *(f"http://a.cn/{n}.jpg,图片{n}" for n in range(50)), "http://a.cn/x.jpg,\0"]
    for n in range(50):
        broken = "\n".join(rows).encode().replace(f"图片{n}\n".encode(), f"图片{n}\n".encode("gbk"))
        assert encoding_of(broken) == "utf-8", "the bytes of one row are of another encoding"
    assert encoding_of("\n".join(rows).encode()) == "utf-8"


def test_traditional_chinese_is_read_as_big5() -> None:
    text = "台北的夜景,我們在這裡看見了很多的車。"
    assert text_of(text.encode("big5"), "auto") == text


def test_what_a_spec_says_is_believed_and_what_is_no_text_is_refused() -> None:
    assert text_of("好".encode("gbk"), "gbk") == "好"
    with pytest.raises(ValueError, match=r"not utf-8 .* set encoding"):
        text_of("好".encode("gbk"), "utf-8")
    with pytest.raises(ValueError, match=r"Excel workbook .* save the table as CSV"):
        text_of(b"PK\x03\x04 and so on", "auto")
    for name in ("gb2321", "base64"):
        with pytest.raises(ValidationError, match=f"unknown encoding '{name}'"):
            TypeAdapter(Encoding).validate_python(name)


def test_a_table_in_utf8_with_broken_rows_stays_utf8() -> None:
    rows = ["图,说明".encode(), "a,雪后的黄山日出".encode(), "b,坏了的一行".encode("gbk"), b"c,\xff"]
    assert encoding_of(b"\n".join(rows)) == "utf-8"
    assert encoding_of(("好" * HEAD).encode()[:HEAD], whole=False) == "utf-8"  # cut within a character


@pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ"])
def test_a_compressed_table_is_told_by_what_is_in_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert PACKED.sub("", name).lower() == "t.csv"
    path.write_bytes(gzip.compress("文件,说明\na.jpg,雪后的黄山日出\n".encode("gb18030")))
    with open_rows(str(path), "auto") as (rows, encoding):
        assert (encoding, list(rows)[1]) == ("gb18030", "a.jpg,雪后的黄山日出\n")


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "，"])
def test_the_separator_is_the_one_that_yields_the_columns(separator: str) -> None:
    assert separator_of(f"文件名{separator}描述{separator}作者\n", ["文件名", "描述"]) == separator
    assert separator_of(f"文件名{separator}描述{separator}作者\n", ["file"]) == separator


@pytest.mark.parametrize("above", ["", "2026 年图片清单\n", "图片清单;;\n\n制表：王\n"])
@pytest.mark.parametrize("wanted", [["url", "caption"], None])
def test_the_header_may_stand_below_a_title(above: str, wanted: list[str] | None) -> None:
    lines = iter(f"{above}url;caption;no\na;b;1\n".splitlines(keepends=True))
    separator, header, rows, used = head_of(lines, wanted)
    assert (separator, header, list(rows)) == (";", ["url", "caption", "no"], ["a;b;1\n"])
    assert used == above.count("\n") + 1


def test_a_table_without_a_header_keeps_its_rows() -> None:
    rows = [f"{n}\n" for n in range(9)]
    assert head_of(iter(rows), ["url"])[1] == ["0"]
    assert list(head_of(iter(rows), None)[2]) == rows[1:]


def test_the_usual_separator_stays_where_it_yields_the_columns() -> None:
    assert separator_of("url,a;b;c;d", ["url"]) == ","
    assert separator_of("url,a\tb\tc", ["url"], usual="\t") == ","  # by the suffix it would be a tab


def is_row(cells: list[str]) -> bool:
    return cells[0].startswith("http")


def rows(text: str, separator: str = "\t", columns: int = 2) -> list[list[str] | str]:
    """What is read of a table; in place of what was raised its message."""
    found = (row for row, *_ in rows_of(io.StringIO(text, newline=""), separator, columns, is_row))
    return [str(row) if isinstance(row, Exception) else row for row in found]


@pytest.mark.parametrize("closing", ["他说“好”", '他说"好', '"好"', '好"', '""', '"'])
def test_a_quote_that_begins_a_text_takes_no_row_into_its_cell(closing: str) -> None:
    texts = ["甲", '"乙', "丙", "丁", closing, "戊", "己"]
    found = rows("".join(f"http://i/{i}\t{text}\n" for i, text in enumerate(texts)))
    assert [row[0] for row in found] == [f"http://i/{i}" for i in range(len(texts))]
    plain = [row[1] for row in found]
    assert plain[:4] == texts[:4]
    assert plain[5:] == texts[5:]


def test_a_quote_that_is_left_out_costs_no_row() -> None:
    written = [["http://i/1", "甲"], ["http://i/2", "乙"], ["http://i/3", "丙"]]
    whole = "".join(f'"{url}"\t"{text}"\n' for url, text in written)
    assert rows(whole) == written
    for at in (i for i, character in enumerate(whole) if character == '"'):
        found = rows(whole[:at] + whole[at + 1 :])
        assert [row[0].strip('"') for row in found] == [url for url, _ in written], at
        assert [row[1].strip('"\n') for row in found] == [text for _, text in written], at


def test_such_a_quote_costs_no_row_that_is_broken_itself() -> None:
    assert rows('http://i/1\t"甲\nhttp://i/2\n\nhttp://i/3\t乙\nhttp://i/4\t"丙\n丁"\n') == [
        ["http://i/1", '"甲'],
        ["http://i/2"],
        [],
        ["http://i/3", "乙"],
        ["http://i/4", "丙\n丁"],
    ]


def test_cells_of_several_lines_stay_whole_where_a_cell_is_lacking_or_a_quote_is_misplaced() -> None:
    assert rows('http://i/1,"甲\n乙"\nhttp://i/2,"丙\n丁" 戊,己\n', ",", 3) == [
        ["http://i/1", "甲\n乙"],
        ["http://i/2", "丙\n丁 戊", "己"],
    ]


def url_is_last(cells: list[str]) -> bool:
    return cells[-1].strip().startswith("http")


def read_back(text: str) -> dict[str, str]:
    """URL -> caption of the rows that are read of a table `caption TAB url`."""
    found = (row for row, *_ in rows_of(io.StringIO(text, newline=""), "\t", 2, url_is_last))
    return {row[1].strip(): row[0] for row in found if isinstance(row, list) and len(row) == 2}


def test_two_stray_quotes_cost_the_rows_that_they_stand_in() -> None:
    rows = [f"第{n}张照片\thttp://i/{n}\n" for n in range(1_000)]
    rows[100] = '"第一半\n第二半\thttp://i/100\n'
    for closing in ('"今天"的\thttp://i/900\n', '今天"\thttp://i/900\n', '今天"的\thttp://i/900\n'):
        rows[900] = closing
        found = read_back("".join(rows))
        assert all(found.get(f"http://i/{n}") == f"第{n}张照片" for n in range(1_000) if n not in (100, 900)), closing
        assert found["http://i/100"] == "第二半"


CAPTION = st.text(st.sampled_from('甲a",\n '), min_size=1, max_size=8).map(str.strip).filter(bool)
BROKEN = st.sampled_from(['"甲\t{}', '甲"\t{}', '"甲\n乙\t{}', '"', '"甲"乙\t{}', '甲\n"乙"\t{}', '\n"\n', '"甲\t"{}"'])


@pytest.mark.slow
@given(st.lists(st.tuples(CAPTION, st.none() | BROKEN), min_size=1, max_size=30))
def test_a_stray_quote_costs_no_other_row_whatever_is_quoted_around_it(table: list[tuple[str, str | None]]) -> None:
    """Oracle: what the csv module wrote, between rows that no writer of tables writes."""
    file, sound = io.StringIO(newline=""), dict[str, str]()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    for number, (caption, broken) in enumerate(table):
        url = f"http://i/{number}"
        if broken is None:
            writer.writerow([caption, url])
            sound[url] = caption
        else:
            file.write(broken.format(url) + "\n")
    found = read_back(file.getvalue())
    assert {url: found.get(url) for url in sound} == sound


def test_a_caption_that_shows_a_table_stays_one_cell() -> None:
    poem = "\n".join(f"第{n}行，" for n in range(300))
    for caption in ("见\n下\n图\thttp://i/9\n的\n面", poem, "一\n\n\n二"):
        file = io.StringIO(newline="")
        csv.writer(file, delimiter="\t").writerow([caption, "http://i/1"])
        assert read_back(file.getvalue()) == {"http://i/1": caption}


@pytest.mark.parametrize("line", ['a"b\thttp://i\n', '"a","b\n', '"a""\t"b\n', '"\n'])
def test_what_is_read_again_after_a_stray_quote_is_bounded(line: str) -> None:
    """The lines that the readers look at grow with the table, and not with its square."""

    def looks(count: int) -> int:
        looked = 0

        def is_row(cells: list[str]) -> bool:
            nonlocal looked
            looked += 1
            return url_is_last(cells)

        list(rows_of(iter([line] * count), "\t", 2, is_row))
        return looked

    assert looks(800) <= 2.2 * looks(400) + 100


def test_rows_among_many_broken_lines_are_rows() -> None:
    """What two stray quotes enclose is a well-formed cell here, and only some of its lines are rows."""
    rows = [f"第{n}张\thttp://i/{n}\n" if n % 9 == 0 else "没有地址的一行\n" for n in range(100)]
    found = read_back('"第一半\n' + "".join(rows) + '今天"\thttp://i/100\n')
    assert {f"http://i/{n}" for n in range(0, 100, 9)} < set(found)


def test_the_row_with_the_next_quote_is_read_whole() -> None:
    """That quote ends the stray one's cell, and another cell of its row opens anew."""
    found = rows('http://i/1,"甲,丁\nhttp://i/2,"乙","两\n行"\nhttp://i/3,己,庚\n', ",", 3)
    assert found == [["http://i/1", '"甲', "丁"], ["http://i/2", "乙", "两\n行"], ["http://i/3", "己", "庚"]]


def test_a_line_that_breaks_off_in_a_quote_takes_nothing_of_the_next_row() -> None:
    for whole in ('"乙\n丙"\thttp://i/2\n', '"乙"\thttp://i/2\n'):
        assert read_back('"甲\n' + whole) == {"http://i/2": whole.split('"')[1]}


@pytest.mark.drill(1)
def test_no_row_is_longer_than_is_read_however_often_its_quotes_open_anew() -> None:
    line = 'a",b,"c' + "长" * 1000 + "\n"
    count = 3 * MAX_ROW // len(line)
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for text in ["http://i/0,甲\n", *[line] * count, "http://i/1,乙\n"]:
            read += len(text)
            yield text

    found = (row for row, *_ in rows_of(lines(), ",", 2, is_row))
    assert next(found) == ["http://i/0", "甲"]
    assert str(next(found)) == f"row of more than {MAX_ROW:,} characters"
    assert read < MAX_ROW + 2 * len(line), "no row holds all lines"
    *_, last = found
    assert last == ["http://i/1", "乙"]


CELL = st.text(st.sampled_from('a",\n\t 文'), max_size=8)


@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.sampled_from([",", "\t"]))
def test_what_a_writer_of_tables_writes_is_read_back(cells: list[tuple[str, str]], separator: str) -> None:
    table = [[f"http://i/{i}", *row] for i, row in enumerate(cells)]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows(table)
    assert rows(file.getvalue(), separator, 3) == table


@given(st.lists(st.text(st.sampled_from('a" 文'), max_size=6), min_size=1, max_size=12))
def test_a_table_without_quoting_keeps_the_number_of_its_rows(texts: list[str]) -> None:
    found = rows("".join(f"http://i/{i}\t{text}\n" for i, text in enumerate(texts)))
    assert [row[0] for row in found] == [f"http://i/{i}" for i in range(len(texts))]
