"""Fixtures of several test folders: builds written straight through the store, without the stages that they test."""

from __future__ import annotations

import functools
import gc
import importlib
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from pipeline.store.build import Build
from pipeline.store.store import Store
from tests import shares, stages

# Several processes run tests at once (`make test`), and models here are tiny: threads that wait for each other cost
# three times the work itself. Set before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Commands and workers that tests start keep the bytecode of what they import, also where the environment says not to:
# a container often does, and compiling `pipeline` anew is 0.4 of the 1.3 s of CPU that a process takes to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # nor here: pytest rewrites the asserts of all tests, 20 s of 33 for a collection

# Workers of Ray are as polite as anybody: Ray's own 15 lets each other test process on these cores go first, and a test
# waits minutes for a worker's imports, while the processes of its cluster go on asking how it is.
os.environ.setdefault("RAY_worker_niceness", "0")

# Records are written through to the disk: 2 to 20 ms for each of a build's hundred small files. What is lost without
# that is lost when the power goes; no test cuts it, and a killed process loses nothing that it has written.
os.fsync = lambda _: None

# A deadline for one example, or for making ten of them, measures how busy the machine is, not what the code does.
# Fifteen examples, others in each run: `make fuzz` looks for what is rare.
settings.register_profile("wenlan", deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wenlan")

ON_RAY = frozenset(
    f"tests/pipeline/{name}.py"
    for name in ("test_build", "test_cluster", "processes/test_sessions", "web/test_crawler")
)
"""Files whose tests use the fixture `ray`: one Ray for all of them, whose start takes as long as ten tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("drills", "drills (tests/shares.py)")
    group.addoption("--share", type=shares.Share.parse, metavar="K/N", help="only that part of the tests chosen")
    group.addoption("--minutes", type=float, metavar="M", help="skip what would end later, and name it in the end")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.minutes:
        config.pluginmanager.register(shares.Budget(60 * config.option.minutes, config.option.share))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which may be switched off
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run tests at once: two for each core, since a test often waits for a process or a clock.

    No more than there are cores where memory is short: a process may hold a Ray and two models, about 5 GB.
    """
    cores = os.cpu_count() or 1
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return max(cores, min(2 * cores, gigabytes // 5))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file of tests stays in one process, and so do all files ON_RAY, one after the other."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "on Ray" if file in ON_RAY else file

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """The Ray of the files ON_RAY ends with the last of them: code that finds a Ray running uses it."""
    try:
        return (yield)
    finally:
        on_ray = [one is not None and one.nodeid.partition("::")[0] in ON_RAY for one in (item, nextitem)]
        if on_ray == [True, False] and "ray" in sys.modules:
            sys.modules["ray"].shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not look through it a hundred times.

    Each process of pytest-xdist begins with another file: to rewrite the asserts of all files is half of a first
    collection, and so each process does its share and finds the others' in the cache.
    """
    gc.disable()
    worker, folders = getattr(session.config, "workerinput", None), [Path(own) for own in session.config.args]
    if worker and all(folder.is_dir() for folder in folders):
        files = sorted(file for folder in folders for file in folder.rglob("test_*.py"))
        begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
        session.config.args = list(map(str, files[begin:] + files[:begin]))
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where pytest-xdist spreads files over processes, the longest begin, so that none ends alone.

    Those are the files of the tests that are given most time (0: without a limit), and then those with most slow tests.
    """
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        limit: dict[Path, float] = defaultdict(float)
        for item in items:
            for mark in item.iter_markers("timeout"):
                limit[item.path] = max(limit[item.path], mark.args[0] or math.inf)
        items.sort(key=lambda item: (-limit[item.path], -slow[item.path], item.path))
    if config.option.share:
        chosen = shares.of(items, config.option.share)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module tests/synthetic.py: a build with everything up to detect, and the truth about it."""
    return importlib.import_module("tests.synthetic")


@pytest.fixture(scope="session")
def browser() -> ModuleType:
    """The module tests/browser.py: a headless Chromium."""
    return importlib.import_module("tests.browser")


HANDLERS = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
"""What signals do in a process of tests."""


@pytest.fixture(scope="module", autouse=True)
def _signals() -> Iterator[None]:
    """Ray leaves handlers of SIGTERM and SIGINT behind, which processes that a later test forks would inherit.

    Processes with them were seen not to end when told to, and whoever waits for one waits for ever.
    """
    yield
    for name, handler in HANDLERS.items():
        signal.signal(name, handler)


@pytest.fixture(scope="session", autouse=True)
def _end_of_the_browser() -> Iterator[None]:
    """The Chromium that tests share ends with them, if one was started."""
    yield
    if started := sys.modules.get("tests.browser"):
        started.close()


@pytest.fixture
def one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock by which servers of this process count requests per minute stands still.

    Else a test may cross from one minute of the package `limits` into the next, where one request more is let through.
    """
    memory, now = importlib.import_module("limits.storage.memory"), time.time()
    monkeypatch.setattr(memory, "time", SimpleNamespace(time=lambda: now))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tests/exported.py's Exported: a tiny checkpoint and its ONNX towers, which tests only read."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return importlib.import_module("tests.exported").once(tmp_path_factory)


@pytest.fixture(scope="session")
def _synthetic_once(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Build:
    build: Build = synthetic.make(tmp_path_factory.mktemp("synthetic"))[0]
    return build


@pytest.fixture
def synthetic_build(tmp_path: Path, _synthetic_once: Build) -> Build:
    """The build that `synthetic` makes, below the test's folder: a copy, which takes a tenth of the time."""
    out = Path(_synthetic_once.out)
    shutil.copytree(out.parent, tmp_path, dirs_exist_ok=True)
    return replace(_synthetic_once, out=str(tmp_path / out.name), store=Store(str(tmp_path / "store")))


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., list[str]]:
    """tests/stages.py's run_stage(build, "shard", ...): the partitions that are missing, here and without Ray."""
    return stages.run_stage


@pytest.fixture(scope="session")
def _published_once(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Build:
    from pipeline.publish import release

    build: Build = synthetic.make(tmp_path_factory.mktemp("published"))[0]
    stages.run_stage(build, "shard")
    release.publish(build)
    return build


@pytest.fixture
def shards_of(synthetic_build: Build, _published_once: Build) -> Path:
    """The shard folder of the synthetic build, published: a copy, which takes a tenth of the time."""
    shutil.copytree(Path(_published_once.out).parent, Path(synthetic_build.out).parent, dirs_exist_ok=True)
    return Path(synthetic_build.out) / "shards"


@pytest.fixture
def fetched_build(tmp_path: Path) -> Callable[..., Build]:
    """tests/fetched.py's make(images, parts=1, name=..., snapshot=..., store=..., **spec) below the test's folder."""
    return functools.partial(importlib.import_module("tests.fetched").make, tmp_path)


@pytest.fixture(scope="session")
def filtered() -> ModuleType:
    """The module tests/filtered.py: make(folder, pictures, parts=1, ...), a build that dedup can begin with."""
    return importlib.import_module("tests.filtered")


@pytest.fixture(scope="session")
def _weeks_once(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Any:
    folder = tmp_path_factory.mktemp("weeks") / "now"
    return importlib.import_module("tests.weeks").Weeks(folder, synthetic.encode)


@pytest.fixture
def weeks(_weeks_once: Any) -> Any:
    """tests/weeks.py's Weeks, builds of a dataset that grows, in a folder that each test finds empty."""
    from pipeline.sources import folder as listings

    shutil.rmtree(_weeks_once.folder, ignore_errors=True)
    _weeks_once.folder.mkdir()
    listings._scan.cache_clear()
    return _weeks_once


@pytest.fixture
def got() -> Callable[..., Any]:
    """got(name, data, *texts, page=...): an image as the web gave it, on a page of its own, for `fetched_build`."""
    kind = importlib.import_module("tests.fetched").Got

    def make(name: str, data: bytes, *texts: Any, page: str = "") -> Any:
        own = page or f"http://site.test/{name}/a.html"
        return kind(f"http://img.test/{name}", data, texts or ("一张图片",), own)

    return make


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of a real S3 server, moto's, over HTTP; its address and keys are in the environment."""
    moto, fsspec = pytest.importorskip("moto.server"), pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    importlib.import_module("tests.s3_server").hasten_moto()
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        fsspec.filesystem("s3").mkdir(f"data-{port}")  # moto keeps one state for all servers of a process
        yield f"s3://data-{port}"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """tests/s3_server.py's Remote: a bucket of moto's server, in a process of its own, behind a proxy that can fail."""
    servers = importlib.import_module("tests.s3_server")
    with servers.remote(tmp_path_factory.mktemp("s3"), servers.moto) as made:
        yield made
        made.proxy.heal()
