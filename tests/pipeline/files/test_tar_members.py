"""Members of damaged tars: reading goes on behind a hole, which has the size of what is lost."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.files.damage import Hole
from pipeline.files.tar_members import Member, members_of
from tests import archived

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
SAMPLE = 2_560
"""Bytes of a picture and its text in `tar_of`."""


def tar_of(count: int, form: str = "ustar", name: str = "{:03d}") -> bytes:
    """A tar of pictures with texts."""
    members, dice = dict[str, str | bytes](), random.Random(5)
    for number in range(count):
        key = name.format(number)
        members |= {f"{key}.jpg": b"\xff\xd8" + dice.randbytes(1_000), f"{key}.txt": f"第{number}张"}
    return archived.tar(members, FORMATS[form])


def read(data: bytes) -> tuple[dict[str, bytes], list[Hole]]:
    """Members by name, and holes."""
    found = list(members_of(io.BytesIO(data)))
    members = {own.name: own.read() for own in found if isinstance(own, Member)}
    return members, [own for own in found if isinstance(own, Hole)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_sound_tar_has_no_hole(form: str) -> None:
    for name in ("{:03d}", "长" * 90 + "{:03d}"):  # a long name takes a header of its own
        if form == "ustar" and len(name) > 10:
            continue
        members, holes = read(tar_of(30, form, name))
        assert (len(members), holes) == (60, [])
    assert read(tar_of(0, form)) == ({}, [])
    joined, holes = read(tar_of(2, form) + tar_of(3, form, "b{}"))
    assert (len(joined), holes) == (10, [])


def test_a_tar_without_the_zeros_at_its_end_is_whole() -> None:
    whole = tar_of(3)[: 3 * SAMPLE]
    assert (len(read(whole)[0]), read(whole)[1]) == (6, [])


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 199), st.sampled_from(["cut", "extra", "over", "zeros"])), max_size=4),
    st.sampled_from(list(FORMATS)),
)
@example([(156, "cut")], "ustar")
def test_damage_costs_the_members_that_it_hits(damages: list[tuple[int, str]], form: str) -> None:
    """Bytes that are lost, added or overwritten anywhere. Oracle: the members whose bytes are still there."""
    data = whole = tar_of(20, form)
    for share, kind in damages:
        at = share * len(data) // 200
        extra = {"cut": b"", "extra": b"?" * 777, "over": b"?" * 300, "zeros": bytes(1_500)}[kind]
        gone = {"cut": 333, "extra": 0, "over": 300, "zeros": 1_500}[kind]
        data = data[:at] + extra + data[at + gone :]
    members, holes = read(data)
    written, _ = read(whole)
    intact = {f"{n:03d}.jpg" for n in range(20) if whole[n * SAMPLE : (n + 1) * SAMPLE] in data}
    assert {name: members.get(name) for name in intact} == {name: written[name] for name in intact}
    assert sum(hole.bytes for hole in holes) <= len(data)
    assert [hole.start for hole in holes] == sorted({hole.start for hole in holes})
    if not damages:
        assert holes == []


def test_a_hole_has_the_size_of_what_is_lost() -> None:
    whole = tar_of(60)
    lost = read(whole[: 7 * SAMPLE] + bytes(512) + whole[7 * SAMPLE + 512 :])[1]
    assert [(hole.start, hole.bytes) for hole in lost] == [(7 * SAMPLE, 1_536)]
    lost = read(whole[: 5 * SAMPLE + 1_200])[1]
    assert [(hole.start, hole.bytes) for hole in lost] == [(5 * SAMPLE, 1_200)]
    members, lost = read(whole[:SAMPLE] + bytes(50 * SAMPLE) + whole[51 * SAMPLE :])
    assert (len(members), [hole.bytes for hole in lost]) == (20, [50 * SAMPLE])
    assert str(lost[0]) == "128,000 bytes from byte 2,560 on cannot be read (zeros where members were)"


@pytest.mark.slow
def test_zeros_without_end_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("w+b") as f:
        f.write(tar_of(3))
        f.truncate(1 << 42)  # takes no room
        found = list(members_of(f))
    assert [type(own) for own in found] == [Member] * 6 + [Hole]
    assert found[-1].bytes > (1 << 42) - (1 << 20)


def test_what_is_no_tar_is_one_hole() -> None:
    data = random.Random(1).randbytes(100_000)
    members, [hole] = read(data)
    assert (members, hole.start, hole.bytes) == ({}, 0, len(data))
