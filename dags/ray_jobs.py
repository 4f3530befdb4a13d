"""A client of the Ray Jobs REST API, for machines that have neither Ray nor wenlan. Standard library only.

Why not Ray's own client: Airflow's environment would need exactly the Ray version of the cluster, and Airflow's
provider packages for Ray are discontinued. The API consists of five plain HTTP calls.

Submitting is idempotent. The caller derives a job's submission id from the purpose of the job (`submission_id`), and
the cluster refuses an id that exists, so two concurrent callers start one job.

Limits: every call returns the whole log of a job (the API lacks ranges; following it needs a web socket). A cluster
whose head was restarted without a persistent store has lost its jobs: `status` then raises JobUnknown.

Source: ray/dashboard/modules/job (JobSubmitRequest, JobDetails), and Ray's "Token authentication" page.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


class RayJobsError(Exception):
    """The cluster cannot be reached, or has a fault of its own: a retry may succeed. The message names the address."""


class RayJobsRefused(RayJobsError):
    """The cluster refused the request (no token, a bad request): the same call will fail again."""


class JobUnknown(RayJobsError):
    """Raised for a job id that is unknown to the cluster."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster reports it. `state` is PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""

    submission_id: str
    state: str
    entrypoint: str
    message: str
    exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.state in {"STOPPED", "SUCCEEDED", "FAILED"}


