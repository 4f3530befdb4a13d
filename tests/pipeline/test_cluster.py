"""The executor: what it asks of a cluster, what it says where none can be joined, and how one task runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from data_specs.build import load
from pipeline import cluster, opening, run
from pipeline.errors import StageError
from pipeline.processes.actors import Actors
from pipeline.store.build import Build
from pipeline.store.commits import Record
from tests.places import ROOT
from tests.processes import descendants, is_running


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(
        """
name: t
contact: mailto:x@example.org
sources: [{kind: url_table, name: t, source_kind: news, path: t.csv, columns: {texts: {alt: zh}}}]
""",
        encoding="utf-8",
    )
    (tmp_path / "t.csv").write_text("image_url,zh\nhttp://127.0.0.1:1/a.jpg,一张图片\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_cluster_where_nobody_listens_is_one_line_at_once(tmp_path, spec, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another file of this process may have started one
    build = opening.open_build(load(spec), str(tmp_path / "out"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # which nobody else can take, and where nobody listens
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StageError, match=f"^{address}: cannot connect to a Ray cluster .*refused") as e:
            list(run.run(build, until="extract", address=address))
    assert "\n" not in str(e.value)


def test_a_head_is_lost_when_nobody_has_listened_for_a_while_and_not_when_it_comes_back(monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(cluster, "HEAD_LOST_S", 55.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        head = cluster._Head(address)
        assert not head.is_lost()
    now += 50
    assert not head.is_lost(), "Ray waits for a head that is started again"
    now += 10
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        assert not head.is_lost()
    now += 600  # in which tasks ended all the time, and nobody looked
    assert not head.is_lost(), "one look that failed says nothing of the time before it"
    now += 60
    assert head.is_lost()
    assert str(head.error()).startswith(f"{address}: the head of the Ray cluster has not responded for 60 s; ")
    assert str(head.error()).endswith("run the same command again: committed work is kept")


@pytest.mark.slow
def test_a_cluster_that_is_gone_holds_no_publish_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics are not counted, and that is said."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    published = False
    with cluster.joined("127.0.0.1:1"):
        published = True
    assert published
    assert "127.0.0.1:1: cannot connect to a Ray cluster" in caplog.text
    assert caplog.text.rstrip().endswith("metrics of gates and releases are not available")


def test_nothing_is_asked_of_a_cluster_that_it_has_not() -> None:
    small = {"CPU": 2.0, "memory": 1e9}
    assert cluster.granted({"num_cpus": 4, "num_gpus": 0.5}, [small]) == {"num_cpus": 2}
    assert cluster.granted({"num_cpus": 0.5}, [small]) == {"num_cpus": 0.5}
    assert cluster.granted({"num_cpus": 2}, [{"memory": 1e9}]) == {"num_cpus": 1}, "a head that is to run nothing"


def test_each_share_of_a_gpu_has_a_holder_of_sessions() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}, {"GPU": 1.0}]
    shares = (1.0, 0.5, 0.4, 2.0)
    assert [cluster.holders_of(share, nodes) for share in shares] == [3, 6, 6, 1]
    with pytest.raises(StageError, match=r"asks for 4 GPUs, but no node has more than 2; add .*, or set num_gpus: 0"):
        cluster.holders_of(4, nodes)


def test_a_task_asks_for_no_more_than_one_node_has() -> None:
    """Two nodes of two CPUs have four, and none can run a task of three: it would wait without end."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0, "memory": 5e9}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    alive = cluster._nodes(SimpleNamespace(nodes=lambda: nodes))
    assert cluster.granted({"num_cpus": 3}, alive) == {"num_cpus": 2}


def test_memory_is_cut_to_that_of_the_nodes_that_have_the_cpus() -> None:
    """What asks for all of a node runs alone there."""
    nodes = [{"CPU": 2.0, "memory": 5e9}, {"CPU": 8.0, "memory": 3e9}, {"CPU": 1.0, "memory": 1e9}]
    assert cluster.granted({"num_cpus": 2, "memory": 4e9}, nodes) == {"num_cpus": 2, "memory": 4e9}
    assert cluster.granted({"num_cpus": 3, "memory": 4e9}, nodes) == {"num_cpus": 3, "memory": 3e9}
    assert cluster.granted({"num_cpus": 1, "memory": 4e9}, [{"GPU": 1.0}]) == {"num_cpus": 1, "memory": 4e9}


