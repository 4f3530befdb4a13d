"""Takedowns and publishing from the studio, each as the command that the page shows before it runs.

A command runs as a process of its own, as if it were typed, one at a time. It goes on if the studio ends: both commands
finish after a kill when they are run again. A takedown runs only with the confirmation that its own dry run gave out:
one use, for exactly that command, for CONFIRM_S seconds. A build that cannot be read stops no takedown in the others.

Limits: no shell is involved, so nothing that a page or a person wrote is a command; the line that is shown is quoted
for a POSIX shell.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_specs.build import SpecError
from data_specs.command.printable import printable_line
from data_specs.errors import WenlanError
from data_specs.shard import KEY_LENGTH
from pipeline.report import page
from pipeline.store import approval
from pipeline.store.build import Build
from pipeline.studio.images import Row

CONFIRM_S = 900.0
"""Seconds for which a dry run may be confirmed."""

MOST_FLAGGED = 200
LINES = 400
"""Lines of a command's output that are kept."""

Values = dict[str, Any]
What = Literal["picture", "page", "domain"]


@dataclass
class Job:
    """A command that runs or has run. code: its exit code, None while it runs. answer: what --json printed."""

    number: int
    line: str
    words: tuple[str, ...]
    kind: str
    confirmation: str = ""
    code: int | None = None
    answer: Values = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def value(self) -> Values:
        """Returns JSON values; `confirmation`, of a dry run that found something to do, is the key to run it."""
        return {
            "number": self.number, "line": self.line, "kind": self.kind, "code": self.code, "lines": self.lines[-60:],
            "answer": self.answer, "confirmation": self.confirmation,
            "seconds": round(time.monotonic() - self.began, 1),
        }  # fmt: skip


class Busy(Exception):
    """Another command is running."""


class Jobs:
    """Runs commands, one at a time. done: called after each that changed something."""

    def __init__(self, done: Any = None) -> None:
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._done = done
        self._confirmable: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._running: Job | None = None

    def get(self, number: int) -> Job | None:
        return self._jobs.get(number)

    @property
    def running(self) -> Job | None:
        return self._running

    def start(self, kind: str, words: Sequence[str], dry: bool = False) -> Job:
        """Run `wenlan-data WORDS`, with --dry-run where `dry`. Raises Busy while another one runs."""
        with self._lock:
            if self._running is not None:
                raise Busy(f"another command is running: {self._running.line}")
            job = Job(next(self._numbers), command_line(words), tuple(words), kind)
            self._jobs[job.number] = self._running = job
            while len(self._jobs) > 50:
                del self._jobs[min(self._jobs)]
        threading.Thread(target=self._run, args=(job, dry), name="studio-job", daemon=True).start()
        return job

    def take_confirmed(self, confirmation: str) -> tuple[str, ...]:
        """The command of a dry run; its confirmation is used up. Raises SpecError for an unknown or old one."""
        with self._lock:
            until, words = self._confirmable.pop(confirmation, (0.0, ()))
        if time.monotonic() > until:
            raise SpecError(["this confirmation is used, expired or unknown: run the dry run again"])
        return words

    def _run(self, job: Job, dry: bool) -> None:
        code = 1
        try:
            code = self._execute(job, dry)
            if not dry and self._done is not None:
                self._done()
        except WenlanError as e:  # its changes cannot be opened yet: the next request reopens them
            job.lines.append(printable_line(str(e)))
        finally:  # whatever happened, another command may run
            with self._lock:
                self._running = None
                job.code = code

    def _execute(self, job: Job, dry: bool) -> int:
        """Run a command to its end; returns its exit code."""
        more = ["--dry-run"] if dry else []
        words = [sys.executable, "-m", "pipeline", *job.words, *more, "--json"]
        try:
            with subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                stdin=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                assert process.stderr is not None
                told = threading.Thread(target=self._follow, args=(process.stderr, job), daemon=True)
                told.start()
                out = process.stdout.read()
                code = process.wait()
                told.join(30)  # what it has said, unless a process that it left behind holds its stderr
        except OSError as e:
            job.lines.append(printable_line(f"cannot be started ({e.strerror})"))
            out, code = "", 1
        last = out.splitlines()[-1] if out.strip() else ""
        job.answer = _parse_line(last)
        if dry and job.answer.get("matched"):  # whatever else could not be looked at, which its lines name
            job.confirmation = secrets.token_urlsafe(24)
            with self._lock:
                self._confirmable = {k: v for k, v in self._confirmable.items() if v[0] > time.monotonic()}
                self._confirmable[job.confirmation] = (time.monotonic() + CONFIRM_S, job.words)
        return code

    @staticmethod
    def _follow(stream: Any, job: Job) -> None:
        for line in stream:
            job.lines.append(printable_line(line.rstrip("\n"))[:2_000])
            del job.lines[:-LINES]


def _parse_line(line: str) -> Values:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def command_line(words: Sequence[str]) -> str:
    return shlex.join(["wenlan-data", *words])


def takedown(
    store: str, builds: Sequence[Build], rows: Sequence[Row], what: What, exact: bool, index: str = ""
) -> list[str]:
    """The words of `wenlan-data forget` for flagged rows.

    index: the folder of a search index, from which they go too. what: the pictures themselves (with copies that look
    the same, unless `exact`), their pages, or their whole domains.
    Raises SpecError if there is nothing to name, too much, or no one STORE.
    """
    if not store:
        raise SpecError(["these builds do not share one STORE: open one of them and flag there"])
    if not 0 < len(rows) <= MOST_FLAGGED:
        raise SpecError([f"flag 1 to {MOST_FLAGGED} candidates at a time"])
    named: dict[tuple[str, str], None] = {}
    for row in rows:
        if what == "picture" and row["subject"] == "candidate":
            named[("--item", row["id"][:KEY_LENGTH])] = None
        elif what == "domain":
            found = re.match(r"https?://(?:[^/@]*@)?([^/:?#]+)", row["page_url"] or row["url"])
            if found is None:
                raise SpecError([f"{row['id'][:KEY_LENGTH]} is not from the web: take down the picture instead"])
            named[("--domain", found[1])] = None
        else:
            if not row["page_url"]:
                raise SpecError([f"{row['id'][:KEY_LENGTH]} is not on a page: take down the picture instead"])
            named[("--url", row["page_url"])] = None
    words = ["forget", "--store", store, *dict.fromkeys(build.out for build in builds)]
    words += ["--index", index] if index else []
    words += [f"{option}={value}" for option, value in named]  # one word: a value can be no option
    return [*words, "--exact"] if exact and what == "picture" else words


def record_verdict(build: Build, verdict: str, name: str, because: str) -> Values:
    """Note who approves or refuses a build, in build.json, and let its report say so. Raises SpecError, StoreError."""
    word = approval.say(build, verdict, name, because)
    page.update_state(build)
    return {"verdict": word.verdict, "name": word.name, "because": word.because, "at": word.at}
