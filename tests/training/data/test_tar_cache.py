"""Tars that lie elsewhere: read from copies, fetched once, within a bound."""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.shard import ContractError
from data_specs.storage.whole_files import exclusive
from training.data import tar_cache
from training.data.index import open_dataset
from training.data.loader import Loader, Share
from training.data.tar_cache import TarCache
from training.data.tokenizer import load_tokenizer
from training.errors import ConfigError
from training.resolve import resolve

MakeShards = Callable[..., Path]


@pytest.fixture
def store() -> Iterator[str]:
    """A folder of an object store (fsspec's, in memory)."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def put(store: str, folder: Path) -> str:
    fs = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    return store


def samples(data: str | list[str], cache: Path, cache_gb: float, workers: int = 0) -> list[int]:
    config = replace(resolve("tiny").data, window_shards=1, num_workers=workers)
    dataset = open_dataset([data] if isinstance(data, str) else data, "train", cache=cache, cache_gb=cache_gb)
    loader = Loader(dataset, config, load_tokenizer("gb2312"), Share(6), seed=1, train=True)
    return [int(i) for batch in loader.batches(0, 42) for i in batch.sample_ids_B]


@pytest.mark.slow
def test_remote_shards_give_the_samples_of_local_ones_from_copies_within_the_bound(
    make_shards: MakeShards, tmp_path: Path, store: str
) -> None:
    manifest = make_shards(train=(7, 5, 9, 6))
    remote = put(store, manifest.parent)
    local = samples(str(manifest), tmp_path / "a", 1.0)
    sizes = sorted(path.stat().st_size for path in manifest.parent.glob("*.tar"))
    bound = sizes[-1] + sizes[-2]
    assert samples(remote, tmp_path / "b", bound / 1e9, workers=2) == local
    tars = tmp_path / "b" / "tars"
    given = time.monotonic() + 60  # a fetch that was under way checks the bound when it ends
    while len(list(tars.glob("*.tar"))) > 2 and time.monotonic() < given:
        time.sleep(0.01)
    copies = list(tars.glob("*.tar"))
    assert 1 <= len(copies) <= 2
    assert sum(path.stat().st_size for path in copies) <= bound
    assert samples(remote, tmp_path / "c", 0) == local  # a request an image
    assert not (tmp_path / "c" / "tars").exists()


def _open(cache: TarCache, url: str, size: int, found: Any) -> None:
    for _ in range(2):
        found.put(os.fstat(cache.open(url, size)).st_size)


@pytest.mark.slow
def test_processes_that_want_one_tar_at_once_fetch_it_once(tmp_path: Path) -> None:
    source = tmp_path / "source.tar"
    source.write_bytes(os.urandom(1 << 20))
    cache, context = TarCache(tmp_path / "tars", 1 << 30), multiprocessing.get_context("fork")
    found = context.SimpleQueue()  # they end by themselves: a pool waits for workers that a signal has to end
    own = [context.Process(target=_open, args=(cache, f"file://{source}", 1 << 20, found)) for _ in range(4)]
    for process in own:
        process.start()
    for process in own:
        process.join(240)
    assert [process.exitcode for process in own] == [0] * 4
    assert [found.get() for _ in range(8)] == [1 << 20] * 8
    assert [path.suffix for path in sorted((tmp_path / "tars").iterdir())] == [".lock", ".tar"]


def test_a_tar_of_another_size_and_one_that_is_gone_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"short")
    cache = TarCache(tmp_path / "tars", 1 << 30)
    with pytest.raises(ContractError, match=r"x.tar: 5 bytes, expected 9; the tar is truncated"):
        cache.open(f"file://{tmp_path}/x.tar", 9)
    with pytest.raises(ContractError, match=r"none.tar: missing"):
        cache.open(f"file://{tmp_path}/none.tar", 9)
    assert not list((tmp_path / "tars").glob("*.tar"))


def test_the_copy_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    urls = []
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(name.encode() * 100)
        urls.append(f"file://{tmp_path}/{name}.tar")
    cache = TarCache(tmp_path / "tars", 200)
    first = cache.open(urls[0], 100)
    os.close(cache.open(urls[1], 100))
    # a was used after b, whatever the clock's resolution
    for path in (tmp_path / "tars").glob("*.tar"):
        os.utime(path, (0, 2000 if path.read_bytes().startswith(b"a") else 1000))
    os.close(cache.open(urls[2], 100))
    remaining = {path.read_bytes()[:1] for path in (tmp_path / "tars").glob("*.tar")}
    assert remaining == {b"a", b"c"}
    assert os.pread(first, 3, 0) == b"aaa"


def test_each_part_of_a_mixture_has_windows_of_its_own(make_shards: MakeShards, tmp_path: Path, store: str) -> None:
    """With room for fewer every batch would fetch whole tars again."""
    folders = [make_shards(train=(7, 5), name=name, first=first).parent for name, first in (("a", 0), ("b", 50))]
    put(store, tmp_path)
    sizes = [path.stat().st_size for folder in folders for path in folder.glob("*.tar")]
    data = [f"{store}/a@1", f"{store}/b@2"]
    with pytest.raises(ConfigError, match=r"is too small for two windows of 1 shards of each of 2 parts"):
        samples(data, tmp_path / "cache", (sum(sizes) - 1) / 1e9)
    assert len(samples(data, tmp_path / "cache", (sum(sizes) + 1) / 1e9)) == 42


def test_a_tar_that_is_replaced_by_one_of_its_size_is_fetched_anew(tmp_path: Path) -> None:
    """tarfile rounds the length up to 10 kB: a tar that is made again is often as long as it was."""
    url, cache = f"file://{tmp_path}/x.tar", tmp_path / "cache"

    def packed(*samples: tuple[bytes, str]) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for number, (image, text) in enumerate(samples):
                for suffix, data in (("jpg", image), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def read() -> list[tuple[bytes, str]]:
        dataset = open_dataset([url], "train", cache=cache)
        rows = [dataset.row(number) for number in range(len(dataset))]
        return [(dataset.image(row), row.texts[0].text) for row in rows]

    first = [(b"red " * 100, "红"), (b"blue" * 100, "蓝")]
    packed(*first)
    assert read() == first
    size = (tmp_path / "x.tar").stat().st_size
    packed(*first[::-1])
    os.utime(tmp_path / "x.tar", (1, 1))
    assert (tmp_path / "x.tar").stat().st_size == size
    assert read() == first[::-1], "the texts of the new one beside the pictures of the new one"


def test_a_copy_that_another_process_removes_once_it_is_open_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 100)
    cache, url, opened = TarCache(tmp_path / "tars", 1 << 30), f"file://{tmp_path}/x.tar", os.open
    os.close(cache.open(url, 100))

    def and_removed(path: Any, *more: Any) -> int:
        handle = opened(path, *more)
        Path(path).unlink()
        return handle

    monkeypatch.setattr(tar_cache.os, "open", and_removed)
    handle = cache.open(url, 100)
    monkeypatch.undo()
    assert os.pread(handle, 3, 0) == b"xxx"


def test_a_fetch_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(200_000))
    monkeypatch.setattr(tar_cache.time, "sleep", lambda seconds: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ContractError, match=r"x.tar: cannot be fetched \(File too large\)"):
            TarCache(tmp_path / "tars", 1 << 30).open(f"file://{tmp_path}/x.tar", 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in (tmp_path / "tars").iterdir()] == [".lock"]


def test_what_a_killed_process_has_fetched_of_another_tar_is_removed_and_what_is_being_fetched_is_not(
    tmp_path: Path,
) -> None:
    """It counts in no bound: killed again and again, on other data, a training would fill the disk."""
    (tmp_path / "x.tar").write_bytes(b"x" * 100)
    folder = tmp_path / "tars"
    folder.mkdir()
    left, fetched = folder / "left.part", folder / "fetched.part"
    for part in (left, fetched):
        part.write_bytes(bytes(1000))
    with exclusive(fetched.with_suffix(".lock")):
        os.close(TarCache(folder, 1 << 30).open(f"file://{tmp_path}/x.tar", 100))
    assert (left.exists(), fetched.exists()) == (False, True)
