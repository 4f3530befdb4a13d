"""The client against a loopback fake that speaks Ray's API (faults on demand), and against a real Ray head (slow)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dags.ray_jobs import (
    Job,
    JobUnknown,
    RayJobs,
    RayJobsError,
    RayJobsRefused,
    find_token,
    last_object,
    submission_name,
    why_it_failed,
)


class FakeRay(ThreadingHTTPServer):
    """Jobs in a dict. `faults` are answers to give first: (status, body, headers); `lose_answers` drops a POST's."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[tuple[int, bytes, dict[str, str]]] = []
        self.seen: list[tuple[str, str, str]] = []
        self.lose_answers = False
        self.submissions = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRay

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        if self.server.faults:
            return self._answer(*self.server.faults.pop(0))
        name, _, verb = self.path.removeprefix("/api/jobs/").partition("/")
        with self.server.lock:
            if not name:
                return self._submit(json.loads(body))
            if name not in self.server.jobs:
                return self._answer(404, f"Job {name} does not exist".encode(), {})
            found = {"logs": {"logs": "line 1\n"}, "stop": {"stopped": True}, "": self.server.jobs[name]}[verb]
        return self._answer(200, json.dumps(found).encode(), {})

    def _submit(self, request: dict[str, Any]) -> None:
        name = request["submission_id"]
        if name in self.server.jobs:
            text = f"Traceback\nRuntimeError: Job with submission_id {name} already exists."
            return self._answer(500, text.encode(), {})
        self.server.submissions += 1
        self.server.jobs[name] = {"status": "RUNNING", "entrypoint": request["entrypoint"], "message": None}
        if self.server.lose_answers:
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self._answer(200, json.dumps({"submission_id": name}).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def fake() -> Iterator[FakeRay]:
    with FakeRay() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_second_caller_attaches(fake: FakeRay) -> None:
    jobs = RayJobs(fake.url)
    first, ours = jobs.attach_or_submit("build", "wenlan-data build x.yaml")
    again, ours_again = jobs.attach_or_submit("build", "wenlan-data build x.yaml")
    assert (first, ours, ours_again) == (again, True, False)
    assert (first.submission_id, first.state, first.ended) == ("build-1", "RUNNING", False)
    assert fake.submissions == 1


@pytest.mark.parametrize(
    ("state", "expected"), [("FAILED", "build-2"), ("STOPPED", "build-2"), ("SUCCEEDED", "build-1")]
)
def test_only_after_a_failure_is_the_next_one_started(fake: FakeRay, state: str, expected: str) -> None:
    jobs = RayJobs(fake.url)
    jobs.attach_or_submit("build", "true")
    fake.jobs["build-1"]["status"] = state
    assert jobs.attach_or_submit("build", "true")[0].submission_id == expected
    assert jobs.attach_or_submit("build", "true")[0].submission_id == expected
    assert fake.submissions == (2 if expected == "build-2" else 1)


def test_an_answer_that_was_lost_is_no_second_job(fake: FakeRay) -> None:
    fake.lose_answers = True
    job, ours = RayJobs(fake.url).attach_or_submit("build", "true")
    assert (job.submission_id, ours, fake.submissions) == ("build-1", False, 1)


def test_callers_at_the_same_moment_start_one_job(fake: FakeRay) -> None:
    started: list[bool] = []
    barrier = threading.Barrier(8)

    def call() -> None:
        barrier.wait()
        started.append(RayJobs(fake.url).attach_or_submit("build", "true")[1])

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), sum(started), fake.submissions) == (8, 1, 1)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ((401, b"Unauthorized: Missing authentication token", {}), RayJobsRefused, "set RAY_AUTH_TOKEN"),
        ((403, b"Forbidden", {}), RayJobsRefused, "HTTP 403: Forbidden"),
        (
            (400, b"Traceback\n  File\nTypeError: runtime_env must be a dict", {}),
            RayJobsRefused,
            "TypeError: runtime_env",
        ),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), RayJobsRefused, "HTTP 302"),
        ((404, b"404: Not Found", {}), RayJobsRefused, "HTTP 404"),
        ((503, b"", {}), RayJobsError, "no reason given"),
        ((200, b"<html>", {}), RayJobsError, "is this Ray?"),
        ((200, b"[]", {}), RayJobsError, "is this Ray?"),
        ((200, b"{}", {}), RayJobsError, "has no 'status'"),
        ((200, b"{", {"Content-Length": "9"}), RayJobsError, "the connection broke"),
    ],
)
def test_faults_of_the_cluster(fake: FakeRay, fault: Any, kind: type[RayJobsError], said: str) -> None:
    fake.faults.append(fault)
    with pytest.raises(RayJobsError, match=said.replace("?", r"\?")) as caught:
        RayJobs(fake.url, timeout_s=1).status("build-1")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(fake.url)
    assert "\n" not in str(caught.value)


def test_a_job_that_is_not_there_and_a_cluster_that_is_not_there(fake: FakeRay) -> None:
    with pytest.raises(JobUnknown, match="does not exist"):
        RayJobs(fake.url).logs("other")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RayJobsError, match=f"http://127.0.0.1:{port}: no answer"):
        RayJobs(f"http://127.0.0.1:{port}").status("build-1")
    with pytest.raises(RayJobsRefused, match="ray://h:1: not the http"):
        RayJobs("ray://h:1")


