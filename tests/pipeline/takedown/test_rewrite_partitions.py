"""A takedown leaves nothing of what went in any file of BUILD and STORE, whatever passes a spec asks for.

What went is known by what the tables held of it: its rows, every text, URL, signature, hash and vector in one of them,
its bytes as they were fetched, and how it looks. What stays may hold the same, and is not looked for. Decisions and
STORE/forgotten keep ids and hashes.
"""

from __future__ import annotations

import base64
import functools
import gzip
import html
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.build import BuildSpec, Dedup
from data_specs.shard import nfc
from pipeline import opening, run
from pipeline.features import feature_id
from pipeline.features._rows import measure_image
from pipeline.filters.image_nsfw import ImageNsfw
from pipeline.pictures.decode import MAX_PIXELS, PictureError
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.report.explain import explain
from pipeline.report.funnel import faults, read_funnels
from pipeline.rows.records import FEATURE_SCHEMA, sha256_hex
from pipeline.store import build_json
from pipeline.store.build import Build, Pass
from pipeline.store.takedowns import LOOKED_AT, Look, Takedowns
from pipeline.takedown import garbage, rewrite_partitions
from pipeline.takedown.forget import Request, forget
from tests import archived, towered
from tests.stages import run_stage
from tests.towered import coloured

IDS = {"candidate_id", "id", "key", "fetch_id", "sha256", "image_leader", "text_leaders", "leader", "duplicate_of",
       "order_key", "rank", "text_leader"}  # fmt: skip
SAME = {"evidence", "fetched_at", "sketches", "regions", "boxes", "etag", "last_modified"}
"""Columns without what is looked for: ids and hashes stay; others say no more than that something was there."""

RULES = Dedup()

LEAST = 6
"""Bytes of what is looked for: a shorter value is anywhere."""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _flat(array: pa.Array | pa.ChunkedArray) -> bytes:
    """Every value of a column, one after the other, as bytes."""
    if isinstance(array, pa.ChunkedArray):
        return b"\n".join(map(_flat, array.chunks))
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _flat(array.dictionary)
    if pa.types.is_struct(kind):
        return b"\n".join(map(_flat, array.flatten()))
    if pa.types.is_list(kind):
        return _flat(array.flatten())
    if pa.types.is_string(kind):
        return "\n".join(text or "" for text in array.to_pylist()).encode()
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return b"".join(data or b"" for data in array.to_pylist())
    if pa.types.is_null(kind):
        return b""
    return bytes(np.ascontiguousarray(array.drop_null().to_numpy(zero_copy_only=False)).tobytes())


def _table(data: bytes) -> pa.Table | None:
    if data[:4] == b"PAR1":
        return pq.read_table(io.BytesIO(data))
    return pa.ipc.open_file(io.BytesIO(data)).read_all() if data[:6] == b"ARROW1" else None


def unpacked(data: bytes) -> bytes:
    """What a file says: tables column by column, archives and escapes undone."""
    table = _table(data)
    if table is not None:
        return b"\n".join(_flat(column) for column in table.columns)
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:1] in (b"{", b"["):
        return data + _json(json.loads(data))
    return data + html.unescape(data.decode("utf-8", "ignore")).encode() if b"<html" in data[:200] else data


def files(*folders: str) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


@functools.cache
def _measured(picture: bytes) -> dict[str, Any] | None:
    """Features of a picture, which lies in many files; None if it has none."""
    try:
        return measure_image(picture, MAX_PIXELS)
    except PictureError:
        return None


def _pictures(data: bytes) -> Iterator[bytes]:
    """Pictures in a tar, or in a page."""
    if data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            yield from (tar.extractfile(member).read() for member in tar if not member.name.endswith((".txt", ".json")))  # type: ignore[union-attr]
    for found in re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", data):
        yield base64.b64decode(found)


