"""What the drills of `make drills` share: a web site that can go away, builds as processes, and the row of the table.

A drill disturbs a build or a training of a small dataset, sees that the disturbance hit, and says what came of it. Each
is a function of a `Scene`, which yields a `Row` for everything it did. The undisturbed build was made before, once for
all drills (`Scene.undisturbed`): pictures and pages have the port of the site in their addresses, so all drills serve
it on the same one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.store.dataset import Dataset
from tests.benchmarks import weekly
from tests.benchmarks.harness import ROOT, Figure
from tests.benchmarks.services import DrillFailed

SNAPSHOT, NEXT_SNAPSHOT = "2026-01-05", "2026-01-12"

SPEC = """
name: drill
contact: mailto:drill@example.org
sources:
  - {{kind: site, name: site, source_kind: news, start: ["http://127.0.0.1:{port}/"]}}
egress: {{allow: ["127.0.0.1:{port}"], delay_s: 0, timeout_s: 5}}
fetch: {{images_per_partition: 8, threads: 2, max_wait_s: 0}}
filters:
  - {{name: text_length, min_chars: 4}}
  - {{name: han_share}}
  - {{name: image_sides, min_side: 64}}
  - {{name: image_nsfw}}
regions: {{detectors: [{{name: grid, n: 2}}]}}
shards: {{samples_per_shard: 12, dev_share: 0.2, val_share: 0.25}}
"""
"""A spec in which every stage has something to do: a filter of pixels for `screen`."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `done`: what was done and seen to be done; `verify` and `same`: "" where not asked."""

    stage: str
    done: str
    outcome: str
    verify: str = ""
    same: str = ""
    held: bool = True
    seconds: float = 0.0


class Source:
    """The web site of the drills: 40 pages of two pictures, on a given port. `asked`: the paths of its requests.

    delay_s: before each answer. fault(path): the status to answer with in place of the page, 0 for none.
    """

    def __init__(self, port: int, pages: int = 40) -> None:
        self.port, self.site, self.asked = port, weekly.Site(pages), list[str]()
        self.delay_s = 0.0
        self.fault: Callable[[str], int] = lambda path: 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Source:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def pages_asked(self) -> int:
        return sum(path.endswith(".html") for path in self.asked)

    def pictures_asked(self) -> int:
        return sum(path.endswith(".jpg") for path in self.asked)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed breaks its pipe."""


def _handler(source: Source) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            source.asked.append(self.path)
            time.sleep(source.delay_s)
            kind, body = source.site.body(self.path)
            self.send_response(source.fault(self.path) or (200 if body else 404))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stderr: str
    answer: Mapping[str, Any]

    @property
    def lines(self) -> list[str]:
        """What it said of its failure."""
        return [line for line in self.stderr.splitlines() if line.startswith("wenlan-data: ")]

    @property
    def one_line(self) -> str:
        """The one line of its failure, "" where it said more than one, or a traceback beside it."""
        return self.lines[0] if len(self.lines) == 1 and "Traceback" not in self.stderr else ""

    def tail(self) -> str:
        """The last lines of what it said."""
        return " | ".join(self.stderr.splitlines()[-3:])


class Build:
    """`wenlan-data build` as a process. `more`: further words of the command; `name`: of its folder and STORE."""

    def __init__(
        self,
        scene: Scene,
        name: str,
        *more: str,
        place: str = "",
        environment: Mapping[str, str] | None = None,
        snapshot: str = SNAPSHOT,
        store: str = "",
    ) -> None:
        place = place or str(scene.folder)
        self.out, self.store = f"{place}/{name}", store or f"{place}/{name}-store"
        words = ["build", str(scene.spec()), "--out", self.out, "--store", self.store, "--snapshot", snapshot]
        self._command = [sys.executable, "-m", "pipeline", *words, "--json", *more]
        self._environment, self._log = environment_of(environment), scene.folder / f"{name}.log"
        self.scene = scene
        self.start()

    def start(self) -> None:
        """Start the command, again if it has ended."""
        with self._log.open("wb") as log, self._log.with_suffix(".out").open("wb") as out:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=out, stderr=log, start_new_session=True
            )

    def ended(self, seconds: float = 240) -> Ended:
        """Wait for its end. Raises DrillFailed with what it said last where that does not come."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise DrillFailed(f"the build did not end within {seconds:.0f} s: {self.tail()}") from None
        return Ended(code, self.said(), _answer(self._log.with_suffix(".out").read_text(encoding="utf-8")))

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The last lines of what it has said so far, and where all of it is."""
        return " | ".join([str(self._log), *self.said().splitlines()[-3:]])

    def kill(self) -> None:
        """`kill -9` of the driver alone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def committed(self, folder: str) -> int:
        """Partitions that are committed in a stage's folder."""
        return len(list(Path(self.out).glob(f"{folder}/_records/*/*.json")))

    def running(self) -> str:
        """The stage that build.json says is running."""
        with contextlib.suppress(OSError, ValueError):
            said = json.loads((Path(self.out) / "build.json").read_text(encoding="utf-8"))
            return str((said.get("running") or {}).get("name", "")).partition(".")[0]
        return ""

    def judged(self, environment: Mapping[str, str] | None = None) -> dict[str, str]:
        """`verify` and `same` of a Row: of the finished build, against the undisturbed one."""
        verified = command("verify", self.out, environment=environment)
        tars = tars_of(self.out, environment)
        expected = self.scene.undisturbed()
        same = f"{len(tars)} tars: sha256 equal" if tars == expected else f"DIFFERS: {_difference(tars, expected)}"
        return {"verify": "clean" if verified.code == 0 else f"exit {verified.code}: {verified.tail()}", "same": same}

    def row(self, stage: str, done: str, outcome: str, ended: Ended, **more: Any) -> Row:
        """The row of a build that ended well in the end; holds if it is verified and the same."""
        if ended.code:
            return Row(stage, done, f"exit {ended.code}: {ended.tail()}", held=False)
        judged = self.judged(**more)
        return Row(stage, done, outcome, **judged, held=judged["verify"] == "clean" and "equal" in judged["same"])