_CROWDED = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import ray
from data_specs.build import load
from data_specs.command.loopback import start_ray
from pipeline import cluster, opening
from pipeline.processes import observe
folder, log = Path(sys.argv[1]), Path(sys.argv[1]) / "log"
def writing(build, partition):
    with log.open("a") as lines:
        crowded = build.out.endswith("crowded")
        memory = ray.get_runtime_context().get_assigned_resources()["memory"] if crowded else 0
        print(partition, os.getpid(), "begins", round(memory / 1e6), file=lines, flush=True)
        if crowded and partition == "00001" and log.read_text().count("00001") <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        with build.stage("measure").attempt(partition) as attempt:
            attempt.path("bin").write_bytes(partition.encode() * 1000)
            attempt.commit({"seen": 0, "kept": 0, "dropped": 0})
        print(partition, os.getpid(), "ends", 0, file=lines, flush=True)
observe.log_as("text")
start_ray(ray, num_cpus=4, include_dashboard=False, _memory=1e9, object_store_memory=100_000_000)
said = {}
for name, own in (("crowded", cluster.Cluster()), ("here", cluster.Cluster(here=True))):
    out = opening.open_build(load(folder / "spec.yaml"), str(folder / name))
    build = replace(out, fingerprints={"measure": "f" * 64})
    asked = {"num_cpus": 1, "memory": 400e6}
    list(own.each(build, [("measure", writing)], asked, [f"{n:05d}" for n in range(5)]))
    said[name] = [[r.partition, r.files["bin"].sha256] for r in build.stage("measure").records()]
    said[name + " log"] = log.read_text().splitlines()
    log.unlink()
(folder / "said.json").write_text(json.dumps(said))  # Ray writes to stdout too
"""


@pytest.mark.drill(15)
@pytest.mark.timeout(400)
def test_a_node_runs_what_fits_its_memory_and_a_killed_partition_alone(tmp_path, spec) -> None:
    """400 MB each on a node of 1 GB and four CPUs: two at a time. What is killed asks for 800 MB, then for all."""
    words = [sys.executable, "-c", _CROWDED, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for more in ("twice the memory", "all memory of a node"):
        assert f"measure/00001: its worker died, perhaps killed for memory; retrying with {more}" in done.stderr
    running, beside, asked = dict[str, str](), list[set[str]](), dict[str, list[int]]()
    for line in said["crowded log"]:
        partition, pid, event, memory = line.split()
        if event == "ends":
            del running[pid]
            continue
        asked.setdefault(partition, []).append(int(memory))
        if partition != "00001" or len(asked[partition]) == 3:  # two tries are killed, and do not end
            running[pid] = partition
            beside.append(set(running.values()))
    assert asked.pop("00001") == [400, 800, 1000]
    assert [*asked.values()] == [[400]] * 4
    assert max(map(len, beside)) <= 2
    assert [own for own in beside if "00001" in own] == [{"00001"}]
    assert len(said["here"]) == 5
    assert said["crowded"] == said["here"]


_SMALL = """
import sys
from pipeline import cli
from pipeline.stages import extract
if "failing" in sys.argv:
    sys.argv.remove("failing")
    extract.STAGE.passes[0].__dict__["run"] = lambda build, partition: 1 / 0
code = cli.main()
print(code, "ray" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, pytest.param(True, marks=pytest.mark.drill(1))])
def test_a_build_whose_passes_have_one_partition_each_starts_no_ray(tmp_path, spec, failing) -> None:
    build = ["build", str(spec), "--out", "out", "--until", "fetch"]
    words = [sys.executable, "-c", _SMALL, *["failing"] * failing, *build]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ("1 False" if failing else "0 False"), done.stderr
    if failing:
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("extract/t-00000: failed: ZeroDivisionError: division by zero\n"), done.stderr


