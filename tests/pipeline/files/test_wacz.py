"""wacz: WARC files are read where they lie in a zip; what cannot be read by places, or is hostile, is one line."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.files import wacz
from pipeline.rows.records import Capture
from pipeline.web.warc import capture_of, read_captures
from tests import archived

PAGES = b"".join(archived.page(f"http://a.cn/{number}", "1.jpg") for number in range(5))


def test_each_warc_file_of_a_wacz_has_an_address_and_is_read_by_it(tmp_path: Path) -> None:
    archived.wacz(tmp_path / "x.WACZ", {"b.warc.gz": b"bbb", "a.warc": b"aa", "c.txt": b"c"})
    file = str(tmp_path / "x.WACZ")
    addresses = wacz.warcs_in(file, "s")
    assert addresses == [f"{file}#archive/a.warc", f"{file}#archive/b.warc.gz"]
    assert {wacz.file_of(address) for address in addresses} == {file}
    for address, content in zip(addresses, (b"aa", b"bbb"), strict=True):
        with wacz.opened(address) as (f, start):
            assert f.read(100) == content
            assert (f.tell(), f.seek(1), f.read(1), f.seek(0, io.SEEK_END)) == (
                len(content),
                1,
                content[1:2],
                len(content),
            )
            assert Path(file).read_bytes()[start : start + len(content)] == content


def test_a_record_has_its_place_in_the_wacz_itself(tmp_path: Path) -> None:
    archived.wacz(tmp_path / "x.wacz", {"a.warc.gz": PAGES})
    data = (tmp_path / "x.wacz").read_bytes()
    [address] = wacz.warcs_in(str(tmp_path / "x.wacz"), "s")
    captures = list(read_captures(address, 10_000, {}))
    assert [capture.url for capture in captures] == [f"http://a.cn/{number}" for number in range(5)]
    for capture in captures:
        assert isinstance(capture, Capture)
        start, length = capture.place
        found = capture_of(data[start : start + length], 10_000)
        assert found is not None
        assert found.url == capture.url


def test_any_other_file_is_itself() -> None:
    for name in ("a.warc.gz", "https://a.cn/x.warc.gz", "a.wacz/b.warc.gz"):
        assert (wacz.warcs_in(name, "s"), wacz.file_of(name)) == ([name], name)


@pytest.mark.slow
def test_a_warc_file_that_the_zip_has_packed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archived.wacz(tmp_path / "x.wacz", {"a.warc.gz": b"\0" * 30_000_000}, zipfile.ZIP_DEFLATED)
    [address] = wacz.warcs_in(str(tmp_path / "x.wacz"), "s")
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"archive/a\.warc\.gz is compressed or encrypted in the zip"):
            list(read_captures(address, 10_000, {}))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_directory_without_bound_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wacz, "MAX_DIRECTORY", 10_000)
    archived.wacz(tmp_path / "x.wacz", {f"{number:0200}.warc.gz": b"" for number in range(50)})
    with pytest.raises(SourceError, match="a directory of more than 10,000 bytes"):
        wacz.warcs_in(str(tmp_path / "x.wacz"), "s")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"no zip", "not a readable WACZ file"),
        (lambda data: data[:-30], "not a readable WACZ file"),
        (lambda data: data.replace(b"archive/", b"Archive/"), r"contains no WARC file below archive/"),
    ],
)
def test_what_is_not_a_wacz_is_one_line(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    archived.wacz(tmp_path / "x.wacz", {"a.warc.gz": b""})
    (tmp_path / "x.wacz").write_bytes(damage((tmp_path / "x.wacz").read_bytes()))
    with pytest.raises(SourceError, match=said) as raised:
        wacz.warcs_in(str(tmp_path / "x.wacz"), "s")
    assert "\n" not in str(raised.value)


def test_a_directory_that_lies_about_a_place_is_one_line(tmp_path: Path) -> None:
    archived.wacz(tmp_path / "x.wacz", {"a.warc.gz": b"abc"})
    data = (tmp_path / "x.wacz").read_bytes()
    mark = data.index(b"PK\3\4", 4)
    (tmp_path / "x.wacz").write_bytes(data[:mark] + b"XXXX" + data[mark + 4 :])
    with pytest.raises(SourceError, match="is not where the zip"), wacz.opened(f"{tmp_path}/x.wacz#archive/a.warc.gz"):
        pass
    with pytest.raises(SourceError, match="contains no archive/b"), wacz.opened(f"{tmp_path}/x.wacz#archive/b.warc.gz"):
        pass
