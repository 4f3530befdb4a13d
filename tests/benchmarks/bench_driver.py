"""The driver of a pass of 215,000 partitions: on a disk with a Ray of its own, then on an S3 server that answers after
20 ms with a cluster of four nodes of one CPU each (real raylets on this machine).

A driver is killed (SIGKILL) in the middle of real Ray tasks, and another one goes on. What it finds are all records but
those of the tasks that are left, as a driver leaves them, written without running a task for each. A task does nothing
but commit a record of 1.3 kB. The server answers from memory, in this process, and checks no signature.

    list_s         seconds to list and read the records of the finished pass, in a process of its own
    list_mb        its most memory
    start_s        seconds from the start of the second driver, with its Ray's or its joining one, to its first task
    driver_mb      most memory of that driver
    core_percent   its CPU, as a share of a core at 1,000 partitions a minute, from the first task to the last
    requests       requests of the second driver and its tasks, for each task; without a bar (s3)
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from data_specs.build import BuildSpec
from pipeline import cluster, run
from pipeline.pass_runner import EVERY
from pipeline.store.build import Build, Pass, Stage
from pipeline.store.commits import DecisionCounts, Fate, FileRef, Record
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store
from tests.benchmarks.harness import Figure, at_most, environment, program, quick, report, shown, told

PARTITIONS, FEWER = 215_000, 21_500
TASKS, KILLED_AFTER, NODES = 1_000, 50, 4
LATENCY_S = 0.02
REASONS = ("dns", "timeout", "status_404", "too_small", "bad_image", "forgotten")


def name_of(number: int, of: int) -> str:
    return f"{number:06d}-of-{of:06d}"


def record_of(partition: str) -> Record:
    """A record as fetch commits one."""

    def digest(what: str) -> str:
        return hashlib.sha256(f"{what}{partition}".encode()).hexdigest()

    attempt = digest("attempt")[:8]
    names = {"tar": "", "parquet": "", "decisions.parquet": "_decisions/"}
    files = {
        suffix: FileRef(name=f"{place}{partition}-{attempt}.{suffix}", bytes=10_000_000, sha256=digest(suffix))
        for suffix, place in names.items()
    }
    rows = tuple((Fate("candidate", "danqing", "fetch", False, reason), 120) for reason in REASONS)
    counts = dict.fromkeys(("seen", "kept", "dropped", "known", "bytes", "failed", "stored", "asked"), 9_876)
    return Record(
        stage="fetch", partition=partition, fingerprint="f" * 64, attempt=attempt, files=files, counts=counts,
        info={"rows": digest("rows")[:16]}, seconds=123.456, cpu_seconds=45.678, peak_bytes=500_000_000,
        decided=DecisionCounts(of=digest("decisions.parquet"), rows=rows),
    )  # fmt: skip


def commit(first: Path, build: Build, partition: str) -> None:
    """The whole work of a task. first: a file for the time at which the first task runs."""
    if not first.exists():
        first.write_text(str(time.time()))
    like = record_of(partition)
    with build.stage("fetch").attempt(partition) as attempt:
        attempt.commit(like.counts, like.info, like.files)


def build_at(url: str, partitions: int) -> Build:
    """A build of one pass."""

    def over(build: Build) -> list[str]:
        return [name_of(number, partitions) for number in range(partitions)]

    task = functools.partial(commit, Path(os.environ.get("BENCH_FIRST", "")))
    own = Pass("fetch", over, reads=(), run=task, token=lambda build: None)
    stage = Stage("fetch", "下载", "images", (own,), network=True)
    source = {"kind": "table", "name": "t", "source_kind": "web", "path": "t.csv"}
    spec = BuildSpec.model_validate({"name": "driver", "contact": "owner@example.org", "sources": [source]})
    store = Store(f"{url}/store")
    return Build(spec, f"{url}/build", store, "driver", "x", {"fetch": "f" * 64}, stages={"fetch": stage})


def drive(url: str, partitions: int) -> None:
    """A driver, in a process of its own; prints its figures."""
    spent = list[float]()
    each = cluster.Cluster.each

    def timed(*given: Any) -> Iterator[Any]:
        spent.append(cpu_s())
        yield from each(*given)
        spent.append(cpu_s())

    cluster.Cluster.each = timed  # type: ignore[method-assign, assignment]
    [result] = run.run(build_at(url, partitions), until="fetch")
    assert result.partitions == partitions, result
    print(json.dumps({"ran": result.ran, "cpu": spent[1] - spent[0], "mb": peak_mb()}))


def read(url: str, partitions: int) -> None:
    """A reader of the finished pass, in a process of its own; prints its figures."""
    stage, start = build_at(url, partitions).stage("fetch"), time.perf_counter()
    assert len(stage.partitions()) == partitions
    assert sum(record.counts["seen"] for record in stage.records()) == 9_876 * partitions
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": peak_mb()}))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def leave(stage: StageDir, partitions: int, missing: int, write: Any) -> None:
    """Leave what a killed driver leaves, with `missing` partitions to be done. write(name, data): one record."""
    names = [name_of(number, partitions) for number in range(partitions - missing)]
    for name in names:
        write(f"{name}.json", record_of(name).model_dump_json(indent=1).encode())
    compacted = names[: len(names) // EVERY * EVERY]
    stage.compact(((name, record_of(name).model_dump_json()) for name in compacted), complete=False)


class Server:
    """The requests of s3fs that the pipeline makes, answered from memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests = 0
        self._sorted: list[str] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            if key not in self.objects:
                self._sorted.append(key)  # sorted when it is listed
            self.objects[key] = data

    def drop(self, key: str) -> None:
        with self._lock:
            if self.objects.pop(key, None) is not None:
                self._sorted.remove(key)

    def listed(self, query: dict[str, list[str]]) -> str:
        """One page of list_objects_v2."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        most = int(query.get("max-keys", ["1000"])[0])
        entries, after = list[str](), query.get("continuation-token", [""])[0]
        with self._lock:
            self._sorted.sort()
            at = bisect.bisect_left(self._sorted, prefix) if not after else bisect.bisect_right(self._sorted, after)
            last = after
            while at < len(self._sorted) and self._sorted[at].startswith(prefix) and len(entries) < most:
                key, last = self._sorted[at], self._sorted[at]
                folder = key[: key.index(delimiter, len(prefix)) + 1] if delimiter in key[len(prefix) :] else ""
                if delimiter and folder:
                    entries.append(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>")
                    last = f"{folder}\U0010ffff"
                    at = bisect.bisect_right(self._sorted, last)
                else:
                    size, tag = len(self.objects[key]), hashlib.md5(self.objects[key]).hexdigest()
                    about = f"<Size>{size}</Size><ETag>{tag}</ETag><LastModified>2026-01-01T00:00:00Z</LastModified>"
                    entries.append(f"<Contents><Key>{escape(key)}</Key>{about}</Contents>")
                    at += 1
            more = at < len(self._sorted) and self._sorted[at].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        state = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(entries)}</KeyCount>"
        return f"<ListBucketResult>{state}{token}{''.join(entries)}</ListBucketResult>"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _do(self) -> None:
                time.sleep(LATENCY_S)
                server.requests += 1
                parts = urlsplit(self.path)
                key = unquote(parts.path).partition("/")[2].partition("/")[2]
                query, body = parse_qs(parts.query), self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == "PUT":
                    if self.headers.get("If-None-Match") and key in server.objects:
                        return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                    match = self.headers.get("If-Match", "").strip('"')
                    if match and match != hashlib.md5(server.objects.get(key, b"")).hexdigest():
                        return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                    server.put(key, body)
                    return self._answer(200, b"", key)
                if self.command == "POST":  # DeleteObjects
                    for name in body.decode().split("<Key>")[1:]:
                        server.drop(name.partition("</Key>")[0])
                    return self._answer(200, b"<DeleteResult></DeleteResult>")
                if self.command == "DELETE":
                    server.drop(key)
                    return self._answer(204, b"")
                if not key:
                    return self._answer(200, server.listed(query).encode())
                if key not in server.objects:
                    return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return self._answer(200, server.objects[key], key)

            def _answer(self, status: int, data: bytes, key: str = "") -> None:
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(data)))
                if key:
                    self.send_header("ETag", f'"{hashlib.md5(server.objects[key]).hexdigest()}"')
                    self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

        return Handler


def child(what: str, url: str, partitions: int, first: Path) -> subprocess.Popen[str]:
    command, env = program("bench_driver", what, url, partitions), environment(BENCH_FIRST=str(first))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def said_by(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    assert process.returncode == 0, out
    figures: dict[str, float] = json.loads(out.splitlines()[-1])
    return figures


def measured(where: str, folder: Path, url: str, partitions: int, requests: Any) -> dict[str, Figure]:
    """Kills one driver, lets another one finish, and reads what is there then."""
    stage = build_at(url, partitions).stage("fetch")
    killed = child("drive", url, partitions, folder / "first-killed")
    try:
        while len(stage.partitions()) < partitions - TASKS + KILLED_AFTER:
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.2)
    finally:
        killed.kill()
        killed.wait()
    told(f"{where}: killed a driver")
    time.sleep(5)  # its Ray ends
    began, asked = time.time(), requests()
    own = said_by(child("drive", url, partitions, folder / "first"))
    asked = requests() - asked
    listed = said_by(child("read", url, partitions, folder / "first"))
    start = float((folder / "first").read_text()) - began
    figures = {
        "list_s": at_most(listed["seconds"], 60, "s"),
        "list_mb": at_most(listed["mb"], 500, "MB"),
        "start_s": at_most(start, 90, "s"),
        "driver_mb": at_most(own["mb"], 500, "MB"),
        "core_percent": at_most(own["cpu"] / own["ran"] * 1_000 / 60 * 100, 5, "%"),
    }
    if asked:
        figures["requests"] = shown(asked / own["ran"], "a task")
    told(str({name: figure.value for name, figure in figures.items()}))
    return {f"{where}_{name}": figure for name, figure in figures.items()}


def main() -> int:
    partitions = FEWER if quick(__doc__) else PARTITIONS
    figures = dict[str, Figure]()
    with tempfile.TemporaryDirectory(prefix="wenlan-driver-") as name:
        folder = Path(name)
        stage = build_at(f"{folder}/disk", partitions).stage("fetch")
        place = Path(stage.folder.url, stage.records_name)
        place.mkdir(parents=True)
        leave(stage, partitions, TASKS, lambda name, data: (place / name).write_bytes(data))
        told("records are written")
        figures |= measured("disk", folder, f"{folder}/disk", partitions, lambda: 0)
    with tempfile.TemporaryDirectory(prefix="wenlan-driver-") as name, Server() as server:
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {**keys, "AWS_ENDPOINT_URL": server.url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"  # no body in chunks
        stage = build_at("s3://data", partitions).stage("fetch")
        key = stage.folder.url.removeprefix("s3://data/") + f"/{stage.records_name}"
        leave(stage, partitions, TASKS, lambda name, data: server.put(f"{key}/{name}", data))
        told("records are written")
        from tests.benchmarks.ray_nodes import Nodes  # and its drills, which drivers and tasks do without

        with Nodes(Path(name), NODES) as nodes:
            os.environ |= nodes.environment
            figures |= measured("s3", Path(name), "s3://data", partitions, lambda: server.requests)
    return report(figures)


if __name__ == "__main__":
    if sys.argv[1:2] in (["drive"], ["read"]):
        globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main())