def test_several_partitions_gpus_sites_and_clusters_need_ray(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "on_cluster", lambda: False)  # another test of this process may have started one
    own, one = cluster.Cluster(), {"num_cpus": 1.0, "memory": 1e9}
    assert not own.is_needed(one, ["00000"])
    assert not own.is_needed(one, [])
    assert own.is_needed(one, ["00000", "00001"])
    assert own.is_needed({"num_cpus": 0.5}, ["site"]), "a crawl spreads its visitors over all CPUs"
    assert own.is_needed({**one, "num_gpus": 1.0}, ["00000"])
    assert cluster.Cluster("127.0.0.1:1").is_needed(one, ["00000"])
    assert not cluster.Cluster(here=True).is_needed(one, ["00000", "00001"])


@pytest.mark.slow
@pytest.mark.parametrize("losses", [1, pytest.param(3, marks=pytest.mark.drill(15))])
def test_a_partition_is_done_again_when_an_actor_that_it_used_is_gone(ray, tmp_path, spec, losses):
    """Ray repeats a task whose own worker dies, and not one that an actor has left alone."""

    class Holder:
        def __init__(self, share: int) -> None:
            self._share = share

        def pid(self) -> int:
            return os.getpid()

    def holding(build: Build, partition: str) -> None:
        with Actors(Holder, [(0,), (1,)]) as holders:
            pids = holders.ask("pid", [(), ()])
            tries = len(list(tmp_path.glob("try-*")))
            (tmp_path / f"try-{tries}").touch()
            if tries < losses:
                os.kill(pids[1], signal.SIGKILL)
            holders.ask("pid", [(), ()])
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"seen": 0, "kept": 0, "dropped": 0})

    build = replace(opening.open_build(load(spec), str(tmp_path / "out")), fingerprints={"measure": "f" * 64})
    each = cluster.Cluster().each(build, [("measure", holding)], {"num_cpus": 1}, ["00000"])
    if losses == 1:
        [[[line]]] = each
        assert build.stage("measure").record("00000") == Record.model_validate_json(line)
        assert build.stage("measure").partitions() == ["00000"]
    else:
        with pytest.raises(StageError, match=r"^measure/00000: failed: Actor"):
            list(each)
    assert len(list(tmp_path.glob("try-*"))) == min(losses + 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("identities", [20_000])
def test_a_build_of_any_size_reaches_tasks_without_the_object_store(ray, tmp_path, spec, monkeypatch, identities):
    def full(*_: object) -> None:
        raise ray.exceptions.ObjectStoreFullError("no room")

    def count(build: Build, partition: str) -> None:
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"seen": len(build.identities), "kept": 0, "dropped": 0})

    build = replace(opening.open_build(load(spec), str(tmp_path / "out")), fingerprints={"measure": "f" * 64})
    large = replace(build, identities=tuple(str(i) for i in range(identities)))
    monkeypatch.setattr(ray, "put", full)
    [[[line]]] = cluster.Cluster().each(large, [("measure", count)], {"num_cpus": 1}, ["00000"])
    assert Record.model_validate_json(line).counts["seen"] == identities


def test_a_crawl_state_that_finds_no_room_is_told_like_any_full_disk(tmp_path, spec):
    def writing(*_: object) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "small.sqlite")) as db:
            db.execute("CREATE TABLE t (x TEXT)")
            db.execute("PRAGMA max_page_count = 3")  # SQLITE_FULL, as of a disk
            db.executemany("INSERT INTO t VALUES (?)", [("x" * 4000,)] * 10)

    build = opening.open_build(load(spec), str(tmp_path / "out"), str(tmp_path / "store"))
    Path(build.folder.url).mkdir()
    with pytest.raises(StageError, match=r"no space left on its disk \(crawl/s\); free some space and run the same"):
        cluster.run_task(build, "crawl", writing, "s", "text")

    def failing(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):  # of a disk with room: it fails in another way
        cluster.run_task(build, "crawl", failing, "s", "text")


