"""gather: ranges of order keys are read from it as from extract's own files, and a build does as well without."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from pipeline.rows.records import FIRST_SNAPSHOT, USERINFO, USERINFO_SCHEMA, order_range, sha256_hex
from pipeline.stages import STAGES, _sort
from pipeline.store.build import Build, passes_of
from pipeline.store.store import Store
from tests import archived
from tests.drawn import picture
from tests.stages import run_stage

Keys = Sequence[int]


def build_at(folder: Path, path: str = "x.tar") -> Build:
    """A build of tars in a folder, of which nothing has been done."""
    source = {"kind": "webdataset", "name": "s", "source_kind": "library", "path": str(folder / path)}
    spec = BuildSpec.model_validate({"name": "t", "contact": "mailto:a@b.cn", "sources": [source]})
    marks = {name: sha256_hex(name) for name in passes_of(STAGES, spec)}
    return Build(spec, str(folder / "out"), Store(str(folder / "store")), "t", "2026-01-01", marks, stages=STAGES)


def extracted(build: Build, parts: Sequence[Keys], suffix: str = "parquet", archived: int = 0) -> None:
    """Rows (order_key, id) of each part, as extract commits them; ids are numbered over all parts.

    archived: pictures that each part counts.
    """
    number = 0
    for part, keys in enumerate(parts):
        with build.stage("extract").attempt(f"s-{part:05d}") as attempt:
            rows = [{"order_key": f"{key:016x}", "id": number + at} for at, key in enumerate(sorted(keys))]
            number += len(rows)
            schema = pa.schema([("order_key", pa.string()), ("id", pa.int64())])
            attempt.write_table(suffix, pa.Table.from_pylist(rows, schema))
            attempt.commit({"kept": len(rows), "archived": archived})
    build.stage("extract").finish(build.stage("extract").partitions(), 1)


def by_key(build: Build, suffix: str, low: str, high: str) -> dict[str, list[int]]:
    """The ids of each key in a range, in the order in which they are read."""
    read = defaultdict(list)
    for rows in _sort.rows_between(build, suffix, low, high, ["id", "order_key"]):
        assert rows.column_names == ["id", "order_key"]
        for row in rows.to_pylist():
            read[row["order_key"]].append(row["id"])
    return dict(read)


def expected(parts: Sequence[Keys], low: str, high: str) -> dict[str, list[int]]:
    """The same from the keys that were extracted."""
    read, number = defaultdict(list), 0
    for keys in parts:
        for key in sorted(keys):
            if low <= f"{key:016x}" < high:
                read[f"{key:016x}"].append(number)
            number += 1
    return dict(read)


KEYS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))


@pytest.mark.slow
@given(
    parts=st.lists(st.lists(KEYS, max_size=12), min_size=2, max_size=6),
    cuts=st.integers(1, 9),
    group=st.integers(1, 30),
    batch=st.sampled_from([1, 2, 128]),
    suffix=st.sampled_from(list(_sort.SUFFIXES)),
)
def test_every_range_is_read_as_from_the_parts(tmp_path_factory, parts, cuts, group, batch, suffix) -> None:
    build = build_at(tmp_path_factory.mktemp("build"))
    extracted(build, parts, suffix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sort, "GROUP", group)
        patch.setattr(_sort, "BATCH", batch)
        run_stage(build, "admit.sort")
    for record in build.stage("extract").records():
        build.stage("extract").folder.delete(record.files[suffix].name)  # they are not read any more
    for number in range(cuts):
        low, high = order_range(number, cuts)
        assert by_key(build, suffix, low, high) == expected(parts, low, high)
    wanted = {f"{key:016x}" for keys in parts for key in keys[::2]} | {"0" * 15 + "1"}
    found = defaultdict(list)
    for row in (row for rows in _sort.rows_with(build, suffix, wanted) for row in rows.to_pylist()):
        found[row["order_key"]].append(row["id"])
    every = expected(parts, *order_range(0, 1))
    assert found == {key: ids for key, ids in every.items() if key in wanted}


def test_a_group_has_as_many_rows_as_may_be_held_or_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sort, "GROUP", 10)
    build = build_at(tmp_path)
    extracted(build, [range(5), range(5), range(5), range(12), range(1)])
    run_stage(build, "admit.sort")
    assert [record.counts["rows"] for record in build.stage("admit.sort").records()] == [10, 5, 12, 1]


def test_archived_pictures_count_as_rows_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sort, "GROUP", 10)
    build = build_at(tmp_path)
    extracted(build, [range(1)] * 3, archived=6)
    run_stage(build, "admit.sort")
    assert [record.counts["rows"] for record in build.stage("admit.sort").records()] == [1, 1, 1]


@pytest.mark.drill(2)
def test_on_an_object_store_as_well(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sort, "GROUP", 300)
    monkeypatch.setattr(_sort, "BATCH", 10)
    build, parts = (
        replace(build_at(tmp_path), out=f"{bucket}/sort"),
        [[number << 56 | part for number in range(256)] for part in range(3)],
    )
    extracted(build, parts)
    assert len(run_stage(build, "admit.sort")) == 3
    for number in range(7):
        low, high = order_range(number, 7)
        assert by_key(build, "parquet", low, high) == expected(parts, low, high)


def test_parts_with_user_names_are_known_by_the_groups(tmp_path: Path) -> None:
    build = build_at(tmp_path)
    extracted(build, [[1], [2], [3]])
    build.stage("extract").delete_record("s-00001")
    with build.stage("extract").attempt("s-00001") as attempt:
        attempt.write_table("parquet", pa.table({"order_key": ["2".zfill(16)], "id": [1]}))
        attempt.write_table(USERINFO, pa.table([["f" * 64], ["user:word"]], schema=USERINFO_SCHEMA))
        attempt.commit({"kept": 1})
    run_stage(build, "admit.sort")
    build.stage("extract").delete_record("s-00000")  # it is not asked for
    assert [record.partition for record in _sort.userinfo_records(build)] == ["s-00001"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out/admitted").rglob("*") if path.is_file())
    assert b"word" not in written


def test_columns_that_some_parts_have_are_null_in_others(tmp_path: Path) -> None:
    tables = [
        pa.table({"order_key": ["f" * 16], "id": [1]}),
        pa.table({"order_key": ["0" * 16], FIRST_SNAPSHOT: ["x"]}),
    ]
    assert _sort.write_sorted(tmp_path / "x.arrow", tables) == 2
    with pa.ipc.open_file(str(tmp_path / "x.arrow")) as file:
        assert file.read_all().to_pylist() == [
            {"order_key": "0" * 16, "id": None, FIRST_SNAPSHOT: "x"},
            {"order_key": "f" * 16, "id": 1, FIRST_SNAPSHOT: None},
        ]


def tars(folder: Path, count: int) -> None:
    """Tars of three pictures each, every second with the URL that it came from."""
    for number in range(count):
        members = dict[str, str | bytes]()
        for at in range(3):
            value = {"caption": f"第{number}卷的第{at}幅图画说明"}
            if at:
                value["url"] = f"http://a{at}.test/{number}.png"
            members |= {f"{at}.png": picture(number * 3 + at, kind="PNG"), f"{at}.json": json.dumps(value)}
        (folder / f"{number:03d}.tar").write_bytes(archived.tar(members))
