"""The reader of the images in fetch's tars: whole partitions and single images, in order, each read once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import StageError
from pipeline.rows.records import order_key, sha256_hex
from pipeline.store import images
from pipeline.store.build import Build
from pipeline.store.images import partition_images, read_images

SIZES = [10, 70_000, 300, 1_100_000, 20, 90_000, 5, 400_000, 1, 600_000]


@pytest.fixture
def build(fetched_build: Any, got: Any) -> Build:
    """Images of SIZES bytes, and one more URL with the bytes of number 5; one that was not fetched."""
    data = [bytes([number]) * size for number, size in enumerate(SIZES)]
    fetched = [got(f"{number}", content) for number, content in enumerate([*data, data[5], b""])]
    made: Build = fetched_build(fetched, parts=2)
    return made


def numbers(images: Any) -> list[tuple[int, int]]:
    """(number, bytes) of each image."""
    return [(image.data[0], len(image.data)) for image in images]


def test_a_partition_comes_in_the_order_of_its_tar(build: Build) -> None:
    every, offsets = [], []
    for record in build.stage("fetch").records():
        place = {row["fetch_id"]: row["offset"] for row in build.stage("fetch").table(record).to_pylist()}
        here = list(partition_images(build, record.partition))
        offsets.append([place[image.fetch_id] for image in here])
        every += here
    assert all(of_partition == sorted(of_partition) for of_partition in offsets)
    assert sorted(numbers(every)) == sorted([*enumerate(SIZES), (5, SIZES[5])])
    assert all(hashlib.sha256(image.data).hexdigest() == image.sha256 for image in every)


def test_of_equal_bytes_that_are_wanted_one_is_read(build: Build) -> None:
    wanted = {hashlib.sha256(bytes([number]) * SIZES[number]).hexdigest() for number in (3, 5)}
    every = set()
    for partition in build.stage("fetch").partitions():
        here = [image.sha256 for image in partition_images(build, partition, wanted)]
        assert len(here) == len(set(here))
        every.update(here)
    assert every == wanted
    assert list(partition_images(build, build.stage("fetch").partitions()[0], set())) == []


def test_single_images_come_in_the_order_of_shards(build: Build) -> None:
    ids = [sha256_hex(f"http://img.test/{number}") for number in (7, 1, 4, 11, 3, 1)]
    read = list(read_images(build, [*ids, sha256_hex("never seen")]))
    assert sorted(numbers(read)) == [(number, SIZES[number]) for number in (1, 3, 4, 7)]
    keys = [order_key(image.fetch_id, build.spec.seed) for image in read]
    assert keys == sorted(keys)
    assert list(read_images(build, [])) == []


def test_neighbours_are_read_together_and_gaps_are_skipped(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, pread = list[tuple[int, int]](), os.pread
    monkeypatch.setattr(images.os, "pread", lambda fd, size, at: reads.append((at, size)) or pread(fd, size, at))
    total = sum(len(list(partition_images(build, p))) for p in build.stage("fetch").partitions())
    assert len(reads) < total
    assert all(size <= max(images.READ_AHEAD, *SIZES) for _, size in reads)
    whole = sum(size for _, size in reads)
    assert whole == sum(SIZES) + SIZES[5]  # back to back in the tars of the test, and nothing is read twice
    reads.clear()
    ids = [sha256_hex(f"http://img.test/{number}") for number in range(0, len(SIZES), 2)]
    monkeypatch.setattr(images, "GAP", 0)
    list(read_images(build, ids))
    assert sum(size for _, size in reads) == sum(SIZES[::2])


def test_a_tar_behind_a_url_is_read_by_copy_or_by_ranges(build: Build, tmp_path: Path) -> None:
    remote = f"memory://{tmp_path.name}/build"
    target = fsspec.filesystem("memory")
    target.put(build.out, f"/{tmp_path.name}/build", recursive=True)
    there = replace(build, out=remote)
    ids = [sha256_hex(f"http://img.test/{number}") for number in (2, 5, 9)]
    expected = [(i.fetch_id, bytes(i.data)) for i in read_images(build, ids)]
    for sparse in (False, True):
        assert [(i.fetch_id, bytes(i.data)) for i in read_images(there, ids, sparse)] == expected


def test_a_tar_that_ends_early_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(images.os, "pread", lambda fd, size, at: pread(fd, size, at)[:-1])
    partition = build.stage("fetch").partitions()[0]
    with pytest.raises(StageError, match=r"\.tar: truncated before the image [0-9a-f]{64}; delete the stage's folder"):
        list(partition_images(build, partition))
