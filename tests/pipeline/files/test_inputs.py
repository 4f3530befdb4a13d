"""Lines of text files: what Python reads, whatever their length; none is held in memory beyond a bound."""

from __future__ import annotations

import gzip
import io
import os
import tracemalloc
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.files import inputs
from pipeline.files.inputs import Lines, LongLine, expand
from pipeline.sources._text_files import open_rows

LINES = st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=12), max_size=8)


@given(lines=LINES, ends=st.booleans(), longest=st.integers(1, 12))
def test_lines_are_python_s_and_longer_ones_are_faults_in_their_places(lines, ends, longest):
    text = "\n".join(lines) + ("\n" if ends else "")
    expected = list(io.StringIO(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "MAX_LINE", longest)
        read = list(Lines(io.StringIO(text)).numbered())
    assert [number for number, _ in read] == list(range(1, len(expected) + 1))
    assert [isinstance(line, LongLine) for _, line in read] == [len(line) > longest for line in expected]
    assert [a for (_, a), b in zip(read, expected, strict=True) if len(b) <= longest] == [
        b for b in expected if len(b) <= longest
    ]


@pytest.mark.slow
def test_a_line_without_an_end_is_not_held_in_memory(tmp_path):
    file = tmp_path / "endless.jsonl"
    with file.open("w") as f:
        for _ in range(64):
            f.write("x" * (1 << 20))
        f.write("\nnext\n")
    tracemalloc.start()
    with file.open() as f:
        fault, line = [line for _, line in Lines(f).numbered()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 1,048,576 characters" in str(fault)
    assert line == "next\n"
    assert peak < 16 << 20


@pytest.mark.slow
def test_a_line_that_unpacks_to_far_more_is_not_held_in_memory(tmp_path):
    """A few hundred kB of gzip, as a table of URLs is given: read through the same door as a source reads it."""
    file = tmp_path / "bomb.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as f:
        for _ in range(64):
            f.write(b"x" * (1 << 20))
        f.write(b"\nnext\n")
    assert file.stat().st_size < 1 << 20
    tracemalloc.start()
    with open_rows(str(file), "utf-8") as (f, _):
        fault, line = [line for _, line in Lines(f).numbered()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(fault, LongLine)
    assert line == "next\n"
    assert peak < 16 << 20


@pytest.mark.slow
@pytest.mark.parametrize("path", ["s3://bucket/2026/*.csv", "s3://bucket/rows.csv"])
def test_an_input_on_s3_without_a_key_is_one_line(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fs = pytest.importorskip("s3fs").S3FileSystem
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fs.clear_instance_cache()
    with pytest.raises(SourceError) as e:
        expand((path,), "rows")
    fs.clear_instance_cache()
    todo = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment"
    assert str(e.value) == f"{path}: source rows: cannot be accessed ({todo})"
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("base", ["项目 [新]", "a*b", "what?"])
def test_a_name_with_brackets_is_a_name_and_so_is_that_of_a_folder_above(tmp_path, base):
    folder = tmp_path / base
    (folder / "sub").mkdir(parents=True)
    for name in ("表[1].csv", "b.csv", "sub/c.csv"):
        (folder / name).write_bytes(b"x")
    assert expand(("b.csv",), "s", str(folder)) == [str(folder / "b.csv")]
    assert expand(("表[1].csv",), "s", str(folder)) == [str(folder / "表[1].csv")]
    assert expand((str(folder / "表[1].csv"),), "s") == [str(folder / "表[1].csv")]
    assert expand(("*.csv", "sub/*.csv"), "s", str(folder)) == [
        str(folder / name) for name in ("b.csv", "表[1].csv", "sub/c.csv")
    ]
    with pytest.raises(SourceError, match="no such file"):
        expand(("none.csv",), "s", str(folder))
    with pytest.raises(SourceError, match="no file matches"):
        expand(("[x]*.csv",), "s", str(folder))


def test_a_glob_needs_no_access_to_a_file_of_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 403, and not 404, about a key that is not there, to whoever may list some prefixes alone."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/denied/1.csv", b"x")

    def exists(path: str, **options: object) -> bool:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fs, "exists", exists)
    assert expand(("memory://denied/*.csv",), "s") == ["memory:///denied/1.csv"]


def test_a_glob_matches_what_lies_behind_links(tmp_path):
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "a" / "1.csv").write_text("")
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / "b" / "2.csv").write_text("")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "disk" / "a")
    assert expand(("data/*/*.csv",), "s", str(tmp_path)) == [
        f"{tmp_path}/data/b/2.csv",
        f"{tmp_path}/data/c/1.csv",
    ]