def test_the_token_goes_with_every_call_and_never_elsewhere(fake: FakeRay) -> None:
    environment = {"RAY_API_SERVER_ADDRESS": fake.url, "RAY_AUTH_TOKEN": " secret\n"}
    jobs = RayJobs.from_environment(environment)
    jobs.attach_or_submit("build", "true")
    jobs.logs("build-1")
    jobs.stop("build-1")
    assert len(fake.seen) == 5
    assert {header for _, _, header in fake.seen} == {"Bearer secret"}
    with FakeRay() as other:
        fake.faults.append((307, b"", {"Location": other.url}))
        with pytest.raises(RayJobsRefused, match="HTTP 307"):
            jobs.status("build-1")
        other.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.socket.accept()


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    named = tmp_path / "named"
    named.write_text("from-file\n")
    assert find_token(home) == ""
    assert find_token({**home, "RAY_AUTH_TOKEN_PATH": str(named)}) == "from-file"
    assert find_token({**home, "RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "first"}) == "first"
    with pytest.raises(RayJobsRefused, match="auth_token: no Ray token there"):
        find_token({**home, "RAY_AUTH_MODE": "token"})
    with pytest.raises(RayJobsRefused, match=r"RAY_AUTH_TOKEN_PATH=.*absent: No such file"):
        find_token({**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("default")
    assert find_token(home) == "default"
    assert find_token({**home, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}) == ""


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_names_are_fit_for_a_file_and_tell_their_parts_apart(one: list[str], two: list[str]) -> None:
    name = submission_name(*one)
    assert name == submission_name(*one)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert len(name) <= 91
    assert (name == submission_name(*two)) == (one == two)


def test_the_result_is_the_last_object_of_the_log() -> None:
    assert last_object('{"a": 1}\n{"published": true}\nWARNING {late}\n{broken\n[1]\n') == {"published": True}
    assert last_object("nothing\n3\n") is None


def test_why_it_failed_prefers_what_our_commands_said() -> None:
    job = Job("build-1", "FAILED", "x", "Job entrypoint command failed", 1)
    logs = "stage\nwenlan-data: b: gate min_samples: 3 are left\nwenlan-data: let it through with: ...\nlast\n"
    assert why_it_failed(job, logs).splitlines() == [
        "Ray job build-1 FAILED (exit 1)",
        "wenlan-data: b: gate min_samples: 3 are left",
        "wenlan-data: let it through with: ...",
    ]
    assert why_it_failed(job, "a\nb\n\n").splitlines()[1:] == ["b"]
    assert why_it_failed(job, "").splitlines()[1:] == ["Job entrypoint command failed"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def ray_head() -> Iterator[str]:
    """The URL of a real head on this machine, in a session and folder of its own; no token authentication."""
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="wr"))  # short: a socket's path holds 107 bytes
    port, dashboard, agent, client = _free_ports(4)
    command = f"""{Path(sys.executable).with_name("ray")} start --head --block --node-ip-address 127.0.0.1 --port {port}
        --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}
        --ray-client-server-port {client} --num-cpus 1 --num-gpus 0 --object-store-memory 80000000
        --temp-dir {folder} --disable-usage-stats"""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    log = folder / "start.log"
    with log.open("wb") as f:
        head = subprocess.Popen(
            shlex.split(command), env=environment, stdout=f, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for_head(head, url, log)
        yield url
    finally:
        _end_session(head)
        shutil.rmtree(folder, ignore_errors=True)


def _end_session(head: subprocess.Popen[bytes]) -> None:
    """Kill the head and wait for what it started; its workers end by themselves when the raylet is gone."""
    os.killpg(head.pid, signal.SIGKILL)
    head.wait(10)
    until = time.monotonic() + 10
    while left := [pid for pid in _processes() if _session(pid) == head.pid]:
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _wait_for_head(head: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + 40
    while time.monotonic() < until and head.poll() is None:
        try:
            RayJobs(url, timeout_s=5).status("none")
        except JobUnknown:
            return
        except RayJobsError:
            time.sleep(0.3)
    pytest.fail(f"the Ray head did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _end(jobs: RayJobs, submission_id: str) -> Job:
    until = time.monotonic() + 30
    while not (job := jobs.status(submission_id)).ended:
        assert time.monotonic() < until, job
        time.sleep(0.2)
    return job


@pytest.mark.slow
def test_against_a_real_ray_head(ray_head: str) -> None:
    jobs = RayJobs(ray_head)
    said = """echo "$GREETING"; echo "wenlan-data: gate" >&2; exit 3"""
    runtime_env = {"env_vars": {"GREETING": '{"published": false}'}}
    failing, ours = jobs.attach_or_submit("failing", said, runtime_env)
    assert ours
    long, _ = jobs.attach_or_submit("long", "sleep 600")

    ended = _end(jobs, failing.submission_id)
    logs = jobs.logs(failing.submission_id)
    assert (ended.state, ended.exit_code, ended.entrypoint) == ("FAILED", 3, said)
    assert last_object(logs) == {"published": False}
    assert why_it_failed(ended, logs).splitlines() == ["Ray job failing-1 FAILED (exit 3)", "wenlan-data: gate"]

    with pytest.raises(RayJobsError, match="already exists"):
        jobs.submit("true", long.submission_id)
    assert jobs.attach_or_submit("long", "sleep 600")[0].submission_id == "long-1"
    assert jobs.stop("long-1")
    assert _end(jobs, "long-1").state == "STOPPED"
    assert not jobs.stop("long-1")

    second, ours = jobs.attach_or_submit("failing", "true")
    assert (second.submission_id, ours) == ("failing-2", True)
    assert _end(jobs, "failing-2").state == "SUCCEEDED"
    with pytest.raises(JobUnknown):
        jobs.logs("other")
    with pytest.raises(RayJobsRefused, match="HTTP 400"):
        jobs._call("POST", "", {"entrypoint": 3})
