"""pictures: read from a tar or a file, checked, and found again where a takedown has moved them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.search.folder import IndexFault
from data_specs.search.pictures import media_type
from data_specs.search.search import SearchIndex
from tests.drawn import picture as drawn
from tests.indexed import make, random_units


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A tar's data with two pictures in it, and its Parquet."""
    pictures = [drawn(1), drawn(2)]
    write(tmp_path / "train-000000.tar", {"a": pictures[0], "b": pictures[1]})
    return tmp_path / "train-000000.tar", pictures


def write(path: Path, pictures: dict[str, bytes]) -> None:
    data, columns = b"", {"key": list(pictures), "image_offset": [], "image_size": []}
    for picture in pictures.values():
        columns["image_offset"].append(len(data) + 512)
        columns["image_size"].append(len(picture))
        data += b"\0" * 512 + picture
    path.write_bytes(data)
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


@pytest.mark.slow
def test_a_picture_is_found_again_after_its_tar_was_rewritten(tmp_path: Path, shard: tuple[Path, list[bytes]]) -> None:
    tar, (first, second) = shard
    place = {"path": str(tar), "offset": 512 + len(first) + 512, "size": len(second), "sha256": ""}
    row = {"id": "b", "sha256": hashlib.sha256(second).hexdigest(), "where": place}
    index = SearchIndex.open(make(tmp_path / "i", [row], random_units(1, 8)))
    assert index.picture("b") == (second, "image/jpeg")
    write(tar, {"b": second})
    assert index.picture("b") == (second, "image/jpeg")
    write(tar, {"a": first})
    with pytest.raises(IndexFault, match=r"b: .*train-000000.tar no longer contains the picture that was embedded"):
        index.picture("b")
    write(tar, {"b": first})
    with pytest.raises(IndexFault, match="no longer contains the picture that was embedded"):
        index.picture("b")
    tar.unlink()
    with pytest.raises(IndexFault, match="is not a file, but the index refers to a picture in it"):
        index.picture("b")


def test_a_picture_that_was_encoded_anew_has_a_digest_of_its_own(tmp_path: Path) -> None:
    picture = drawn(3)
    (tmp_path / "p.jpg").write_bytes(picture)
    place = {
        "path": str(tmp_path / "p.jpg"),
        "offset": 0,
        "size": len(picture),
        "sha256": hashlib.sha256(picture).hexdigest(),
    }
    rows = [{"id": "a", "sha256": "0" * 64, "where": place}, {"id": "b"}]
    index = SearchIndex.open(make(tmp_path / "i", rows, random_units(2, 8)))
    assert index.picture("a")[0] == picture
    with pytest.raises(IndexFault, match="b: the index does not list a picture for it"):
        index.picture("b")
    with pytest.raises(IndexFault, match="row c does not exist"):
        index.picture("c")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("http://127.0.0.1:9/a.jpg", "never from a web address"),
        ("https://a.example/a.jpg", "never from a web address"),
        ("ftp://a.example/a.jpg", "never from a web address"),
        ("/dev/zero", "is not a file"),
    ],
)
def test_a_stranger_s_index_leads_to_no_web_address_and_no_device(tmp_path: Path, path: str, line: str) -> None:
    rows = [{"id": "a", "where": {"path": path, "offset": 0, "size": 9, "sha256": "0" * 64}}]
    index = SearchIndex.open(make(tmp_path / "i", rows, random_units(1, 8)))
    with pytest.raises(IndexFault, match=line):
        index.picture("a")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x1cftypavif", "image/avif"),
        (b"\0\0\0\x1cftypheic", "image/heic"),
        (b"GIF89a", "image/gif"),
        (b"<html>", "application/octet-stream"),
    ],
)
def test_the_media_type_is_that_of_the_bytes(start: bytes, kind: str) -> None:
    assert media_type(start) == kind
