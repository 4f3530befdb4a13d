"""Verify names every kind of damage inside the files of a shard whose digests hold."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import read_manifest
from pipeline.pictures import decode as pictures
from pipeline.publish.verify import verify

pytestmark = pytest.mark.slow  # all begin with a build


def _regions(folder: Path) -> Path:
    return next((folder / "regions").glob("*/train-000000.parquet"))


def _outside(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = [0.0, 0.0, 10_000.0, 5.0, *rows[0]["boxes"][4:]]


def _inverted(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = [9.0, 0.0, 3.0, 5.0, *rows[0]["boxes"][4:]]


def _swapped(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def _unsorted(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if len(row["scores"]) == 2)["scores"] = [0.1, 0.7]


def _short(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = rows[0]["boxes"][:-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_outside, "is outside the image of"),
        (_inverted, "is outside the image of"),
        (_swapped, "the files are not in the same order"),
        (_unsorted, "scores are not finite or not descending"),
        (_short, "do not match"),
    ],
)
def test_bad_regions_are_named_with_their_key(
    shards_of: Path, edit: Any, reseal: Any, change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    path = _regions(shards_of)
    edit(path, change)
    reseal(shards_of)
    faults = verify(shards_of, quick=True)
    assert faults
    assert all(fault.startswith(f"regions/{path.parent.name}/train-000000.parquet: ") for fault in faults)
    assert all(said in fault for fault in faults)


def test_a_tar_whose_content_is_wrong_though_its_digest_holds(shards_of: Path, reseal: Any) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    data = bytearray(tar.read_bytes())
    first, second = rows[0], rows[1]
    data[first["image_offset"] + 2 : first["image_offset"] + first["image_size"]] = bytes(first["image_size"] - 2)
    data[second["text_offset"]] ^= 1
    tar.write_bytes(data)
    reseal(shards_of)
    assert verify(shards_of, quick=True) == []
    faults = verify(shards_of)
    assert len(faults) == 2
    assert faults[0].startswith(f"train-000000.tar: {first['key']}.jpg: cannot be decoded (")
    assert faults[1] == f"train-000000.tar: {second['key']}.txt: differs from the first text in the index"


def test_a_truncated_tar_whose_digest_holds(shards_of: Path, reseal: Any) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    tar.write_bytes(tar.read_bytes()[: rows[3]["image_offset"] - 512])
    reseal(shards_of)
    assert verify(shards_of) == ["train-000000.tar: 9 members, but 24 in the index"]


def test_a_wrong_column_type_is_named(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("width")
    pq.write_table(table.set_column(at, "width", table["width"].cast(pa.int64())), path)
    reseal(shards_of)
    assert verify(shards_of, quick=True) == ["dev-000000.parquet: column width is int64, not int32"]


def test_images_as_large_as_the_spec_let_in_are_sound(shards_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10)
    monkeypatch.setattr(pictures.decode, "__defaults__", (10, 0))
    assert verify(shards_of) == []


def test_more_columns_are_allowed(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("later", pa.array([1] * table.num_rows)), path)
    reseal(shards_of)
    assert verify(shards_of) == []
    assert read_manifest(shards_of).samples["dev"] == table.num_rows


def _setting(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[0].update(candidate_id=rows[0]["key"]), "candidate_id is '"),
        (_setting(candidate_id="zz"), "is not the prefix of its candidate_id"),
        (_setting(source_kind="shop"), "source_kind is 'shop'"),
        (_setting(texts=[]), "no text"),
        (_setting(texts=[None]), "a text is None"),
        (_setting(texts=[{"kind": None, "text": "字", "text_leader": ""}]), "a text is {'kind': None"),
        (_setting(texts=[{"kind": "alt", "text": None, "text_leader": ""}]), "a text is {'kind': 'alt', 'text': None"),
        (_setting(texts=[{"kind": "poem", "text": "字", "text_leader": ""}]), "a text is {'kind': 'poem'"),
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_a_row_that_breaks_the_contract_is_one_line(
    shards_of: Path, edit: Any, reseal: Any, change: Callable[[list[dict[str, Any]]], None], said: str, quick: bool
) -> None:
    edit(shards_of / "train-000000.parquet", change)
    reseal(shards_of)
    [fault] = verify(shards_of, quick=quick)
    assert fault.startswith("train-000000.parquet: ")
    assert said in fault


@pytest.mark.parametrize("column", ["boxes", "scores", "labels"])
def test_a_missing_number_among_the_regions_is_one_line(shards_of: Path, edit: Any, reseal: Any, column: str) -> None:
    path = _regions(shards_of)
    edit(path, lambda rows: rows[0].update({column: [None, *rows[0][column][1:]]}))
    reseal(shards_of)
    [fault] = verify(shards_of, quick=True)
    assert fault.endswith(": one of the columns of its regions is empty")


@pytest.mark.parametrize("place", [{"image_offset": -1}, {"text_size": 1 << 60}, {"json_offset": (1 << 63) - 1}])
def test_a_member_outside_its_tar_is_one_line(shards_of: Path, edit: Any, reseal: Any, place: dict[str, int]) -> None:
    edit(shards_of / "train-000000.parquet", _setting(**place))
    reseal(shards_of)
    [fault] = verify(shards_of, quick=True)
    assert fault.startswith("train-000000.parquet: ")
    assert "outside its tar of" in fault
    [fault] = verify(shards_of)
    assert fault.startswith("train-000000.tar: ")
    assert fault.endswith("which differs from the index")


def test_text_that_is_not_utf8_is_named(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "train-000000.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("page_url")
    broken = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(column, "page_url", broken), path)
    reseal(shards_of)
    [fault] = verify(shards_of, quick=True)
    assert fault.startswith("train-000000.parquet: cannot be read as Parquet (")


def _sparse(member: tarfile.TarInfo) -> None:
    """A member of 2 kB that unpacks to the size its PAX headers state (GNU sparse 1.0)."""
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(6 << 30)}


def _link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/hostname", 0


@pytest.mark.parametrize("change", [_sparse, _link])
def test_a_member_that_is_no_plain_file_is_one_line(
    shards_of: Path, reseal: Any, change: Callable[[tarfile.TarInfo], None]
) -> None:
    path = shards_of / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members[0][0])
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            content = b"1\n0\n0\n".ljust(512, b"\0") if member.pax_headers else data
            member.size = 0 if member.issym() else len(content)
            tar.addfile(member, io.BytesIO(content))
    reseal(shards_of)
    [fault] = verify(shards_of)
    assert fault == f"train-000000.tar: {members[0][0].name} is not a regular file"


def test_a_tar_of_long_names_only_is_one_line(shards_of: Path, reseal: Any) -> None:
    """Each long-name header makes `tarfile` read the next one: 2,000 of them are a RecursionError."""
    path = shards_of / "train-000000.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4
    block = header.tobuf(tarfile.GNU_FORMAT) + b"abc\0".ljust(512, b"\0")
    path.write_bytes(block * 2000 + path.read_bytes())
    reseal(shards_of)
    [fault] = verify(shards_of)
    assert fault.startswith("train-000000.tar: not a tar (")
