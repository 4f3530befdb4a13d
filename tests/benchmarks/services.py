"""Real services for `drill_schedule.py`, all on loopback and below one folder: Ray nodes, Airflow.

Every process is started in a session of its own and ended with it; `Services` is a context manager that leaves none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT
from tests.processes import descendants, free_ports

PATIENCE = float(os.environ.get("DRILL_PATIENCE", "1"))
"""Factor on all waiting, for a machine that others keep busy."""
TOKEN = "a-token-of-this-drill-alone-0123456789"


class DrillFailed(Exception):
    """Something did not come about in time."""


def until(what: str, seconds: float, ask: Callable[[], Any]) -> Any:
    """The first true answer. Raises DrillFailed, naming what was waited for."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.5)
    raise DrillFailed(f"{what}: not within {seconds:.0f} s")


def call(url: str, body: Any = None, method: str = "", token: str = "") -> Any:
    """A JSON API's answer. Raises DrillFailed with what it says where it refuses, OSError where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method or ("GET" if body is None else "POST"))
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30 * PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        raise DrillFailed(f"{url}: HTTP {e.code}: {e.read(1000).decode(errors='replace')}") from None


class Services:
    """What the drill starts, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            self.kill(name)
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self._starts[name] = command, environment
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def start_again(self, name: str) -> None:
        self.start(name, *self._starts[name])

    def kill(self, name: str) -> None:
        """kill -9 a service and everything that it started, also what has a session of its own (Airflow's servers)."""
        process = self._processes.pop(name)
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10 * PATIENCE)
        for pid in [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == process.pid:
                    os.kill(pid, signal.SIGKILL)

    def serve(self, handler: Any) -> int:
        """Answer on a free port; gives the port."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    def folder_of_reports(self, folder: Path) -> int:
        class Reports(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *_: object) -> None:
                pass

        return self.serve(Reports)

    def ray(self, nodes: int) -> str:
        """A Ray cluster with token authentication; the URL of its dashboard."""
        port, dashboard, *more = free_ports(2 + 3 * nodes)
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}
        ray, url = str(Path(sys.executable).with_name("ray")), f"http://127.0.0.1:{dashboard}"
        for node in range(nodes):
            agent, client, metrics = more[3 * node : 3 * node + 3]
            head = ["--head", "--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
            head += ["--ray-client-server-port", str(client), "--temp-dir", str(self.folder / "ray")]
            joins = ["--address", f"127.0.0.1:{port}"]
            common = ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(agent), "--num-cpus", "2"]
            common += ["--metrics-export-port", str(metrics), "--object-store-memory", "100000000", "--num-gpus", "0"]
            command = [ray, "start", *(joins if node else head), *common, "--block", "--disable-usage-stats"]
            self.start(f"ray{node}", command, environment)
            until(f"Ray node {node}", 90, lambda wanted=node + 1: len(alive_nodes(url)) == wanted)
        return url

    def airflow(self, environment: dict[str, str]) -> str:
        """Scheduler, DAG processor, triggerer and API server on SQLite; the URL of the last."""
        [port] = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        own = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "WENLAN", "RAY_", "PYTHON"))}
        own |= environment | {
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__API_AUTH__JWT_SECRET": "of-this-drill-alone-0123456789abcdef",
            "AIRFLOW__CORE__PARALLELISM": "4",
            # several processes write; on a busy machine a write may take longer than SQLite's five seconds
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.folder / 'airflow/airflow.db'}?timeout=300",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(round(15 * PATIENCE)),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(round(30 * PATIENCE)),
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": str(round(30 * PATIENCE)),
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": str(round(50 * PATIENCE)),
        }
        airflow = str(ROOT / ".venv-dags" / "bin" / "airflow")
        own["PATH"] = f"{Path(airflow).parent}:{own['PATH']}"
        subprocess.run([airflow, "db", "migrate"], env=own, cwd=self.folder, check=True, capture_output=True)
        api = ["api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        for words in (api, ["dag-processor"], ["scheduler"], ["triggerer"]):
            self.start(words[0], [airflow, *words], own)
        until("Airflow's API", 120, lambda: _answers(f"{url}/api/v2/version"))
        return url


def alive_nodes(dashboard: str) -> list[Any]:
    try:
        found = call(f"{dashboard}/api/v0/nodes", token=TOKEN)
    except (OSError, DrillFailed):
        return []
    return [node for node in found["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError, DrillFailed):
        return bool(call(url))
    return False
