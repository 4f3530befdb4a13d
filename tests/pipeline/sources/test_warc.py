"""warc: the ways to name existing WARC files, and messages for names that fail."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import SourceError
from pipeline.sources.warc import Warc
from tests import archived


def warc(base: Path, **options: object) -> Warc:
    return Warc.model_validate({"name": "w", "source_kind": "news", "base": str(base), **options})


def test_paths_and_globs_relative_to_the_spec_each_once(tmp_path):
    for name in ("b.warc.gz", "a.warc.gz", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    paths = warc(tmp_path, path=["*.warc.gz", "b.warc.gz", "c.txt"]).warcs()
    assert [Path(f).name for f in paths] == ["a.warc.gz", "b.warc.gz", "c.txt"]
    assert warc(tmp_path, path="a.warc.gz").warcs() == [str(tmp_path / "a.warc.gz")]
    assert len(warc(tmp_path, path="*.warc.gz", limit=1).warcs()) == 1


def test_a_wacz_stands_for_its_warc_files_whose_records_have_addresses(tmp_path):
    archived.wacz(tmp_path / "x.wacz", {"b.warc.gz": b"", "a.warc.gz": b""})
    (tmp_path / "y.warc.gz").write_bytes(b"x")
    source = warc(tmp_path, path=["*.wacz", "y.warc.gz"])
    names = ["x.wacz#archive/a.warc.gz", "x.wacz#archive/b.warc.gz", "y.warc.gz"]
    assert source.warcs() == source.listing() == [str(tmp_path / name) for name in names]
    assert len(source.token()) == 2
    assert source.record_at(source.address_of(2, 10, 5)) == (2, 10, 5)


@pytest.mark.parametrize("pack", [False, True])
def test_a_list_of_paths_as_common_crawl_publishes_it(tmp_path, pack):
    text = b"crawl-data/1.warc.gz\n\ncrawl-data/2.warc.gz\n"
    name = "warc.paths.gz" if pack else "warc.paths"
    (tmp_path / name).write_bytes(gzip.compress(text) if pack else text)
    source = warc(tmp_path, path_list=name)
    assert source.warcs() == [f"https://data.commoncrawl.org/crawl-data/{i}.warc.gz" for i in (1, 2)]
    before = source.token()
    (tmp_path / name).write_bytes(gzip.compress(text + b"3\n") if pack else text + b"3\n")
    assert source.token() != before
    assert warc(tmp_path, path_list=name, prefix="s3://mine/").warcs()[-1] == "s3://mine/3"


def test_a_list_of_paths_may_be_of_a_windows_editor(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeff1.warc.gz\r\n2.warc.gz\r\n".encode())
    assert warc(tmp_path, path_list="list.txt", prefix="s3://b/").warcs() == ["s3://b/1.warc.gz", "s3://b/2.warc.gz"]


def test_the_token_changes_with_a_file_and_not_with_the_folder(tmp_path):
    tokens = []
    for folder, text, when in (("a", b"x", 1), ("b", b"x", 1), ("c", b"xy", 1), ("d", b"x", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.warc").write_bytes(text)
        os.utime(tmp_path / folder / "1.warc", (when, when))
        tokens.append(warc(tmp_path / folder, path="*.warc").token())
    assert tokens[0] == tokens[1]
    assert tokens[2] != tokens[0] != tokens[3]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"path": "none.warc"}, "none.warc"),
        ({"path": "*.none"}, r"\*.none"),
        ({"path_list": "none.paths.gz"}, "none.paths.gz"),
        ({"path_list": "bad.paths.gz"}, "bad.paths.gz"),
        ({"path_list": "empty.paths"}, "empty.paths"),
        ({"path": "nosuch://x/y"}, "nosuch"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_path(tmp_path, options, names):
    (tmp_path / "bad.paths.gz").write_bytes(b"not gzip")
    (tmp_path / "empty.paths").write_bytes(b"\n")
    with pytest.raises(SourceError, match=names) as e:
        warc(tmp_path, **options).token()
    assert "\n" not in str(e.value)
    with pytest.raises(SourceError, match=names):
        warc(tmp_path, **options).warcs()


def test_it_must_name_something(tmp_path):
    with pytest.raises(ValidationError, match="path or path_list is required"):
        warc(tmp_path)