@dataclass
class Scene:
    """Where one drill runs. `reference`: what an undisturbed run left; `port`: of the site; `quick`: the short form.

    kills: of each target on Ray Train. figures: what a drill measured beside its rows.
    """

    folder: Path
    reference: Path
    port: int
    quick: bool
    kills: int = 1
    figures: dict[str, Figure] = field(default_factory=dict)
    _expected: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def spec(self) -> Path:
        path = self.folder / "drill.yaml"
        path.write_text(SPEC.format(port=self.port), encoding="utf-8")
        return path

    def source(self) -> Source:
        return Source(self.port)

    def undisturbed(self) -> dict[str, str]:
        """sha256 by name of the shards of the undisturbed build."""
        if not self._expected:
            self._expected = dict(json.loads((self.reference / "tars.json").read_text(encoding="utf-8")))
        return self._expected


def environment_of(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of ours: of this checkout, on loopback, of no cluster but the one it is told of."""
    own = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS" and not k.lower().endswith("_proxy")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
    return own | dict(more or {})


def command(*words: str, environment: Mapping[str, str] | None = None, seconds: float = 240) -> Ended:
    """A command of wenlan-data to its end."""
    argv = [sys.executable, "-m", "pipeline", *words, "--json"]
    done = subprocess.run(
        argv, cwd=ROOT, env=environment_of(environment), capture_output=True, text=True, timeout=seconds, check=False
    )
    return Ended(done.returncode, done.stderr, _answer(done.stdout))


def _answer(stdout: str) -> dict[str, Any]:
    """The object that a command printed last; empty where it has printed none, or Ray something else."""
    with contextlib.suppress(ValueError, IndexError):
        return dict(json.loads(stdout.splitlines()[-1]))
    return {}


@contextlib.contextmanager
def _entered(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tars_of(place: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of the tars of a build's dataset by name, on a disk or behind a URL."""
    with _entered(environment or {}):
        return {shard.tar.path: shard.tar.sha256 for shard in Dataset.open(place).manifest.shards}


def _difference(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    return f"{len(mine)} tars, not {len(theirs)}; {', '.join(names[:4])}"


def wait_for(what: str, seconds: float, condition: Callable[[], Any], build: Build | None = None) -> Any:
    """The first true answer, asked for every few milliseconds. Raises DrillFailed, also where the build has ended."""
    until = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        if build is not None and build.process.poll() is not None:
            raise DrillFailed(f"did not hit: the build ended before {what}: {build.tail()}")
        if time.monotonic() > until:
            raise DrillFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.002)


PATH_AND_ADVICE = re.compile(r"wenlan-data: (\S+): .*run the same command again")
"""A line that names what it is about, and says what to do."""
