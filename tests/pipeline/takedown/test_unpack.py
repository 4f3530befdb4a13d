"""Every place in which a file of ours may hold some bytes is a piece of it."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import sqlite3
import zipfile
import zlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.takedown import unpack
from pipeline.takedown.unpack import Unpacked
from tests import archived
from tests.drawn import blobs, encoded

SECRET = "秘密的图片说明".encode()


def held(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """The pieces of a file by their members, and the faults."""
    file = Unpacked(path)
    return {piece.member: b"".join(piece.blocks) for piece in file.pieces()}, file.faults


def tar(content: bytes) -> bytes:
    return archived.tar({"a/b.txt": content})


def zipped(content: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.txt", content)
    return data.getvalue()


def warc(content: bytes, *headers: str) -> bytes:
    http = "".join(f"{header}\r\n" for header in ("HTTP/1.1 200 OK", *headers)).encode() + b"\r\n" + content
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.cn/\r\nContent-Length: {len(http)}\r\n\r\n"
    return head.encode() + http + b"\r\n\r\n"


def parquet(content: bytes) -> bytes:
    data = io.BytesIO()
    texts = [[{"kind": "alt", "text": content.decode()}], None]
    pq.write_table(pa.table({"n": [1, 2], "texts": texts}), data, compression="zstd")
    return data.getvalue()


def binary(content: bytes) -> bytes:
    data = io.BytesIO()
    column = pa.array([b"-" * 200, content.ljust(200, b"-")])
    pq.write_table(pa.table({"image": column.dictionary_encode()}), data, compression="gzip")
    return data.getvalue()


def arrow(content: bytes) -> bytes:
    data, table = io.BytesIO(), pa.table({"a": [content.decode()] * 3000})
    with pa.ipc.new_file(data, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(table)
    return data.getvalue()


def sqlite(content: bytes, tmp: Path) -> bytes:
    with sqlite3.connect(tmp / "made.sqlite") as db:
        db.execute("PRAGMA page_size = 512")
        db.execute('CREATE TABLE "odd name" (a INTEGER, b TEXT)')
        db.execute('INSERT INTO "odd name" VALUES (1, ?)', ("长" * 90 + content.decode() + "长" * 90,))
    db.close()
    return (tmp / "made.sqlite").read_bytes()


def duck(content: bytes, tmp: Path) -> bytes:
    with duckdb.connect(str(tmp / "made.duckdb")) as db:
        db.execute("CREATE TABLE t AS SELECT i, ? || (i % 7) AS text FROM range(5000) r(i)", [content.decode()])
    return (tmp / "made.duckdb").read_bytes()


PACKED = {
    "plain": lambda content, tmp: b"before" + content,
    "tar": lambda content, tmp: tar(content),
    "joined tars": lambda content, tmp: tar(b"other") + tar(content),
    "gzip": lambda content, tmp: gzip.compress(content),
    "gzip of several members": lambda content, tmp: gzip.compress(b"a") + gzip.compress(content),
    "tar in gzip": lambda content, tmp: gzip.compress(tar(content)),
    "gzip in tar": lambda content, tmp: tar(gzip.compress(content)),
    "zip": lambda content, tmp: zipped(content),
    "bz2": lambda content, tmp: bz2.compress(content),
    "zstd": lambda content, tmp: pa.compress(content * 3, "zstd", asbytes=True),
    "warc": lambda content, tmp: warc(content),
    "warc.gz": lambda content, tmp: gzip.compress(warc(b"other")) + gzip.compress(warc(content)),
    "warc, gzip": lambda content, tmp: warc(gzip.compress(content), "Content-Encoding: gzip"),
    "warc, deflate": lambda content, tmp: warc(zlib.compress(content), "Content-Encoding: deflate"),
    "warc, br": lambda content, tmp: warc(pa.compress(content, "brotli", asbytes=True), "Content-Encoding: br"),
    "warc, chunked": lambda content, tmp: warc(
        b"3\r\n" + content[:3] + b"\r\n" + f"{len(content) - 3:x}\r\n".encode() + content[3:] + b"\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked",
    ),
    "warc, encoded no more": lambda content, tmp: warc(content, "Content-Encoding: br", "Transfer-Encoding: chunked"),
    "parquet": lambda content, tmp: parquet(content),
    "bytes in parquet": lambda content, tmp: binary(content),
    "tar in parquet": lambda content, tmp: binary(tar(content)),
    "arrow": lambda content, tmp: arrow(content),
    "sqlite": sqlite,
    "duckdb": duck,
}


@pytest.mark.parametrize("kind", PACKED)
def test_what_is_packed_is_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(PACKED[kind](SECRET, tmp_path))
    pieces, faults = held(path)
    assert pieces[""] == path.read_bytes()
    assert [member for member, data in pieces.items() if SECRET in data], pieces.keys()
    assert faults == []


def test_pictures_in_pages_and_in_json_are_pieces_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(blobs(1, (32, 24))))
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    (tmp_path / "page").write_text(f"<p>一<img src='{uri}'><img src='{uri}'>{uri}")
    (tmp_path / "json").write_text(json.dumps({"picture": uri}))
    for block in (1 << 20, 100, 7):
        monkeypatch.setattr(unpack, "BLOCK", block)
        for name, count in (("page", 3), ("json", 1)):
            pieces, faults = held(tmp_path / name)
            assert ([own for member, own in pieces.items() if member], faults) == ([data] * count, []), block


@pytest.mark.parametrize("kind", ["gzip", "tar in gzip", "zip", "parquet", "sqlite", "duckdb", "arrow"])
def test_what_cannot_be_unpacked_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = PACKED[kind](SECRET, tmp_path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    _, [fault] = held(path)
    assert " cannot be unpacked (" in fault


def test_members_behind_a_damaged_header_are_pieces_and_the_damage_is_named(tmp_path: Path) -> None:
    first, second = tar(b"one")[:1024], tar(SECRET)
    (tmp_path / "file").write_bytes(first + b"?" * 512 + first + second)
    pieces, [fault] = held(tmp_path / "file")
    assert pieces["!a/b.txt"] == SECRET, "the last one of this name"
    assert "512 bytes from byte 1,024 on cannot be read" in fault


@given(st.binary(max_size=3000), st.lists(st.sampled_from(["tar", "gzip", "zip", "warc", "tar in gzip"]), max_size=3))
def test_any_bytes_are_found_in_any_nesting(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kinds: list[str]
) -> None:
    path, content = tmp_path_factory.mktemp("nested") / "file", b"\x00" + data  # so that it is no archive by chance
    for kind in kinds:
        content = PACKED[kind](content, path.parent)
    path.write_bytes(content)
    pieces, faults = held(path)
    assert (b"\x00" + data in pieces.values(), faults) == (True, [])


@pytest.mark.slow
def test_a_file_that_unpacks_to_much_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    with gzip.open(tmp_path / "a.gz", "wb", 1) as out:
        for _ in range(300):
            out.write(b"\0" * (1 << 20))
        out.write(SECRET)
    tracemalloc.start()
    found = any(SECRET in block for piece in Unpacked(tmp_path / "a.gz").pieces() for block in piece.blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found
    assert peak < 2.5 * unpack.IN_MEMORY
