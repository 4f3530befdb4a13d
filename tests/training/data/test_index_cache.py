"""Indexes of shards: what does not match its manifest is named in one line, and so is a damaged index."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import ContractError
from training.data import index_cache
from training.data.index import open_dataset
from training.data.index_cache import COLUMNS

MakeShards = Callable[..., Path]


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _edit(manifest: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's first shard."""
    content = json.loads(manifest.read_text())
    change(content["shards"][0])
    manifest.write_text(json.dumps(content))


def _replace(manifest: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a Parquet of the first shard, with a manifest that vouches for it."""
    path = manifest.parent / name
    pq.write_table(change(pq.read_table(path)), path)
    of = "regions" if name.startswith("regions") else "parquet"
    _edit(manifest, lambda shard: (shard["regions"]["yolo"] if of == "regions" else shard[of]).update(_digest(path)))


def _with(table: pa.Table, column: str, values: Any, kind: Any = None) -> pa.Table:
    """The table with other values of a column; `values`: all of them, or {row: value}."""
    at = table.schema.get_field_index(column)
    if isinstance(values, dict):
        listed = table[column].to_pylist()
        for row, value in values.items():
            listed[row] = value
        values = pa.array(listed, kind or table.schema.field(column).type)
    return table.set_column(at, column, values)


ROWS, BOXES = "train-000000.parquet", "regions/yolo/train-000000.parquet"
FLOATS = pa.list_(pa.float32())


def _file(act: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda manifest: act(manifest.parent)


def _in_boxes(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda manifest: _replace(manifest, BOXES, change)


def _cut(folder: Path) -> None:
    (folder / "train-000001.tar").write_bytes((folder / "train-000001.tar").read_bytes()[:-2000])


def _pipe(folder: Path, name: str) -> None:
    if name.endswith("tar"):
        _edit(folder / "manifest.json", lambda shard: shard["tar"].update(bytes=0))
    (folder / name).unlink()
    os.mkfifo(folder / name)


def _outside(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace('"train-000000.tar"', '"../train-000000.tar"'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_file(_cut), r"train-000001.tar: \d+ bytes, the manifest says \d+"),
        (_file(lambda f: (f / "train-000000.tar").unlink()), "train-000000.tar: missing"),
        (_file(lambda f: (f / ROWS).unlink()), f"{ROWS}: missing"),
        (_file(lambda f: shutil.copy(f / "train-000001.parquet", f / ROWS)), f"{ROWS}: its sha256 differs"),
        (_outside, "is outside the shard folder"),
        (_file(lambda f: _pipe(f, "train-000000.tar")), "train-000000.tar: not a regular file"),
        (_file(lambda f: _pipe(f, "manifest.json")), "manifest.json: not a regular file"),
        (_in_boxes(lambda t: _with(t, "key", {2: "f" * 32})), f"{BOXES}: row 2 has key ffff"),
        (_in_boxes(lambda t: t.slice(1)), "6 rows for a shard of 7 samples"),
        (_in_boxes(lambda t: _with(t, "boxes", {2: None}, FLOATS)), f"{BOXES}: .*boxes"),
        (_in_boxes(lambda t: _with(t, "boxes", {2: [1.0, None, 2.0, 3.0]}, FLOATS)), f"{BOXES}: .*boxes"),
        (
            lambda m: _replace(m, ROWS, lambda t: _with(t, "key", pa.array([b"\xff\xfe"] * 7).view(pa.string()))),
            f"{ROWS}: not a Parquet file of this contract .*UTF8",
        ),
        *(
            (
                lambda m, w=which, p=path: _edit(m, lambda shard: shard[w].update(path=p)),
                "train-00|path|missing|no such|regular|leaves",
            )  # type: ignore[misc]
            for which in ("tar", "parquet")
            for path in ("a\0b", "zip::x")
        ),
    ],
)
@pytest.mark.timeout(120)
def test_files_that_do_not_match_their_manifest_are_one_line(
    make_shards: MakeShards, damage: Callable[[Path], object], line: str
) -> None:
    manifest = make_shards(detector="yolo")
    damage(manifest)
    with pytest.raises(ContractError, match=line) as caught:
        open_dataset([str(manifest)], "train")
    assert "\n" not in str(caught.value)


def _other_columns() -> bytes:
    """An index with the rows and not the columns that are read, as another program might write it."""
    sink, table = pa.BufferOutputStream(), pa.table({"key": [str(number) for number in range(7)]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"x" * 500, _other_columns()], ids=range(4))
def test_a_damaged_index_in_the_cache_is_one_line(make_shards: MakeShards, tmp_path: Path, damage: bytes) -> None:
    manifest = make_shards(detector="tiles")
    for pattern, detector in (("*-*.arrow", "tiles"), ("[!-]" * 64 + ".v1.arrow", "grid")):
        data = open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index")
        data.row(0)
        broken = sorted((tmp_path / "index").glob(pattern))
        assert broken
        for path in broken:
            path.write_bytes(damage)
        with pytest.raises(ContractError, match=r"\.arrow: damaged index in the cache .*; delete it") as caught:
            open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)
        assert "\n" not in str(caught.value)
        for path in broken:
            path.unlink()
        open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)


SHA = "a" * 64


def _texts(value: Any) -> Any:
    return [{"kind": "alt", "text": "图", "text_leader": SHA} | value]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("candidate_id", "xyz", "row 2: candidate_id is not a sha256 in hex"),
        ("image_leader", "0" * 63 + "\n", "row 2: image_leader is not a sha256 in hex"),
        ("source_kind", "shop", "row 2: source_kind is not one of news, "),
        ("texts", [], "row 2: texts is empty"),
        ("texts", [None], "texts contain a missing entry"),
        ("texts", _texts({"text": None}), "texts contain an entry without text"),
        ("texts", _texts({"text_leader": "1"}), "texts contain an entry whose text_leader is not a sha256 in hex"),
        ("width", -1, "row 2: width is -1"),
        ("image_offset", -512, "row 2: image_offset is -512"),
        ("image_size", 2**63 - 1, "its index names an image that ends at"),
        ("image_offset", 2**63 - 1, "its index names an image that ends at"),
    ],
)
def test_a_parquet_of_the_right_sha256_with_a_wrong_row_is_one_line(
    make_shards: MakeShards, column: str, value: Any, problem: str
) -> None:
    manifest = make_shards()
    _replace(manifest, ROWS, lambda table: _with(table, column, {2: value}))
    with pytest.raises(ContractError, match=problem) as caught:
        open_dataset([str(manifest)], "train")
    assert "train-000000" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_parquet_with_a_column_of_another_type_is_one_line(make_shards: MakeShards, column: str) -> None:
    manifest = make_shards()
    _replace(manifest, ROWS, lambda table: _with(table, column, pa.array([{"a": 1}] * table.num_rows)))
    with pytest.raises(ContractError, match=f"train-000000.parquet: not a Parquet file of this contract .*{column}"):
        open_dataset([str(manifest)], "train")


def test_a_manifest_of_more_samples_is_not_opened_from_an_earlier_index(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    manifest = make_shards(train=[30], detector="yolo")
    for detector in ("yolo", "grid"):
        assert len(open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index")) == 30
    _edit(manifest, lambda shard: shard.update(samples=40))
    for detector in ("yolo", "grid"):
        with pytest.raises(ContractError, match=r"train-000000.parquet: 30 rows, the manifest says 40"):
            open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index")


@pytest.mark.parametrize("digest", ["../../../escaped", "", "A" * 64])
def test_a_sha256_that_is_none_is_no_file_name(make_shards: MakeShards, tmp_path: Path, digest: str) -> None:
    manifest = make_shards(detector="yolo")
    whole = manifest.read_text()
    for where in ("parquet", "regions"):
        manifest.write_text(whole)
        _edit(manifest, lambda shard, w=where: (shard[w] if w == "parquet" else shard[w]["yolo"]).update(sha256=digest))
        with pytest.raises(ContractError, match=r"manifest.json: the sha256 of .*train-000000.parquet is invalid"):
            open_dataset([str(manifest)], "train", cache=tmp_path / "index")


def test_a_shard_without_a_row_is_opened(make_shards: MakeShards) -> None:
    assert len(open_dataset([str(make_shards(train=(0, 2), detector="yolo"))], "train")) == 2


def test_an_index_that_finds_no_room_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            index_cache._write_arrow(pa.table({"row": range(100_000)}), tmp_path / "x.arrow")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "x.arrow")
    assert list(tmp_path.iterdir()) == []


class _Quiet(SimpleHTTPRequestHandler):
    """Python's own server: it tells when a file was changed, and no ETag."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a web server over the folder of the test."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_plain_tar_that_was_replaced_on_a_web_server_is_indexed_anew(
    make_shards: MakeShards, tmp_path: Path, server: str
) -> None:
    tars = [make_shards(train=(3,), name=n, first=f).parent / "train-000000.tar" for n, f in (("a", 0), ("b", 50))]
    longest = max(tar.stat().st_size for tar in tars)
    for tar in tars:  # what follows the end mark is none of the archive
        tar.write_bytes(tar.read_bytes().ljust(longest, b"\0"))
    found = []
    for number, tar in enumerate(tars):
        shutil.copy(tar, tmp_path / "x.tar")
        os.utime(tmp_path / "x.tar", (1_000_000 * (number + 1),) * 2)
        dataset = open_dataset([f"{server}/x.tar"], "train", cache=tmp_path / "cache")
        found.append([dataset.row(row).key for row in range(len(dataset))])
    expected = open_dataset([str(tars[1])], "train", cache=tmp_path / "other")
    assert found[0] != found[1] == [expected.row(row).key for row in range(3)]


def test_a_server_that_does_not_tell_the_length_of_a_tar_is_one_line(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(10_240))
    told = SimpleHTTPRequestHandler.send_header

    def without_length(self: SimpleHTTPRequestHandler, keyword: str, value: str) -> None:
        if keyword != "Content-Length":
            told(self, keyword, value)

    monkeypatch.setattr(SimpleHTTPRequestHandler, "send_header", without_length)
    with pytest.raises(ContractError, match=r"x.tar: its server does not report the size"):
        open_dataset([f"{server}/x.tar"], "train", cache=tmp_path / "cache")
