"""What build.json tells of a build that runs, that was killed, and that is done. What it keeps: see test_run.py."""

from __future__ import annotations

import datetime
import re
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import Text
from pipeline import cli, opening
from pipeline.errors import StoreError
from pipeline.processes import pulse
from pipeline.rows.records import Candidate, candidate_rows
from pipeline.stages import fetch
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Result, Running
from pipeline.store.commits import on_gpu, timed


def _begin(build: Build, partitions: int, ago_s: float = 0.0) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
    build_json.note(build, running=Running("fetch", build.fingerprints["fetch"], moment.isoformat(), 0, partitions))


def _commit(build: Build, partition: str) -> None:
    with build.stage("fetch").attempt(partition) as attempt:
        attempt.path("bin").write_bytes(b"x" * 100)
        attempt.commit({"seen": 3, "kept": 2, "dropped": 1})


@pytest.fixture
def build(make_build) -> Build:
    return make_build(sources=[{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://127.0.0.1/"]}])


def test_a_running_stage_shows_its_partitions_and_what_is_left(build, capsys):
    with build_json.sole_owner(build):
        began = time.monotonic() - 30
        _begin(build, partitions=4, ago_s=30)
        assert build_json.status(opening.reopen(build.out))["running"]["left_seconds"] is None
        _commit(build, "0")
        known = build_json.status(opening.reopen(build.out))
        assert (known["alive"], known["stages"]["fetch"]["state"]) == (True, "running")
        assert (known["running"]["committed"], known["running"]["partitions"]) == (1, 4)
        passed = time.monotonic() - began
        assert 88 < known["running"]["left_seconds"] < 3 * passed + 2, "one took 30 s, three are left"
        assert cli.main(["status", build.out]) == 0
        shown = capsys.readouterr().err
        assert " 1/4" in shown
        assert "fetch has been running since" in shown


def test_a_build_that_was_killed_is_not_shown_as_running(build, capsys):
    with build_json.sole_owner(build):
        _begin(build, partitions=4)
    known = build_json.status(opening.reopen(build.out))
    assert (known["alive"], known["stages"]["fetch"]["state"]) == (False, "stopped")
    assert cli.main(["status", build.out]) == 0
    assert "stopped in fetch, no process is running" in capsys.readouterr().err


def test_asking_for_the_status_keeps_nobody_from_building(build):
    with build_json.sole_owner(build):
        build_json.note(build)
    assert build_json.status(opening.reopen(build.out))["alive"] is False
    second = build_json.sole_owner(build)
    with build_json.sole_owner(build), pytest.raises(StoreError, match="another wenlan-data is running here"):
        second.__enter__()


def test_costs_are_those_of_all_partitions_and_add_up(build):
    for partition in ("0", "1"):
        with timed():
            on_gpu(1.25)
            _commit(build, partition)
    records = list(build.stage("fetch").records())
    cost = Cost.of(records)
    assert cost.bytes == 200
    assert cost.seconds == pytest.approx(sum(r.seconds for r in records), abs=0.002)
    assert cost.gpu_seconds == 2.5
    build_json.note(build, Result("fetch.recheck", False, 0, 0, 0.0, {}, Cost()))
    for name in ("crawl", "fetch"):
        build_json.note(build, Result(name, False, 2, 2, 1.0, {"kept": 4}, Cost(2.0, 1.5, 1.0, 200, 9)))
    known = build.folder.read_json("build.json")
    assert known["stages"]["fetch"]["cost"] == asdict(Cost(2.0, 1.5, 1.0, 200, 9))
    assert known["cost"] == asdict(Cost(4.0, 3.0, 2.0, 400, 9)), "memory is that of the largest worker"
    assert known["running"] is None


def test_what_build_json_holds_already_is_not_written_again(build):
    """In an object store each writing is a request, and a build notes every stage."""
    result = Result("crawl", False, 1, 1, 1.0, {"kept": 4}, Cost())
    build_json.note(build, result)
    file = Path(build.out) / "build.json"
    first = file.stat()
    build_json.note(build, result)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    build_json.note(build, replace(result, funnel={"kept": 5}))
    assert build.folder.read_json("build.json")["stages"]["crawl"]["funnel"] == {"kept": 5}


def test_a_folder_without_a_build_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match="not a build"):
        opening.reopen(str(tmp_path))


@pytest.mark.slow
def test_a_killed_build_shows_nothing_of_what_its_partitions_said_last(build, capsys):
    _begin(build, partitions=2, ago_s=30)
    _commit(build, "0")
    now = time.time() + 300  # so that it is no old one on a busy machine
    said = {"at": now, "seconds": 9.0, "done": 5, "total": 9, "counts": {"kept": 5}, "rates": {"done": 1.0}}
    of_hosts = {"hosts": {"a.cn": {"kept": 5}}, "pauses": {"b.cn": ["status 429", now]}}
    (build.stage("fetch").folder / pulse.PULSE).write_json("1.json", {**said, **of_hosts})
    running = build_json.status(opening.reopen(build.out))["running"]
    assert (running["running"], running["hosts"], running["left_seconds"]) == (0, {}, None)
    assert cli.main(["status", build.out]) == 0
    shown = capsys.readouterr().err
    assert "no process is running" in shown
    assert "a.cn" not in shown
    with build_json.sole_owner(build):
        running = build_json.status(opening.reopen(build.out))["running"]
        assert running["done"] == 5, "as of one that runs"
        assert [(pause["host"], pause["reason"]) for pause in running["pauses"]] == [("b.cn", "status 429")]
        assert cli.main(["status", build.out]) == 0
    assert re.search(r"\nb\.cn paused until \S+Z \(\d+ \S+ left\): status 429\n", capsys.readouterr().err)


@pytest.mark.slow
def test_while_it_fetches_the_status_shows_each_host_and_its_rate(serve, make_build, monkeypatch, capsys):
    monkeypatch.setattr(pulse, "PULSE_S", 0.1)
    monkeypatch.setattr(fetch, "FLUSH_S", 0.0)
    asked = threading.Event()

    def last(handler) -> None:
        asked.wait(240)
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    picture = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    web = serve({**{f"/{i}.gif": picture for i in range(8)}, "/last.gif": last})
    sources = [{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}]
    egress = {"delay_s": 0.05, "timeout_s": 300, "connections_per_host": 4}
    build = make_build(web, sources=sources, egress=egress, fetch={"threads": 2})
    urls = [web.url(path) for path in (*(f"/{i}.gif" for i in range(8)), "/gone.gif", "/last.gif")]
    with build.stage("admit").attempt("00000-of-00001") as attempt:
        candidates = [Candidate("s", "news", "http://a.cn/", "http://a.cn/", url, (Text("alt", "图"),)) for url in urls]
        attempt.write_table("parquet", candidate_rows(candidates, 0))
        attempt.commit({"seen": 10, "kept": 10, "dropped": 0})

    def work() -> None:
        with pulse.pulse(build.stage("fetch").folder, "00000-of-00001"):
            fetch.run_partition(build, "00000-of-00001")

    with build_json.sole_owner(build):
        _begin(build, partitions=1)
        worker = threading.Thread(target=work)
        worker.start()
        try:
            until = time.monotonic() + 120
            seen: dict[str, Any] = {}
            while time.monotonic() < until and sum(seen.get(n, 0) for n in ("kept", "failed")) < 5:
                seen = build_json.status(opening.reopen(build.out))["running"]["hosts"].get(web.host, {})
                time.sleep(0.05)
            assert cli.main(["status", build.out]) == 0
        finally:
            asked.set()
            worker.join()
        assert seen["kept"] >= 4
        assert seen["bytes"] >= len(picture) * seen["kept"]
        assert 0 < seen["per_second"] < 25, "one in 0.05 s at most, robots.txt apart"
        assert seen["left_seconds"] > 0, "half of the host's images are still asked for"
        assert web.host in capsys.readouterr().err
        assert build_json.status(opening.reopen(build.out))["running"]["hosts"] == {}, "what is done is in the records"
