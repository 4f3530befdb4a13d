"""The guide of dags/README.md for one machine, run as it is written: Airflow's part, with a fake cluster beside it.

The other parts are tested where they belong: demo and build by tests/pipeline, jobs on a real Ray head by
test_ray_jobs.py. All of it together, with kills, is `make drill`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.processes import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".venv-dags").exists(), reason="no Airflow here: run `make dags-venv` first"),
]


def blocks() -> list[str]:
    """The commands of the guide: one text per terminal."""
    text = (ROOT / "dags" / "README.md").read_text(encoding="utf-8")
    [guide] = re.findall(r"^## On this machine.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"(?:^    .*\n)+", guide, re.MULTILINE)
    assert len(found) == 4, "sites, Ray, Airflow, unpause"
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def end(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to all that the shell started: after Ctrl-C, Airflow takes a quarter of a minute to end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)  # so that nothing is started meanwhile
        for pid in [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == process.pid:
                    os.kill(pid, signal.SIGKILL)
    process.wait(240)


class Airflow:
    """Airflow as the guide starts it, in a folder with the repository's DAGs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.log = folder, environment, folder / "standalone.log"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        path = self.folder / "demo" / "airflow" / "airflow.db"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
                return database.execute(query).fetchall()
        except sqlite3.OperationalError:  # not there yet
            return []

    def until(self, what: str, query: str, wanted: list[tuple[Any, ...]], seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (found := self.rows(query)) != wanted:
            assert time.monotonic() < ends, f"{what}: {found}\n{self.log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.5)


@pytest.fixture
def airflow(tmp_path: Path, fake: Any) -> Iterator[Airflow]:
    for name in ("dags", ".venv-dags"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "WENLAN", "RAY_", "PYTHON"))}
    api, scheduler, triggerer = map(str, free_ports(3))
    environment |= {"HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": fake.url, "RAY_AUTH_MODE": "disabled"}
    environment |= {"AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__PORT": api, "AIRFLOW__API__WORKERS": "1"}
    environment |= {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{api}/execution/"}
    environment |= {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": scheduler}
    environment |= {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": triggerer}
    running = Airflow(tmp_path, environment)
    commands = blocks()[2].replace("WENLAN_POLL_S=5", "WENLAN_POLL_S=1")
    assert "WENLAN_POLL_S=1" in commands
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-ec", commands], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield running
    finally:
        end(process)


@pytest.mark.drill(90)
@pytest.mark.timeout(600)
def test_airflow_runs_as_the_guide_says_and_polls_a_second_apart_lose_no_retry(airflow: Airflow, fake: Any) -> None:
    """Rescheduled, the sensor loses one: the scheduler takes the end of a poll for a failure of the next."""
    fake.outcome, fake.lasts_s = fake.good_day, 12.0
    airflow.until("DAGs", "select dag_id from dag where dag_id = 'dataset_build'", [("dataset_build",)], 180)
    done = subprocess.run(
        ["bash", "-ec", blocks()[3]], cwd=airflow.folder, env=airflow.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^dataset_build +\| True", done.stdout, re.MULTILINE), "as the guide says"
    ended = "select state from dag_run where state in ('success', 'failed')"
    airflow.until("the run of the last interval", ended, [("success",)], 300)
    tries = dict(airflow.rows("select task_id, try_number from task_instance where task_id like '%.wait'"))
    assert tries == {"build.wait": 1, "publish.wait": 1}
    assert airflow.rows("select extra from log where event = 'state mismatch'") == []
    assert airflow.rows("select count(*) from asset_event") == [(1,)]
    text = airflow.log.read_text(errors="replace")
    assert "Airflow is ready" in text
    assert "Password for user 'admin':" in text
    assert (airflow.folder / "demo/airflow/simple_auth_manager_passwords.json.generated").exists()
