"""kill -9 while packing, publishing and taking down, on a disk and on a real S3 server: real processes, real signals.

Each command is killed at moments spread over all that it changes, one kill after the other on the same folder, before
it is let through. All the while a reader looks at the dataset as anybody's reader does: where there is a manifest, each
file that it names is there, of its size and sha256. In the end there is what an undisturbed run leaves.

A whole build that is killed while it packs, Ray and all, is in test_build.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.release import open_manifest
from data_specs.shard import ContractError, Manifest, parse_manifest
from data_specs.storage.object_store import content
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.store import Store
from pipeline.store.takedowns import UNFINISHED
from pipeline.takedown.forget import Request
from tests.places import ROOT
from tests.stages import run_stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(
        900
    ),  # twenty processes one after the other, each of which imports for seconds on a busy machine
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RUNNER = """
import json, os, pickle, signal, sys
import s3fs
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.takedown.forget import forget
from tests.stages import run_stage

def count_changes(is_local, at):
    changes = [0]

    def change():
        changes[0] += 1
        if changes[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    if is_local:
        for name in ("take", "move", "delete"):
            def counted(self, *args, real=getattr(Folder, name)):
                change()
                return real(self, *args)
            setattr(Folder, name, counted)
    else:
        real = s3fs.core.S3FileSystem._call_s3
        async def counted(self, method, *args, **kwargs):
            if not method.startswith(("get", "head", "list")):
                change()
            return await real(self, method, *args, **kwargs)
        s3fs.core.S3FileSystem._call_s3 = counted
    return changes

def run(path, what, at, environment):
    os.environ.clear()
    os.environ.update(environment)
    with open(path, "rb") as f:
        build, request = pickle.load(f)
    changes = count_changes(build.folder.is_local, at)
    if what == "pack":
        run_stage(build, "shard")
    elif what == "publish":
        release.publish(build)
    else:
        forget(build.store, [build], request)
    return changes[0]

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is not an answer
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"%d" % run(*json.loads(line)))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = int(pipe.read() or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said, file=answers, flush=True)
"""
"""Runs commands, each in a process of its own: a line of JSON is one command, an answer its exit status and how many
changes it made to the build and STORE; it is killed right before change `at`. The process that starts them has all
modules loaded and does nothing itself, so that thirty commands do not cost thirty imports of everything."""

OPTIONS = {"samples_per_shard": 8}

Command = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The process of RUNNER, and the file of its stderr."""
    log = tmp_path_factory.mktemp("runner") / "stderr"
    words, pipe = [sys.executable, "-c", RUNNER], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, text=True)
    with process:
        yield process, log
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def command(runner: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> Command:
    """command(build, request, "publish", at=3): run it; (exit status, changes made)."""
    process, log = runner
    assert process.stdin is not None
    assert process.stdout is not None

    def run(build: Build, request: Request | None, what: str, at: int = 0) -> tuple[int, int]:
        path = tmp_path / "command.pickle"
        path.write_bytes(pickle.dumps((build, request)))
        print(json.dumps([str(path), what, at, dict(os.environ)]), file=process.stdin, flush=True)
        status, changes = process.stdout.readline().split() or (None, None)
        assert status in ("0", str(-signal.SIGKILL)), log.read_text(errors="replace")[-3000:]
        return int(status), int(changes)

    return run


def newest(build: Build) -> Manifest | None:
    """The newest release of a build's dataset, None if there is none."""
    with contextlib.suppress(FileNotFoundError, ContractError):  # no latest.json yet, or one without a release
        return open_manifest(f"{build.store.url}/datasets/{build.spec.name}", content)[1]
    return None


class Reader(threading.Thread):
    """Looks at a shard folder again and again; `faults` is what was half there under a manifest that stood.

    While a build is published, where there is its manifest there is the release with it, and the other way round.
    """

    def __init__(self, folder: str, publishing: Build | None = None) -> None:
        super().__init__(daemon=True)
        self._folder, self._over, self._publishing = folder, threading.Event(), publishing
        self._known: dict[tuple[str, str], tuple[int, str]] = {}
        self.faults: list[str] = []
        self.whole = self.none = 0
        self.fresh = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._look()
            self.fresh.set()
            took = time.monotonic() - began  # on a busy machine a fifth of the time is enough for it, too
            self._over.wait(max(4 * took, 0.2 if "://" in self._folder else 0.01))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def look_anew(self) -> None:
        """Wait for a look that begins after now: the one that is on its way ends first."""
        for _ in range(2):
            self.fresh.clear()
            assert self.fresh.wait(240)

    def _read(self, name: str) -> bytes | None:
        try:
            return content(f"{self._folder}/{name}")
        except FileNotFoundError:
            return None

    def _digests(self, names: list[str]) -> dict[str, tuple[int, str]]:
        """Size and sha256 of those of the files that are there; in a bucket one of a known ETag is not read again."""
        tags: dict[str, str] = dict.fromkeys(names, "")
        if "://" in self._folder:
            fs, root = fsspec.url_to_fs(self._folder)
            fs.invalidate_cache()
            tags = {path.removeprefix(f"{root}/"): own["ETag"] for path, own in fs.find(root, detail=True).items()}
        found = {}
        for name in (name for name in names if name in tags):
            version = name, tags[name]
            if not tags[name] or version not in self._known:
                if (data := self._read(name)) is None:
                    continue
                self._known[version] = len(data), hashlib.sha256(data).hexdigest()
            found[name] = self._known[version]
        return found

    def _look(self) -> None:
        if self._publishing is not None:
            before, released = self._read("manifest.json"), newest(self._publishing)
            if (before is not None and released is None) or (released is not None and not self._read("manifest.json")):
                self.faults.append("one of build and release was there without the other")
        data = self._read("manifest.json")
        if data is None:
            self.none += 1
            return
        shards, found = parse_manifest(data, "the manifest").shards, []
        named = [file for entry in shards for file in (entry.tar, entry.parquet, *entry.regions.values())]
        there = self._digests([file.path for file in named])
        for file in named:
            if file.path not in there:
                found.append(f"{file.path} is not there")
            elif there[file.path] != (file.bytes, file.sha256):
                found.append(f"{file.path} is not what the manifest says")
        if not found:
            self.whole += 1
        elif self._read("manifest.json") == data:  # else it was taken away while we read
            self.faults += found


@contextmanager
def watched(build: Build, publishing: bool = False) -> Iterator[Reader]:
    reader = Reader(f"{build.out}/shards", build if publishing else None)
    reader.start()
    try:
        reader.look_anew()
        yield reader
        reader.look_anew()
    finally:
        reader.stop()
    assert reader.faults == []


def dataset(build: Build) -> dict[str, str]:
    """sha256 of every file that a user of the dataset sees, with the time of its publish, and its day, taken out."""
    fs, root = fsspec.url_to_fs(f"{build.out}/shards")
    fs.invalidate_cache()
    made = parse_manifest(fs.cat_file(f"{root}/manifest.json"), "the manifest").created_at.encode()
    found = {}
    for path in fs.find(root):
        name = path.removeprefix(root).lstrip("/")
        if not name.startswith(("_", ".tmp")):
            found[name] = hashlib.sha256(fs.cat_file(path).replace(made, b"").replace(made[:10], b"")).hexdigest()
    return found


def known(build: Build) -> set[bytes]:
    """Candidates in STORE's identities."""
    identities = Identities(build.store)
    tables = (t for name in identities.names() for t in identities.batches(identities.read(name), "images.parquet"))
    return {row for table in tables for row in table["candidate_id"].to_pylist()}


@pytest.fixture(scope="module")
def packed(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build with finished shards, not published."""
    build: Build = synthetic.make(tmp_path_factory.mktemp("packed"), shards=OPTIONS)[0]
    run_stage(build, "shard")
    return build


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Build, str], Build]:
    """place(build, "disk" | "s3"): a copy of a build and its STORE, there."""

    def copy(build: Build, where: str) -> Build:
        name = f"{request.node.name.partition('[')[0]}-{os.urandom(4).hex()}"
        if where == "disk":
            shutil.copytree(build.out, tmp_path / name / "build")
            if Path(build.store.url).exists():
                shutil.copytree(build.store.url, tmp_path / name / "store")
            base = str(tmp_path / name)
        else:
            base = f"{request.getfixturevalue('bucket')}/{name}"
            fs = fsspec.filesystem("s3")
            fs.put(f"{build.out}/", f"{base}/build/", recursive=True)
            if Path(build.store.url).exists():
                fs.put(f"{build.store.url}/", f"{base}/store/", recursive=True)
        return replace(build, out=f"{base}/build", store=Store(f"{base}/store"))

    return copy


def spread(changes: int, kills: int) -> Sequence[int]:
    """Moments spread over so many changes, the first and the last among them."""
    return sorted({1 + round(i * (changes - 1) / (kills - 1)) for i in range(kills)})


@pytest.mark.parametrize(
    ("where", "kills"),
    [("disk", 2), *(pytest.param(*own, marks=pytest.mark.drill(60)) for own in (("disk", 7), ("s3", 4)))],
)
def test_a_publish_that_is_killed_leaves_no_half_dataset(
    packed: Build, place: Callable[[Build, str], Build], command: Command, where: str, kills: int
) -> None:
    calm = place(packed, where)
    _, changes = command(calm, None, "publish")
    undisturbed = newest(calm)
    assert undisturbed is not None
    for at in sorted({*spread(changes, kills), changes - 1}):  # at the end all becomes visible
        build = place(packed, where)  # a publish goes on where it was: of one build later kills would find less to do
        with watched(build, publishing=True) as reader:
            assert command(build, None, "publish", at)[0] == -signal.SIGKILL
            assert (newest(build) is not None) == Folder(build.out).exists("shards/manifest.json")
            assert command(build, None, "publish")[0] == 0
        assert reader.none > 0
        assert reader.whole > 0
        released = newest(build)
        assert released is not None
        assert released.content_digest == undisturbed.content_digest
        assert verify(f"{build.store.url}/datasets/{build.spec.name}") == []
        assert dataset(build) == dataset(calm)
        assert known(build) == known(calm)
        assert verify(f"{build.out}/shards") == []


@pytest.mark.parametrize(
    ("where", "kills"),
    [("disk", 4), *(pytest.param(*own, marks=pytest.mark.drill(60)) for own in (("disk", 9), ("s3", 5)))],
)
def test_a_takedown_that_is_killed_leaves_no_half_dataset_and_is_finished_by_the_next(
    packed: Build, place: Callable[[Build, str], Build], synthetic: Any, command: Command, where: str, kills: int
) -> None:
    calm, build = place(packed, where), place(packed, where)
    for one in (calm, build):
        release.publish(one)
    kept = [item for item in synthetic.items() if item.stage == "shard"]
    request = Request(urls=[kept[3].candidate.image_url, kept[14].candidate.image_url])
    _, changes = command(calm, request, "forget")
    ends = []
    with watched(build) as reader:
        for at in spread(changes, kills):
            ends.append(command(build, request, "forget", at)[0])
        assert command(build, request, "forget")[0] == 0
    assert ends.count(-signal.SIGKILL) >= min(3, kills // 2), (
        "a takedown goes on where it was, so that later kills find less to do"
    )
    assert reader.whole > 0
    assert dataset(build) == dataset(calm)
    assert known(build) == known(calm)
    assert verify(f"{build.out}/shards", store=build.store.url) == []
    assert not build.folder.exists(UNFINISHED)
    released, undisturbed = newest(build), newest(calm)
    assert released is not None
    assert undisturbed is not None
    assert released.shards == undisturbed.shards
    assert verify(f"{build.store.url}/datasets/{build.spec.name}", store=build.store.url) == []
    gone = {bytes.fromhex(kept[i].candidate.candidate_id) for i in (3, 14)}
    assert not gone & known(build)


@pytest.mark.drill(4)
def test_packing_that_is_killed_leaves_no_half_dataset_of_either_spec(
    packed: Build, place: Callable[[Build, str], Build], synthetic: Any, command: Command
) -> None:
    old = place(packed, "disk")
    release.publish(old)
    more = synthetic.spec(shards={**OPTIONS, "samples_per_shard": 3, "max_side": 100})
    fingerprints = {**packed.fingerprints, "shard": "5" * 64, "report": "e" * 64}
    build, calm = (replace(one, spec=more, fingerprints=fingerprints) for one in (old, place(packed, "disk")))
    _, changes = command(calm, None, "pack")
    release.publish(calm)
    with watched(build) as reader:
        for at in spread(changes, 6):
            command(build, None, "pack", at)
        assert command(build, None, "pack")[0] == 0
        assert reader.whole > 0, "the old dataset was there to be seen"
        assert not (Path(build.out) / "shards/manifest.json").exists()
        release.publish(build)
    assert {n: s for n, s in dataset(build).items() if n.endswith((".tar", ".parquet", ".idx"))} == {
        n: s for n, s in dataset(calm).items() if n.endswith((".tar", ".parquet", ".idx"))
    }
    assert verify(f"{build.out}/shards") == []
