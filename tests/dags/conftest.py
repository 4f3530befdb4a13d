"""A loopback server that speaks Ray's Jobs API, with faults and outcomes on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class FakeRay(ThreadingHTTPServer):
    """Jobs in a dict. `faults` are answers to give first: (status, body, headers); `lose_answers` drops a POST's.

    A job runs until it is stopped, and then for `stops_in` more answers; `outcome`, if set, ends each after `lasts_s`
    seconds: it gives state and log of an entrypoint.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[tuple[int, bytes, dict[str, str]]] = []
        self.seen: list[tuple[str, str, str]] = []
        self.lose_answers = False
        self.stops_in = 1
        self.lasts_s = 0.0
        self.outcome: Callable[[str], tuple[str, str]] = lambda entrypoint: ("RUNNING", "line 1\n")
        self.submissions = 0
        self.lock = threading.Lock()

    @staticmethod
    def good_day(entrypoint: str) -> tuple[str, str]:
        """What the commands of a good day print."""
        words = entrypoint.split()
        published = {"manifest": "/b/n/shards/manifest.json", "build_id": "n", "revision": 0, "content_digest": "d"}
        published |= {"dataset": "news", "release": 2, "release_manifest": "/s/datasets/news/000002.json"}
        published |= {"samples": {"train": 3}, "dataset_samples": {"train": 30}}
        told: dict[str, Any] = {
            "build": {"published": False} if "--until" in words else {"published": True, **published},
            "fit": {"checkpoint": "/runs/c"},
            "eval": {"mean_recall": 0.25, "headline": "all"},
        }.get(words[1], {})
        return "SUCCEEDED", f"working\n{json.dumps(told)}\n"

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
            job = self.server.jobs[name]
            if job["status"] == "RUNNING" and time.monotonic() >= job["ends"]:
                job["status"] = job["outcome"]
            if verb == "stop":
                found: dict[str, Any] = {"stopped": job["status"] == "RUNNING"}
                job["stopping"] = self.server.stops_in
            elif verb == "logs":
                found = {"logs": job["logs"]}
            else:
                found = job
                if "stopping" in job and job["status"] == "RUNNING":
                    job["stopping"] -= 1
                    job["status"] = "STOPPED" if job["stopping"] <= 0 else "RUNNING"
        return self._answer(200, json.dumps(found).encode(), {})

    def _submit(self, request: dict[str, Any]) -> None:
        name = request["submission_id"]
        if name in self.server.jobs:
            text = f"Traceback\nRuntimeError: Job with submission_id {name} already exists."
            return self._answer(500, text.encode(), {})
        self.server.submissions += 1
        status, logs = self.server.outcome(request["entrypoint"])
        job = {"status": "RUNNING", "entrypoint": request["entrypoint"], "message": None, "logs": logs}
        self.server.jobs[name] = job | {"outcome": status, "ends": time.monotonic() + self.server.lasts_s}
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


@contextmanager
def faking() -> Iterator[FakeRay]:
    """The server, on a thread."""
    with FakeRay() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fake() -> Iterator[FakeRay]:
    with faking() as server:
        yield server