def test_a_worker_may_open_as_many_files_as_a_large_build_has_runs(tmp_path, spec):
    def look(*_: object) -> None:
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    limits: list[tuple[int, int]] = []
    build = opening.open_build(load(spec), str(tmp_path / "out"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))  # as a shell may have left it
    try:
        cluster.run_task(build, "measure", look, "00000", "text")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    [(soft, hard)] = limits
    assert hard == before[1]
    assert soft == (cluster.OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, cluster.OPEN_FILES))


@pytest.mark.slow
def test_a_partition_costs_what_all_its_work_took_not_only_its_writing(tmp_path, spec):
    def busy(build: Build, partition: str) -> None:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"seen": 0, "kept": 0, "dropped": 0})

    build = opening.open_build(load(spec), str(tmp_path / "out"))
    build = replace(build, fingerprints={"measure": "f" * 64})
    cluster.run_task(build, "measure", busy, "00000", "text")
    [record] = build.stage("measure").records()
    assert record.cpu_seconds >= 0.3
    assert record.seconds >= 0.3
    with build.stage("measure").attempt("00001") as attempt:
        assert attempt.commit({}).cpu_seconds < 0.3  # a clock of its own, outside


def test_a_full_disk_is_told_by_its_folder_and_any_other_fault_of_the_system_by_itself(tmp_path, spec):
    path = "/dev/full"

    def writing(*_: object) -> None:
        Path(path).write_bytes(b"x")

    build = opening.open_build(load(spec), str(tmp_path / "out"), str(tmp_path / "store"))
    Path(build.folder.url).mkdir()
    with pytest.raises(StageError, match=r"no space left on its disk \(fetch/00000\); free some space") as e:
        cluster.run_task(build, "fetch", writing, "00000", "text")
    assert Path(e.value.subject).is_dir()
    path = str(tmp_path)
    with pytest.raises(IsADirectoryError):
        cluster.run_task(build, "fetch", writing, "00000", "text")


_DRIVER = """
import contextlib, sys, time
from pipeline.processes import observe
from pipeline.cluster import Cluster, _failure
from pipeline.errors import StageError
observe.log_as("text")
cluster = Cluster(workers=1)
ray = cluster.start()
def failing():
    print("a line of a worker", file=sys.stderr)
    raise ValueError("planted")
with contextlib.suppress(StageError):
    try:
        ray.get(ray.remote(failing).remote())
    except ray.exceptions.RayError as e:
        raise _failure(ray, e, "measure")
ray.remote(lambda: time.sleep(600)).remote()
print("up", [*{"aiohttp", "ray.dashboard.optional_deps"} & set(sys.modules)], flush=True)
sys.stdin.readline()
"""


def _driver() -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", _DRIVER]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def _up(driver: subprocess.Popen[str]) -> dict[int, bytes]:
    """What a driver has started, once its Ray is up."""
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up []\n", "no dashboard"
    return descendants(driver.pid)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are known by /proc")
def test_workers_do_not_outlive_a_killed_driver_by_ten_seconds_and_what_they_said_is_plain() -> None:
    with _driver() as driver:
        started = _up(driver)
        assert any(b"ray::" in title for title in started.values())
        _is_alone(driver.pid)
        driver.kill()
        driver.wait()
        assert driver.stderr is not None
        said = driver.stderr.read()
        assert "a line of a worker" in said
        assert "ValueError: planted" in said
        assert re.findall(r"\x1b|\\x1b", said) == [], "colours do not belong into a log"
        for _ in range(100):  # ten seconds of this process, which stands still when the machine does
            if not (remaining := [pid for pid in started if b"Agent" not in started[pid] and is_running(pid)]):
                break
            time.sleep(0.1)
    assert [started[pid] for pid in remaining] == [], "the agents of a raylet live on for a minute"


def _is_alone(driver: int) -> None:
    """Asserts that a driver's Ray listens to this machine alone, and has no dashboard.

    Whoever reaches Ray's GCS, raylet or dashboard can run commands as its user.
    """
    addresses, programs = set[str](), set[str]()
    for process in (psutil.Process(driver), *psutil.Process(driver).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            addresses |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
            programs |= {word.rpartition("/")[2] for word in process.cmdline()}
    assert "raylet" in programs
    assert not {"monitor.py", "dashboard.py"} & programs  # a second of CPU each, and of no use on one machine
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
