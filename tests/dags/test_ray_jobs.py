"""The client against a loopback fake that speaks Ray's API (faults on demand), and against a real Ray head (slow)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dags.ray_jobs import (
    Job,
    JobUnknown,
    RayJobs,
    RayJobsError,
    RayJobsRefused,
    find_token,
    last_object,
    submission_id,
    why_it_failed,
)
from pipeline.processes import observe
from tests.places import ROOT
from tests.processes import free_ports, wait_until
from training.run import ray_job

TOKEN = "a-token-of-this-test-alone-0123456789"


def test_a_second_caller_attaches(fake: Any) -> None:
    jobs = RayJobs(fake.url)
    first, ours = jobs.attach_or_submit("build-0", "wenlan-data build x.yaml")
    again, ours_again = jobs.attach_or_submit("build-0", "wenlan-data build x.yaml")
    assert (first, ours, ours_again) == (again, True, False)
    assert (first.submission_id, first.state, first.ended) == ("build-0", "RUNNING", False)
    assert fake.submissions == 1


@pytest.mark.parametrize("state", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_job_that_ended_is_told_of_and_not_started_again(fake: Any, state: str) -> None:
    jobs = RayJobs(fake.url)
    jobs.attach_or_submit("build-0", "true")
    fake.jobs["build-0"]["status"] = state
    job, ours = jobs.attach_or_submit("build-0", "true")
    assert (job.state, ours, fake.submissions) == (state, False, 1)


def test_an_end_is_waited_for(fake: Any) -> None:
    jobs = RayJobs(fake.url)
    jobs.attach_or_submit("build-0", "true")
    assert jobs.end("build-0")
    assert jobs.status("build-0").ended
    assert not jobs.end("build-0"), "it has ended"
    assert not jobs.end("other"), "there is none"
    jobs.attach_or_submit("build-1", "true")
    fake.stops_in = 10**6
    with pytest.raises(RayJobsError, match="build-1 still runs"):
        jobs.end("build-1", patience_s=0.1)


def test_an_answer_that_was_lost_is_no_second_job(fake: Any) -> None:
    fake.lose_answers = True
    job, ours = RayJobs(fake.url).attach_or_submit("build-0", "true")
    assert (job.submission_id, ours, fake.submissions) == ("build-0", False, 1)


def test_callers_at_the_same_moment_start_one_job(fake: Any) -> None:
    started: list[bool] = []
    barrier = threading.Barrier(8)

    def call() -> None:
        barrier.wait()
        started.append(RayJobs(fake.url).attach_or_submit("build-0", "true")[1])

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
        ((200, b"{}", {}), RayJobsError, "lacks 'status'"),
        ((200, b"{", {"Content-Length": "9"}), RayJobsError, "the connection broke"),
    ],
)
def test_faults_of_the_cluster(fake: Any, fault: Any, kind: type[RayJobsError], said: str) -> None:
    fake.faults.append(fault)
    with pytest.raises(RayJobsError, match=said.replace("?", r"\?")) as caught:
        RayJobs(fake.url, timeout_s=120).status("build-1")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(fake.url)
    assert "\n" not in str(caught.value)


def test_a_job_that_is_not_there_and_a_cluster_that_is_not_there(fake: Any) -> None:
    with pytest.raises(JobUnknown, match="does not exist"):
        RayJobs(fake.url).logs("other")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # where nobody else can listen meanwhile
        port = silent.getsockname()[1]
        with pytest.raises(RayJobsError, match=f"http://127.0.0.1:{port}: no answer"):
            RayJobs(f"http://127.0.0.1:{port}").status("build-1")
    with pytest.raises(RayJobsRefused, match="ray://h:1: not the http"):
        RayJobs("ray://h:1")


def test_the_token_goes_with_every_call_and_never_elsewhere(fake: Any) -> None:
    environment = {"RAY_API_SERVER_ADDRESS": fake.url, "RAY_AUTH_TOKEN": " secret\n"}
    jobs = RayJobs.from_environment(environment)
    jobs.attach_or_submit("build-1", "true")
    jobs.logs("build-1")
    jobs.stop("build-1")
    assert len(fake.seen) == 5
    assert {header for _, _, header in fake.seen} == {"Bearer secret"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        fake.faults.append((307, b"", {"Location": f"http://127.0.0.1:{other.getsockname()[1]}"}))
        with pytest.raises(RayJobsRefused, match="HTTP 307"):
            jobs.status("build-1")
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.accept()


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    named = tmp_path / "named"
    named.write_text("from-file\n")
    assert find_token(home) == ""
    assert find_token({**home, "RAY_AUTH_TOKEN_PATH": str(named)}) == "from-file"
    assert find_token({**home, "RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "first"}) == "first"
    with pytest.raises(RayJobsRefused, match="auth_token: the Ray token is missing"):
        find_token({**home, "RAY_AUTH_MODE": "token"})
    with pytest.raises(RayJobsRefused, match=r"RAY_AUTH_TOKEN_PATH=.*absent: No such file"):
        find_token({**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("default")
    assert find_token(home) == "default"
    assert find_token({**home, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}) == ""


@pytest.mark.slow
@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_names_are_fit_for_a_file_and_tell_their_parts_apart(one: list[str], two: list[str]) -> None:
    name = submission_id(*one)
    assert name == submission_id(*one)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert len(name) <= 91
    assert (name == submission_id(*two)) == (one == two)


def test_the_result_is_the_last_object_of_the_log() -> None:
    assert last_object('{"a": 1}\n{"published": true}\nWARNING {late}\n{broken\n[1]\n') == {"published": True}
    assert last_object("nothing\n3\n") is None


def test_why_it_failed_prefers_what_our_commands_said() -> None:
    job = Job("build-1", "FAILED", "x", "Job entrypoint command failed", 1)
    logs = "stage\nwenlan-data: b: gate min_samples: 3 are left\nwenlan-data: to publish this build anyway: ...\nlast\n"
    assert why_it_failed(job, logs).splitlines() == [
        "Ray job build-1 FAILED (exit 1)",
        "wenlan-data: b: gate min_samples: 3 are left",
        "wenlan-data: to publish this build anyway: ...",
    ]
    assert why_it_failed(job, "a\nb\n\n").splitlines()[1:] == ["b"]
    assert why_it_failed(job, "").splitlines()[1:] == ["Job entrypoint command failed"]


@dataclass(frozen=True)
class Head:
    """A real head on this machine: its client, and the folder in which Ray says where its metrics are."""

    jobs: RayJobs
    folder: Path

    def exposition(self) -> str:
        """What Prometheus would read right now."""
        targets = json.loads((self.folder / "prom_metrics_service_discovery.json").read_text(encoding="utf-8"))
        text = ""
        for target in {t for group in targets for t in group["targets"]}:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                text += answer.read().decode()
        return text

    def metrics(self) -> set[str]:
        """The names in it."""
        return set(re.findall(r"^(ray_\w+)", self.exposition(), re.MULTILINE))


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    """A head in a session and folder of its own, with token authentication."""
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="wr"))  # short: a socket's path holds 107 bytes
    port, dashboard, agent, client = free_ports(4)
    command = f"""{Path(sys.executable).with_name("ray")} start --head --block --node-ip-address 127.0.0.1 --port {port}
        --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}
        --ray-client-server-port {client} --num-cpus 1 --num-gpus 0 --object-store-memory 80000000
        --temp-dir {folder} --disable-usage-stats"""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_metrics_report_interval_ms": "500"}
    log = folder / "start.log"
    with log.open("wb") as f:
        head = subprocess.Popen(
            shlex.split(command), env=environment, stdout=f, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for_head(head, url, log)
        yield Head(RayJobs(url, TOKEN), folder)
    finally:
        _end_session(head)
        shutil.rmtree(folder, ignore_errors=True)


def _end_session(head: subprocess.Popen[bytes]) -> None:
    """Kill the head and wait for what it started; its workers end by themselves when the raylet is gone."""
    os.killpg(head.pid, signal.SIGKILL)
    head.wait(240)
    until = time.monotonic() + 10
    while left := [pid for pid in _processes() if _session(pid) == head.pid]:
        if time.monotonic() > until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
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
    until = time.monotonic() + 120
    while time.monotonic() < until and head.poll() is None:
        try:
            RayJobs(url, TOKEN, timeout_s=5).status("none")
        except JobUnknown:
            return
        except RayJobsError:
            time.sleep(0.3)
    pytest.fail(f"the Ray head did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _end(jobs: RayJobs, submission_id: str) -> Job:
    until = time.monotonic() + 120
    while not (job := jobs.status(submission_id)).ended:
        assert time.monotonic() < until, job
        time.sleep(0.2)
    return job


@pytest.mark.drill(30)
def test_against_a_real_ray_head(ray_head: Head) -> None:
    jobs = ray_head.jobs
    with pytest.raises(RayJobsRefused, match=r"HTTP 401.*set RAY_AUTH_TOKEN"):
        RayJobs(jobs.address).status("none")
    said = """echo "$GREETING"; echo "wenlan-data: gate" >&2; exit 3"""
    runtime_env = {"env_vars": {"GREETING": '{"published": false}'}}
    failing, ours = jobs.attach_or_submit("failing-0", said, runtime_env)
    assert ours
    jobs.attach_or_submit("long-0", "sleep 600")

    ended = _end(jobs, failing.submission_id)
    logs = jobs.logs(failing.submission_id)
    assert (ended.state, ended.exit_code, ended.entrypoint) == ("FAILED", 3, said)
    assert last_object(logs) == {"published": False}
    assert why_it_failed(ended, logs).splitlines() == ["Ray job failing-0 FAILED (exit 3)", "wenlan-data: gate"]

    with pytest.raises(RayJobsError, match="already exists"):
        jobs.submit("true", "long-0")
    assert jobs.attach_or_submit("long-0", "sleep 600")[1] is False
    assert jobs.end("long-0")
    assert jobs.status("long-0").state == "STOPPED"
    assert not jobs.stop("long-0")
    with pytest.raises(JobUnknown):
        jobs.logs("other")
    with pytest.raises(RayJobsRefused, match="HTTP 400"):
        jobs._call("POST", "", {"entrypoint": 3})


SPEC = """
name: small
contact: mailto:x@example.org
sources: [{{kind: site, name: site, source_kind: news, start: ["{url}/"]}}]
egress: {{allow: ["{host}"], delay_s: 0}}
filters: [{{name: text_length, min_chars: 4}}, {{name: image_sides, min_side: 64}}]
shards: {{dev_share: 0.2, val_share: 0.2}}
publish: {{min_samples: {min_samples}}}
"""
PICTURES = 24


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The URL of a loopback site: one page with PICTURES captioned pictures, and one that is too busy to answer."""
    dice = random.Random(1)
    pages: dict[str, tuple[str, bytes]] = {}
    figures = []
    for i in range(PICTURES):
        data = io.BytesIO()
        Image.effect_noise((300 + i, 300), 90).resize((320, 320 + 7 * i)).save(data, "JPEG")
        pages[f"/{i}.jpg"] = ("image/jpeg", data.getvalue())
        text = "".join(chr(dice.randrange(0x4E00, 0x6E00)) for _ in range(12))
        figures.append(f"<figure><img src='/{i}.jpg'><figcaption>{text}</figcaption></figure>")
    figures.append("<a href=/busy>1</a>")
    pages["/"] = ("text/html; charset=utf-8", f"<html><body>{''.join(figures)}</body></html>".encode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = pages.get(self.path, ("", b""))
            self.send_response(200 if body else 429 if self.path == "/busy" else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _run(head: Head, name: str, folder: Path, *words: str, wanted: set[str]) -> tuple[Job, str, set[str]]:
    """Run a command of ours as a job; the job, its log, and the metrics that were seen meanwhile and after.

    Ray reports metrics later than they are counted: those that are wanted are waited for.
    """
    env = {"WENLAN_LOG": "json", "PYTHONPATH": str(ROOT)}
    command = shlex.join([sys.executable, "-m", *words, "--json"])
    head.jobs.attach_or_submit(name, f"cd {folder} && {command}", {"env_vars": env})
    seen: set[str] = set()
    until = time.monotonic() + 200
    while not (job := head.jobs.status(name)).ended and time.monotonic() < until:
        seen |= head.metrics() if wanted - seen else set()  # a look costs the cluster more than a build
        time.sleep(1)
    until = time.monotonic() + 60
    while wanted - seen and time.monotonic() < until:
        seen |= head.metrics()
        time.sleep(0.3)
    return job, head.jobs.logs(name), seen


@pytest.fixture(scope="module")
def small(
    ray_head: Head, site: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[Job, str, set[str]]]:
    """A folder with a published build, and what `_run` says of it."""
    folder = tmp_path_factory.mktemp("small")
    wanted = {observe.exported(name) for name in observe.METRICS}
    wanted |= {name for name in asked_metrics() if "_train_" not in name}
    return folder, _built(ray_head, folder, site, "published", 1, wanted)


def _built(
    head: Head, folder: Path, site: str, name: str, min_samples: int, wanted: set[str]
) -> tuple[Job, str, set[str]]:
    """Build the site's dataset as a job; what `_run` says of it."""
    text = SPEC.format(url=site, host=site.removeprefix("http://"), min_samples=min_samples)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return _run(
        head, name, folder, "pipeline", "build", f"{name}.yaml", "--out", name, "--store", "store", wanted=wanted
    )


def asked_metrics() -> set[str]:
    """Names of the metrics that the dashboard draws and the alerts watch, as they come from Ray."""
    text = "".join((ROOT / "dags" / "deploy" / name).read_text("utf-8") for name in ("grafana.json", "alerts.yaml"))
    return set(re.findall(r"\bray_\w+", text)) - {"ray_cluster", "ray_node_type"}


@pytest.mark.drill(80)
@pytest.mark.timeout(600)
def test_a_build_as_a_ray_job_is_logged_counted_and_costed(small: tuple[Path, tuple[Job, str, set[str]]]) -> None:
    """The command of the runbook, on a cluster that has a token; then what Prometheus sees, by METRICS' own names."""
    folder, (job, logs, seen) = small
    assert job.state == "SUCCEEDED", logs
    told = last_object(logs)
    assert told is not None
    assert (told["published"], told["release"]) == (True, 1)
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith('{"time"')]
    done = [line for line in lines if line["message"] == "pass done"]
    assert [(line["stage"], line["build_id"]) for line in done][-1] == ("report", told["build_id"])
    known = json.loads((folder / "published" / "build.json").read_text(encoding="utf-8"))
    assert known["stages"]["extract"]["cost"]["bytes"] > 0
    assert known["cost"]["seconds"] > 0
    assert {observe.exported(name) for name in observe.METRICS} <= seen
    assert {name for name in asked_metrics() if "_train_" not in name} <= seen


@pytest.mark.drill(20)
def test_gates_and_releases_are_counted_though_their_process_ends_at_once(
    ray_head: Head, site: str, small: tuple[Path, tuple[Job, str, set[str]]]
) -> None:
    told = last_object(small[1][1])
    assert told is not None
    refused, why, _ = _built(ray_head, small[0], site, "refused", 1000, set())
    assert (refused.state, refused.exit_code) == ("FAILED", 1), why
    assert "gate min_samples: " in why_it_failed(refused, why)
    text = ""

    def reported() -> bool:
        """Both fates of the gate, each of its own process."""
        nonlocal text
        text = ray_head.exposition()
        gate = r'^ray_wenlan_gates_total\{{.*fate="{}",gate="min_samples".*\}} 1\.0$'
        return all(re.search(gate.format(fate), text, re.MULTILINE) for fate in ("failed", "held"))

    wait_until(reported, "the gates")
    releases = re.findall(r"^ray_wenlan_releases_total\{(.*)\} (.*)$", text, re.MULTILINE)
    assert [value for _, value in releases] == ["1.0"]
    assert f'build="{told["build_id"]}",dataset="small"' in releases[0][0]
    answers = re.findall(
        r'^ray_wenlan_requests_total\{.*fate="kept",host="127\.0\.0\.1:\d+".*\} (.*)$', text, re.MULTILINE
    )
    assert sum(map(float, answers)) >= PICTURES


@pytest.mark.drill(40)
def test_a_training_on_ray_exports_what_the_dashboard_draws(
    ray_head: Head, small: tuple[Path, tuple[Job, str, set[str]]]
) -> None:
    settings = ("run.epochs=20", "run.log_every=1", "run.eval_every=0")
    words = ["training", "fit", "--recipe", "tiny", "--data", "published/shards/manifest.json", "--out", "runs/one"]
    words += ["--workers", "1", *(word for setting in settings for word in ("--set", setting))]
    no_peak = {"ray_wenlan_train_mfu"}  # of a CPU; test_trackers.py sees it where there is one
    wanted = {f"ray_{name}" for name in ray_job.METRICS} | {name for name in asked_metrics() if "_train_" in name}
    job, logs, seen = _run(ray_head, "fit", small[0], *words, wanted=wanted - no_peak)
    assert job.state == "SUCCEEDED", logs
    assert wanted - no_peak <= seen