def _values(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Each value of a column that may be looked for: texts, bytes, and lists of numbers whole."""
    for value in column.combine_chunks() if column.num_chunks else ():
        kind = value.type
        if pa.types.is_list(kind) and (pa.types.is_struct(kind.value_type) or pa.types.is_string(kind.value_type)):
            for child in value.as_py() or ():
                texts = child.values() if isinstance(child, dict) else [child]
                yield from (text.encode() for text in texts if isinstance(text, str))
        elif pa.types.is_list(kind) and value.is_valid:
            yield _flat(value.values)
        elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
            data = value.as_py() or b""
            yield data.encode() if isinstance(data, str) else data


NAMES = {"candidate_id", "fetch_id", "sha256", "url"}
"""Columns by which a row is known as one of what went, or of what stays."""


def _named(table: pa.Table, ids: Set[str]) -> np.ndarray[Any, Any]:
    """[N] rows of a table that are of one of these ids, or of a page with one of these hashes."""
    named = np.zeros(table.num_rows, np.bool_)
    for name in NAMES & set(table.column_names):
        own = [value.hex() if isinstance(value, bytes) else value for value in table[name].to_pylist()]
        named |= np.array([(sha256_hex(value) if name == "url" else value) in ids for value in own], np.bool_)
    return named


@dataclass(frozen=True)
class Gone:
    """What is looked for. values: of its rows, that no other row has. images: their bytes, by sha256. looks: of
    those that look like nothing that stays."""

    ids: frozenset[str]
    host: str
    values: frozenset[bytes]
    images: dict[str, bytes]
    looks: Takedowns
    searched: dict[tuple[Path, bytes], list[bytes | str]] = field(default_factory=dict)

    @staticmethod
    def of(builds: list[Build], host: str, goes: Callable[[dict[str, Any]], bool]) -> Gone:
        """What a host has, and what candidates have alone of which `goes` says so, of a row of extract."""
        going, staying = set[str](), set[str]()
        for build in builds:
            for rows in (*build.tables("extract", "parquet"), *build.tables("admit", "parquet")):
                for row in rows.to_pylist():
                    texts = (sha256_hex(nfc(text["text"])) for text in row["texts"])
                    own = [row["candidate_id"], row["fetch_id"], sha256_hex(row["page_url"]), *texts]
                    (going if goes(row) else staying).update(own)
        sha256_of = {}
        for build in builds:
            for rows in build.tables("fetch", "parquet"):
                sha256_of |= {row["fetch_id"]: row["sha256"] for row in rows.to_pylist() if row["ok"]}
        staying |= {sha256 for fetch_id, sha256 in sha256_of.items() if fetch_id not in going - staying}
        going = (going | {sha256_of[name] for name in going - staying if name in sha256_of}) - staying
        rows, others = set[bytes](), set[bytes]()
        for path, data in files(builds[0].store.url, *(build.out for build in builds)):
            table = _table(data)
            if table is not None and "_decisions" not in str(path) and NAMES & set(table.column_names):
                borrowed = {"texts"} if {"unique", "shards"} & set(path.parts) else set[str]()
                Gone._sort(table, going, rows, others, borrowed)
        images = dict[str, bytes]()
        for build in builds:
            for stage in build.history("fetch"):
                for record in stage.records():
                    tar = Path(stage.folder.at(record.files["tar"].name)).read_bytes()
                    for row in stage.table(record).to_pylist():
                        if row["ok"] and row["sha256"] in going:
                            images[row["sha256"]] = tar[row["offset"] :][: row["size"]]
        measured = (measure_image(data, MAX_PIXELS) for data in images.values())
        limits = RULES.image_distance, RULES.image_signature, feature_id()
        looks = (Look(tuple(row["phash"]), row["signature"], *limits, row["details"]) for row in measured)
        seen = [rows for build in builds for rows in build.tables("measure", "parquet", [*LOOKED_AT])]
        of_others = [rows.filter(pa.array(~_named(rows, going))) for rows in seen]
        alone = (look for look in looks if not any(Takedowns(looks=(look,)).alike(t, feature_id()) for t in of_others))
        values = frozenset(
            own for own in rows - others if len(own) >= LEAST and not re.fullmatch(rb"[0-9a-f]{64}", own)
        )
        return Gone(frozenset(going), host, values, images, Takedowns(looks=tuple(alone)))

    @staticmethod
    def _sort(table: pa.Table, going: set[str], rows: set[bytes], others: set[bytes], borrowed: set[str]) -> None:
        """Adds the values of a table's rows to those of what goes, or of others. borrowed: columns in which others may
        have what they got from what goes."""
        named = _named(table, going)
        for name in set(table.column_names) - IDS - SAME:
            rows.update(_values(table[name].filter(pa.array(named))))
            if name not in borrowed:
                others.update(_values(table[name].filter(pa.array(~named))))

    def found(self, *folders: str) -> list[tuple[str, bytes | str]]:
        """(file, what it holds of what went). A file that an earlier call has read is not searched again."""
        found = list[tuple[str, bytes | str]]()
        for path, data in files(*folders):
            if (path, data) not in self.searched:
                self.searched[path, data] = list(self._held(path, data))
            found += [(str(path), own) for own in self.searched[path, data]]
        return found

    def _held(self, path: Path, data: bytes) -> Iterator[bytes | str]:
        """What a file holds of what went."""
        said, table = unpacked(data), _table(data)
        chunks = {image[len(image) // 2 :][:48] for image in self.images.values()}
        yield from (own for own in self.values | chunks if own in said or own in data)
        if path.name != "build.json" and self.host.encode() in said:  # whose spec may name it
            yield self.host
        if table is not None and "_decisions" not in str(path) and _named(table, self.ids).any():
            yield "a row"
        measured = filter(None, map(_measured, _pictures(data)))
        if rows := [{**features, "sha256": f"picture {number}"} for number, features in enumerate(measured)]:
            shown = pa.Table.from_pylist(rows, FEATURE_SCHEMA).select(LOOKED_AT)
            yield from self.looks.alike(shown, feature_id())


def _jpeg(number: int, *size: tuple[int, int]) -> tuple[int, dict[str, str], bytes]:
    """A picture of a site, of a pattern and a colour of its own."""
    red, green = 0.05 + number * 7 % 40 / 44, 0.1 + number * 3 % 11 / 13
    return 200, {"Content-Type": "image/jpeg"}, coloured(number, red, green, 1 - red, *size)


def show(web: Any, start: int, count: int) -> None:
    """Puts pages of two pictures each on a site, all linked from the first one; each text says something of its own."""
    for page in range(start, start + count):
        figures = ""
        for number in (2 * page, 2 * page + 1):
            web.pages[f"/i/{number}.jpg"] = _jpeg(number)
            alt = f"某某网【红色的图第{number}号{chr(0x4E00 + 31 * number)}】"
            figures += f"<figure><img src='/i/{number}.jpg' alt='{alt}'></figure>"
        links = "".join(f"<a href='/p/{other}.html'>{other}</a>" for other in range(start + count))
        title = f"<title>图集{chr(0x5E00 + 17 * page)}第{page}页</title>"
        web.pages[f"/p/{page}.html"] = f"<html><head>{title}</head><body>{links}{figures}</body></html>".encode()
    web.pages["/"] = f"<html><body><a href='/p/{start}.html'>图</a></body></html>".encode()


def specified(folder: Path, site: Any, host: Any) -> BuildSpec:
    """A spec with every pass: a site that is crawled, a table with boxes and passwords, a tar, and all judges."""
    rows = [
        {
            "url": f"http://me:geheim{n}@{host.host}/{n}.jpg",
            "zh": f"绿色的图第{n}张{chr(0x6E00 + 7 * n)}",
            "boxes": [[10, 9 + n, 90, 80]],
        }
        for n in range(5)
    ]  # fmt: skip
    rows.append({"url": site.url("/i/0.jpg"), "zh": "红色的图是一二三", "boxes": None})
    (folder / "table.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (folder / "words.txt").write_text("红色\n绿色\n", encoding="utf-8")
    for n in range(5):
        host.pages[f"/{n}.jpg"] = _jpeg(900 + n) if n else _jpeg(4, (240, 180))  # a copy, whose text its leader borrows
    members = dict[str, str | bytes]()
    for n in range(3):
        value = {"caption": f"蓝色的图第{n}张{chr(0x7E00 + 7 * n)}", "url": f"http://given.test/{n}.jpg"}
        members |= {f"{n}.jpg": coloured(800 + n, 0.3, 0.1 + n / 9, 0.9), f"{n}.json": _json(value)}
    (folder / "given.tar").write_bytes(archived.tar(members))
    columns = {"image_url": "url", "texts": {"alt": "zh"}, "bbox": "boxes"}
    table = {"kind": "url_table", "name": "table", "source_kind": "library", "path": str(folder / "table.jsonl")}
    given = {"kind": "webdataset", "name": "given", "source_kind": "library", "path": str(folder / "given.tar")}
    crawled = {"kind": "site", "name": "site", "source_kind": "news", "start": [site.url("/")]}
    spec = {
        "name": "whole",
        "contact": "mailto:x@example.org",
        "sources": [crawled, {**table, "columns": columns}, given],
        "egress": {"allow": [site.host, host.host], "delay_s": 0, "timeout_s": 60},
        "filters": [
            {"name": "text_length", "min_chars": 2},
            {"name": "image_nsfw", "max_score": 0.99},
            {"name": "pair_score", "top_share": 0.95},
        ],
        "fetch": {"images_per_partition": 9, "threads": 2, "max_wait_s": 0},
        "watermark": {"min_pictures": 10},
        "pair_score": towered.written(folder / "towers"),
        "semantic_dedup": {"distance": 0.00001},
        "balance": {"threshold": 1000, "entries": str(folder / "words.txt")},
        "regions": {"detectors": [{"name": "grid", "n": 2}, {"name": "given"}]},
        "shards": {"samples_per_shard": 12, "dev_share": 0.2, "val_share": 0.2},
    }
    return BuildSpec.model_validate(spec)


def built(spec: BuildSpec, folder: Path, name: str, until: str = "report") -> tuple[Build, dict[str, int]]:
    """`wenlan-data build` in this process; how many partitions of each stage it ran."""
    build = opening.open_build(spec, str(folder / name), str(folder / "store"), name)
    return build, {result.name: result.ran for result in run.run(build, here=True, until=until) if result.ran}


def committed(build: Build) -> dict[tuple[str, str], bytes]:
    """The record of every partition that is committed, but for the report."""
    folders = (build.stage_at(own.name, "").folder for own in build.all_passes() if own.name != "report")
    records = (path for folder in folders for path in Path(folder.url, "_records").rglob("*.json"))
    return {(str(path.parent), path.stem): path.read_bytes() for path in records}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_of_what_went_is_in_any_file_and_all_else_goes_on(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Build, "delete_working", lambda self: None)  # as of a build that is not published
    monkeypatch.setattr(ImageNsfw, "load", lambda self: None)
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-of-the-test")
    monkeypatch.setattr(ImageNsfw, "score", lambda self, state, shown: [float(p.mean()) / 255 for p in shown])
    site, host = serve(), serve()
    show(site, 0, 12)
    spec = specified(tmp_path, site, host)
    other = {"dedup": {"image_distance": 3}, "watermark": {"min_pictures": 11}}
    built(spec.model_validate({**spec.model_dump(), **other}), tmp_path, "2026-01-01", "shard")  # stays there
    first, _ = built(spec, tmp_path, "2026-01-01")
    release.publish(first)
    show(site, 12, 4)
    second, _ = built(spec, tmp_path, "2026-01-08")
    release.publish(second)
    builds, folders = [first, second], (first.out, second.out, second.store.url)
    assert set(first.passes) == {own.name for own in first.all_passes()}, "every pass"

    page = site.url("/p/3.html")
    urls = [page, site.url("/i/20.jpg"), "http://given.test/1.jpg"]
    request = Request(urls=urls, domains=[host.host], exact=True)
    of_host = f"http://{host.host}/"
    gone = Gone.of(
        builds, host.host, lambda row: {row["page_url"], row["image_url"]} & {*urls} or of_host in row["image_url"]
    )
    assert len(gone.images) == 9
    assert len(gone.looks.looks) == 8, "but for the copy"
    places = {Path(path).relative_to(tmp_path).parts[1] for path, _ in gone.found(*folders)}
    assert {first.stages[name].folder for name in first.stages} <= places, "it is there before"
    borrowed = f"绿色的图第0张{chr(0x6E00)}".encode()
    assert borrowed in gone.values
    assert any(borrowed in path.read_bytes() for path in Path(first.out, "shards").glob("*.tar")), "by its leader"
    for place in ("captures/_frontier/site/frontier.sqlite", "studio/index-0.duckdb", "shards/.tmp-dead/tar"):
        path = Path(first.out, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page.encode())
    sorted_before = {row["candidate_id"] for row in _sorted_rows(first)}

    with monkeypatch.context() as patch:  # killed between column files and their rows, before another takedown comes
        patch.setattr(rewrite_partitions, "_remove_from", _killed_at(rewrite_partitions._remove_from, "dedup"))
        with pytest.raises(KeyboardInterrupt):
            forget(second.store, builds, Request(urls=urls[1:2], exact=True))
    answer = forget(second.store, builds, request)
    assert answer["faults"] == []
    assert gone.found(*folders) == []
    kept = [_kept(build) for build in builds]
    for build in builds:
        assert verify(build.shards.url, store=build.store.url) == []
        assert {stage["state"] for stage in build_json.status(build)["stages"].values()} == {"done"}
        funnel = read_funnels(build)[0]
        assert faults(build, funnel) == []
        staying = sorted(_kept(build))[0]
        [row] = [row for row in explain(build, staying) if row["id"] == staying]  # its copies are there too
        assert Path(build.out, "report/report.json").exists()
        assert {"extract", "admit", "fetch", "measure", "filter", "dedup", "curate", "detect", "shard"} <= set(
            row["saw"]
        )

    before = committed(first)
    again, ran = built(spec, tmp_path, "2026-01-01")
    assert {**again.fingerprints, "report": ""} == {**first.fingerprints, "report": ""}, (
        "the dataset is another one now"
    )
    assert set(ran) <= {"report"}, "nothing reads what was deleted"
    assert committed(again) == before, "no partition is made again"
    assert all(again.stage(name).finished() for name in again.lasting_passes())
    assert faults(again, read_funnels(again)[0]) == []
    run_stage(again, "admit.sort")
    assert {row["candidate_id"] for row in _sorted_rows(again)} == sorted_before - gone.ids
    release.publish(again)
    assert [_kept(build) for build in builds] == kept
    assert gone.found(*folders) == []
    assert garbage.collect(second.store, second.stages)["faults"] == []
    assert forget(second.store, builds, request)["tombstone"] == ""


def _killed_at(remove_from: Callable[..., None], name: str) -> Callable[..., None]:
    def killed(own: Pass, *more: Any) -> None:
        if own.name == name:
            raise KeyboardInterrupt
        remove_from(own, *more)

    return killed


def _kept(build: Build) -> set[str]:
    rows = (build.stage("shard").table(record, columns=["candidate_id"]) for record in build.packed())
    return {name for table in rows for name in table["candidate_id"].to_pylist()}


def _sorted_rows(build: Build) -> list[dict[str, Any]]:
    stage = build.stage("admit.sort")
    places = (Path(stage.folder.at(record.files["candidates.arrow"].name)) for record in stage.records())
    return [row for path in places for row in _table(path.read_bytes()).to_pylist()]  # type: ignore[union-attr]
