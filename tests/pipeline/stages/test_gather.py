"""gather: ranges of order keys are read from it as from extract's own files, and a build does as well without."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from pipeline.records import FIRST_SNAPSHOT, PROVENANCE, USERINFO, USERINFO_SCHEMA, order_range, sha256_hex
from pipeline.stages import STAGES, _gathered, gather
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.takedown.forget import Request, forget
from tests.drawn import picture
from tests.stages import run_stage

Keys = Sequence[int]


def build_at(folder: Path, path: str = "x.tar") -> Build:
    """A build of tars in a folder, of which nothing has been done."""
    source = {"kind": "webdataset", "name": "s", "source_kind": "library", "path": str(folder / path)}
    spec = BuildSpec.model_validate({"name": "t", "contact": "mailto:a@b.cn", "sources": [source]})
    marks = {name: sha256_hex(name) for name in build.passes}
    return Build(spec, str(folder / "out"), Store(str(folder / "store")), "t", "2026-01-01", marks, stages=STAGES)


def extracted(build: Build, parts: Sequence[Keys], suffix: str = "parquet") -> None:
    """Rows (order_key, id) of each part, as extract commits them; ids are numbered over all parts."""
    number = 0
    for part, keys in enumerate(parts):
        with build.stage("extract").attempt(f"s-{part:05d}") as attempt:
            rows = [{"order_key": f"{key:016x}", "id": number + at} for at, key in enumerate(sorted(keys))]
            number += len(rows)
            schema = pa.schema([("order_key", pa.string()), ("id", pa.int64())])
            attempt.write_table(suffix, pa.Table.from_pylist(rows, schema))
            attempt.commit({"kept": len(rows)})
    build.stage("extract").finish(build.stage("extract").partitions(), 1)


def by_key(build: Build, suffix: str, low: str, high: str) -> dict[str, list[int]]:
    """The ids of each key in a range, in the order in which they are read."""
    read = defaultdict(list)
    for rows in _gathered.rows_between(build, suffix, low, high, ["id", "order_key"]):
        assert rows.column_names == ["id", "order_key"]
        for row in rows.to_pylist():
            read[row["order_key"]].append(row["id"])
    return dict(read)


KEYS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))


@settings(max_examples=40)
@given(
    parts=st.lists(st.lists(KEYS, max_size=12), min_size=2, max_size=6),
    cuts=st.integers(1, 9),
    group=st.integers(1, 30),
    batch=st.sampled_from([1, 2, 128]),
    suffix=st.sampled_from(list(_gathered.SUFFIXES)),
)
def test_every_range_is_read_as_from_the_parts(tmp_path_factory, parts, cuts, group, batch, suffix) -> None:
    build = build_at(tmp_path_factory.mktemp("build"))
    extracted(build, parts, suffix)
    ranges = [order_range(number, cuts) for number in range(cuts)]
    expected = [by_key(build, suffix, *own) for own in ranges]
    assert sum(len(ids) for read in expected for ids in read.values()) == sum(map(len, parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "MANY", 1)
        patch.setattr(gather, "GROUP", group)
        patch.setattr(_gathered, "BATCH", batch)
        run_stage(
            build,
        )
    groups = _gathered.groups(build)
    assert [part for record in groups for part in _gathered.parts_of(record.partition)] == list(range(len(parts)))
    for record in build.stage("extract").records():
        build.stage("extract").folder.delete(record.files[suffix].name)  # nobody reads them any more
    assert [by_key(build, suffix, *own) for own in ranges] == expected


def test_few_parts_and_builds_that_are_beyond_it_gather_nothing(tmp_path: Path) -> None:
    build = build_at(tmp_path)
    extracted(build, [[number] for number in range(gather.MANY)])
    assert gather.partitions(build) == []
    extracted(build, [[number] for number in range(gather.MANY + 1)])
    assert gather.partitions(build) == ["0000000-0000064"]
    older = replace(build, fingerprints={"extract": build.fingerprints["extract"]})
    assert sum(map(len, by_key(older, "parquet", "0", "g").values())) == gather.MANY + 1
    build.stage("admit").finish([], 1)
    assert gather.partitions(build) == [], "an older wenlan did it, and admit is done"


def test_a_group_has_as_many_rows_as_may_be_held_or_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MANY", 1)
    monkeypatch.setattr(gather, "GROUP", 10)
    build = build_at(tmp_path)
    extracted(build, [range(5), range(5), range(5), range(12), range(1)])
    run_stage(
        build,
    )
    assert [record.counts["rows"] for record in _gathered.groups(build)] == [10, 5, 12, 1]


def test_on_an_object_store_as_well(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MANY", 1)
    monkeypatch.setattr(gather, "GROUP", 300)
    monkeypatch.setattr(_gathered, "BATCH", 10)
    build = replace(build_at(tmp_path), out=f"{bucket}/gather")
    extracted(build, [[number << 56 | part for number in range(256)] for part in range(3)])
    ranges = [order_range(number, 7) for number in range(7)]
    expected = [by_key(build, "parquet", *own) for own in ranges]
    assert (
        len(
            run_stage(
                build,
            )
        )
        == 3
    )
    for record in build.stage("extract").records():
        build.stage("extract").folder.delete(record.files["parquet"].name)
    assert [by_key(build, "parquet", *own) for own in ranges] == expected


def test_where_a_group_is_gone_the_parts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MANY", 1)
    monkeypatch.setattr(gather, "GROUP", 2)
    build = build_at(tmp_path)
    extracted(build, [[1, 2], [2, 3], [3]])
    expected = by_key(build, "parquet", "0", "g")
    assert run_stage(
        build,
    ) == ["0000000-0000000", "0000001-0000001", "0000002-0000002"]
    assert len(_gathered.groups(build)) == 3
    for gone in ("0000002-0000002", "0000000-0000000"):
        build.stage("admit.sort").delete_record(gone)
        assert _gathered.groups(build) == []
        assert by_key(build, "parquet", "0", "g") == expected


def test_parts_with_user_names_are_known_by_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MANY", 1)
    build = build_at(tmp_path)
    extracted(build, [[1], [2], [3]])
    with build.stage("extract").attempt("s-00001") as attempt:
        attempt.write_table("parquet", pa.table({"order_key": ["2".zfill(16)], "id": [1]}))
        attempt.write_table(USERINFO, pa.table([["f" * 64], ["user:word"]], schema=USERINFO_SCHEMA))
        attempt.commit({"kept": 1})
    assert [record.partition for record in _gathered.with_userinfo(build)] == ["s-00001"]
    run_stage(
        build,
    )
    build.stage("extract").delete_record("s-00000")  # it is not asked for
    assert [record.partition for record in _gathered.with_userinfo(build)] == ["s-00001"]
    gathered = b"".join(path.read_bytes() for path in (tmp_path / "out/gathered").rglob("*") if path.is_file())
    assert b"word" not in gathered


def test_columns_that_some_parts_have_are_null_in_others(tmp_path: Path) -> None:
    tables = [
        pa.table({"order_key": ["f" * 16], "id": [1]}),
        pa.table({"order_key": ["0" * 16], FIRST_SNAPSHOT: ["x"]}),
    ]
    assert _gathered.write(tmp_path / "x.arrow", tables) == 2
    with pa.ipc.open_file(str(tmp_path / "x.arrow")) as file:
        assert file.read_all().to_pylist() == [
            {"order_key": "0" * 16, "id": None, FIRST_SNAPSHOT: "x"},
            {"order_key": "f" * 16, "id": 1, FIRST_SNAPSHOT: None},
        ]


def tars(folder: Path, count: int) -> None:
    """Tars of three pictures each, every second with the URL that it came from."""
    for number in range(count):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for at in range(3):
                value = {"caption": f"第{number}卷的第{at}幅图画说明"}
                if at:
                    value["url"] = f"http://a{at}.test/{number}.png"
                members = {"png": picture(number * 3 + at, kind="PNG"), "json": json.dumps(value).encode()}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{at}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def handed(build: Build) -> tuple[dict[str, Any], dict[str, str]]:
    """What admit committed, and the sha256 of each image that fetch found in the tars."""
    admitted = {record.partition: record.files["parquet"].sha256 for record in build.stage("admit").records()}
    fetch = build.stage("fetch")
    rows = [row for record in fetch.records() for row in fetch.table(record).to_pylist()]
    assert all(row["ok"] for row in rows)
    return admitted, {row["image_url"]: row["sha256"] for row in rows}


def away(build: Build, folder: Path) -> list[tuple[Path, Path]]:
    """Move extract's files away; returns (where each is now, where it was)."""
    stage, moved = build.stage("extract"), []
    for record in stage.records():
        for suffix in ("parquet", PROVENANCE):
            place = Path(stage.folder.at(record.files[suffix].name))
            moved.append((place.rename(folder / place.name), place))
    return moved