class RayJobs:
    """The jobs of one cluster. address: URL of its dashboard. token: what `ray get-auth-token` prints there."""

    def __init__(self, address: str = DEFAULT_ADDRESS, token: str = "", timeout_s: float = 30.0) -> None:
        if urllib.parse.urlsplit(address).scheme not in {"http", "https"}:
            raise RayJobsRefused(f"{address}: not the http(s) URL of a Ray dashboard, such as {DEFAULT_ADDRESS}")
        self.address = address.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RayJobs:
        """The cluster at RAY_API_SERVER_ADDRESS, with the token that Ray's own variables name.

        Raises RayJobsRefused if the address is not a URL, or if a token is required and cannot be read.
        """
        environment = os.environ if environment is None else environment
        return cls(environment.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS, find_token(environment))

    def submit(
        self,
        entrypoint: str,
        submission_id: str,
        runtime_env: Mapping[str, Any] | None = None,
        num_gpus: float = 0,
    ) -> None:
        """Start a job. num_gpus: GPUs of the command itself; tasks that it starts on the cluster request their own.

        Without GPUs the command runs on the head node. Raises RayJobsError, also if the id exists: `status` returns the
        job that has it.
        """
        request: dict[str, Any] = {"entrypoint": entrypoint, "submission_id": submission_id}
        request["runtime_env"] = dict(runtime_env or {})
        if num_gpus:
            request["entrypoint_num_gpus"] = num_gpus
        self._call("POST", "", request)

    def status(self, submission_id: str) -> Job:
        """The state of a job. Raises JobUnknown and RayJobsError."""
        details = self._call("GET", submission_id)
        try:
            code = details.get("driver_exit_code")
            return Job(submission_id, details["status"], details["entrypoint"], details.get("message") or "", code)
        except KeyError as e:
            raise RayJobsError(f"{self.address}: its answer on job {submission_id} lacks {e}") from None

    def logs(self, submission_id: str) -> str:
        """The output of a job so far, stdout and stderr in order of arrival. Raises JobUnknown and RayJobsError."""
        return str(self._call("GET", f"{submission_id}/logs").get("logs") or "")

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end: SIGTERM, and SIGKILL after Ray's grace period. False if it was not running.

        Raises JobUnknown and RayJobsError.
        """
        return bool(self._call("POST", f"{submission_id}/stop").get("stopped"))

    def end(self, submission_id: str, patience_s: float = 120.0) -> bool:
        """Stop a job and wait until it has ended. False if it was not running, or does not exist.

        Raises RayJobsError, also if it still runs after `patience_s` seconds.
        """
        try:
            stopped = not self.status(submission_id).ended and self.stop(submission_id)
            until = time.monotonic() + patience_s
            while not self.status(submission_id).ended:
                if time.monotonic() > until:
                    raise RayJobsError(
                        f"{self.address}: job {submission_id} still runs {patience_s:.0f} s after its stop"
                    )
                time.sleep(0.5)
        except JobUnknown:
            return False
        return stopped

    def attach_or_submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any] | None = None,
        num_gpus: float = 0,
    ) -> tuple[Job, bool]:
        """The job with that id, in any state, and whether this call started it. Raises RayJobsError.

        If submitting fails but the job exists (the answer was lost, or another caller was faster), it is that job.
        """
        try:
            return self.status(submission_id), False
        except JobUnknown:
            pass
        try:
            self.submit(entrypoint, submission_id, runtime_env, num_gpus)
        except RayJobsError as fault:
            try:
                return self.status(submission_id), False
            except JobUnknown:
                raise fault from None
        return self.status(submission_id), True

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self.address}/api/jobs/{urllib.parse.quote(path)}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                raise self._fault(e.code, e.read(100_000).decode("utf-8", "replace"), path) from None
        except urllib.error.URLError as e:
            raise RayJobsError(f"{self.address}: no answer: {e.reason}") from None
        except (OSError, HTTPException) as e:
            raise RayJobsError(f"{self.address}: the connection broke: {e or type(e).__name__}") from None
        except ValueError:
            raise RayJobsError(f"{self.address}: the answer to {method} {url} is not JSON; is this Ray?") from None
        if not isinstance(answer, dict):
            raise RayJobsError(f"{self.address}: the answer to {method} {url} is not an object; is this Ray?")
        return answer

    def _fault(self, code: int, text: str, path: str) -> RayJobsError:
        """The exception for an HTTP error. Ray answers with nested tracebacks; the last error in them is the reason."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)] or lines
        reason = (lines[-1] if lines else "no reason given")[:500]
        if code in (401, 403):
            return RayJobsRefused(f"{self.address}: HTTP {code}: {reason}; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
        if code == 404 and "does not exist" in text:
            return JobUnknown(f"{self.address}: {reason}")
        kind = RayJobsRefused if 300 <= code < 500 and code not in (408, 425, 429) else RayJobsError
        return kind(f"{self.address}: HTTP {code} on /api/jobs/{path}: {reason}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error, because it would carry the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def find_token(environment: Mapping[str, str]) -> str:
    """The cluster's token by Ray's own rules: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Empty if RAY_AUTH_MODE is `disabled`, or if neither a token nor a mode is set. Raises RayJobsRefused if the named
    file cannot be read, or if RAY_AUTH_MODE is `token` without a token.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return ""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path(environment.get("HOME") or "~").expanduser() / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        if named:
            raise RayJobsRefused(f"RAY_AUTH_TOKEN_PATH={named}: {e.strerror}") from None
        token = ""
    if not token and (named or mode == "token"):
        raise RayJobsRefused(f"{path}: the Ray token is missing; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    return token


def submission_id(*parts: str) -> str:
    """An id for `attach_or_submit`: readable, valid in file names and URLs, and equal only for equal parts."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts))[:80].strip("-")
    return f"{readable}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"


def last_object(logs: str) -> dict[str, Any] | None:
    """The last line of a log that is a JSON object, as commands print it with --json, or None."""
    for line in reversed(logs.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
    return None


def why_it_failed(job: Job, logs: str) -> str:
    """A short text about a job that failed: the errors that our commands printed, or else the last line of the log."""
    faults = [line for line in logs.splitlines() if re.match(r"wenlan-(data|train): ", line)]
    lines = faults[:12] or [line for line in logs.splitlines() if line.strip()][-1:] or job.message.splitlines()[:1]
    code = "" if job.exit_code is None else f" (exit {job.exit_code})"
    return "\n".join([f"Ray job {job.submission_id} {job.state}{code}", *lines])