def test_a_build_is_the_same_with_it_and_a_takedown_leaves_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, moved = [], list[tuple[Path, Path]]()
    for many in (64, 2):
        monkeypatch.setattr(gather, "MANY", many)
        monkeypatch.setattr(gather, "GROUP", 7)
        folder = tmp_path / str(many)
        folder.mkdir()
        tars(folder, 6)
        build = build_at(folder, "*.tar")
        run_stage(build, "crawl", "extract")
        if many == 2:
            assert len(build.stage("admit.sort").records()) == 3
            moved = away(build, folder)
        run_stage(build, "admit", "fetch")
        results.append(handed(build))
    assert results[0] == results[1]
    assert len(results[0][1]) == 18
    for now, before in moved:
        now.rename(before)

    build.store.check()
    assert forget(build.store, [build], Request(urls=["http://a1.test/2.png"], exact=True))["matched"] >= 1
    assert [path for path in (folder / "out/gathered").rglob("*.arrow") if path.is_file()] == []
    assert build.stage("admit.sort").finished()
    anew = {name: sha256_hex(f"later {name}") for name in build.passes}
    kept = {name: build.fingerprints[name] for name in ("crawl", "extract")}
    later = replace(build, fingerprints=anew | kept)
    assert (
        len(
            run_stage(
                later,
            )
        )
        == 3
    )
    run_stage(later, "admit", "fetch")
    assert set(handed(later)[1]) == set(results[0][1]) - {"http://a1.test/2.png"}
