"""The whole road on a schedule, with kills: `make drill`. Needs `make dags-venv`; takes twenty minutes on two cores.

A real Airflow (scheduler, DAG processor, triggerer, API server) against a real Ray cluster of two nodes with token
authentication, all on loopback. What is shown, as figures with bars:

- `dataset_build` runs on its schedule; scheduler and triggerer are killed in mid-build and started again: one Ray job;
- its asset event starts `pretrain`, which trains, evaluates and publishes; a second one is judged against the first;
- an interval that was missed is said; a backfill works from stored captures, and fails where there are none;
- a task that is cleared, and a run that is marked failed, leave no Ray job behind;
- a gate that fails leaves the run red and nothing published, and the link in Airflow opens the report;
- `housekeeping` applies a takedown;
- `data_loop` trains on a strict subset, scores all pairs by that model, keeps a share, and trains on it;
- a dataset grows over five weeks (drill_weeks.py): builds, trainings, a takedown, a rollback.

--keep DIR keeps the folder with all logs; --shots takes screenshots of Airflow and the report into it, with Chromium.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.benchmarks import weekly
from tests.benchmarks.drill_weeks import weeks
from tests.benchmarks.harness import ROOT, Figure, at_least, at_most, report, told
from tests.benchmarks.services import TOKEN, DrillFailed, Services, call, until

SPEC = """
name: {name}
contact: mailto:drill@example.org
sources:
  - {{kind: site, name: site, source_kind: news, start: ["http://127.0.0.1:{port}/"]}}
egress: {{allow: ["127.0.0.1:{port}"], delay_s: {delay_s}}}
fetch: {{images_per_partition: 20}}
filters: [{{name: text_length, min_chars: 4}}, {{name: han_share}}, {{name: image_sides, min_side: 64}}]
regions: {{detectors: [{{name: grid, n: 2}}]}}
shards: {{samples_per_shard: 24, dev_share: 0.2, val_share: 0.25}}
{more}
"""


def days_ago(days: int) -> str:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    return moment.isoformat(timespec="seconds")


class Drill:
    """The two APIs, and what is asked of them."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.folder, self.services = folder, services
        self.gate_run = self.gate_link = ""
        self.site = weekly.Site(pages=36)
        self.port = services.serve(self.site.handler())
        for name in ("specs", "builds", "runs"):
            (folder / name).mkdir()
        self.reports = f"http://127.0.0.1:{services.folder_of_reports(folder / 'builds')}"
        self.spec("news", delay_s=1)
        self.ray = services.ray(nodes=2)
        (folder / "takedowns").write_text("# nothing yet\n", encoding="utf-8")
        self.airflow = services.airflow(
            {
                "RAY_API_SERVER_ADDRESS": self.ray,
                "RAY_AUTH_TOKEN": TOKEN,
                "WENLAN_SPEC": str(folder / "specs/news.yaml"),
                "WENLAN_STORE": str(folder / "store"),
                "WENLAN_OUT_ROOT": str(folder / "builds"),
                "WENLAN_REPORT_URL": self.reports,
                "WENLAN_SCHEDULE": "0 0 * * *",
                "WENLAN_RECIPE": "tiny",
                "WENLAN_RUN_ROOT": str(folder / "runs"),
                "WENLAN_INIT": "last",
                "WENLAN_TAKEDOWNS": str(folder / "takedowns"),
                "WENLAN_MARGIN": "0.5",
                "WENLAN_POLL_S": "3",
            }
        )
        self.token = call(f"{self.airflow}/auth/token")["access_token"]

    def spec(self, name: str, delay_s: float, more: str = "") -> str:
        path = self.folder / "specs" / f"{name}.yaml"
        path.write_text(SPEC.format(name=name, port=self.port, delay_s=delay_s, more=more), encoding="utf-8")
        return str(path)

    def api(self, path: str, body: Any = None, method: str = "") -> Any:
        return call(f"{self.airflow}/api/v2/{path}", body, method, self.token)

    def known(self, dag: str) -> bool:
        return any(found["dag_id"] == dag for found in self.api("dags")["dags"])

    def unpause(self, dag: str) -> None:
        self.api(f"dags/{dag}", {"is_paused": False}, "PATCH")

    def trigger(self, dag: str, **conf: Any) -> str:
        return str(self.api(f"dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def runs(self, dag: str) -> dict[str, str]:
        return {run["dag_run_id"]: run["state"] for run in self.api(f"dags/{dag}/dagRuns")["dag_runs"]}

    def tasks(self, dag: str, run: str) -> dict[str, str]:
        found = self.api(f"dags/{dag}/dagRuns/{run}/taskInstances?limit=100")["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def ends(self, dag: str, run: str, seconds: float = 240) -> str:
        states = ("success", "failed")
        return str(
            until(f"end of {dag} {run}", seconds, lambda: next((s for s in states if self.runs(dag)[run] == s), ""))
        )

    def events(self, asset: str) -> list[Any]:
        return [e for e in self.api("assets/events?limit=100")["asset_events"] if e["name"] == asset]

    def backfills(self) -> dict[int, bool]:
        """Backfills of `dataset_build` by number, and whether each is completed."""
        found = self.api("backfills?dag_id=dataset_build")["backfills"]
        return {backfill["id"]: bool(backfill["completed_at"]) for backfill in found}

    def backfill(self, body: Any) -> None:
        """Starts a backfill. Airflow makes its runs before it answers, which may take longer than a request waits:
        then it is asked again unless the backfill is there."""
        before = set(self.backfills())

        def is_there() -> bool:
            try:
                self.api("backfills", body)
            except OSError:  # no answer in time
                return bool(set(self.backfills()) - before)
            except DrillFailed:
                if not set(self.backfills()) - before:
                    raise
            return True

        until("an answer about the backfill", 240, is_there)

    def built(self) -> None:
        """Waits for a scheduled build of yesterday, whose captures a backfill reads; starts one if there is none."""
        until("DAGs", 120, lambda: self.known("dataset_build"))
        self.unpause("dataset_build")
        scheduled = until(
            "the scheduled run", 120, lambda: [run for run in self.runs("dataset_build") if run.startswith("scheduled")]
        )
        self.ends("dataset_build", scheduled[0], 480)

    def jobs(self, word: str) -> dict[str, str]:
        """Submission id -> state of the Ray jobs whose command holds a word."""
        found = call(f"{self.ray}/api/jobs/", token=TOKEN)
        return {job["submission_id"]: job["status"] for job in found if word in job["entrypoint"]}

    def running(self, word: str, but: tuple[str, ...] = ()) -> list[str]:
        return [name for name, state in self.jobs(word).items() if state == "RUNNING" and name not in but]

    def shot(self, name: str, url: str) -> None:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--window-size=1500,950", "--virtual-time-budget=20000"]
        command += [f"--user-data-dir={self.folder / 'chromium'}", f"--screenshot={self.folder / name}.png", url]
        subprocess.run(command, capture_output=True, timeout=120, check=False)


def scheduled_and_killed(drill: Drill) -> dict[str, Figure]:
    """A scheduled build, its scheduler and triggerer killed in the middle, and the training that it starts."""
    until("DAGs", 120, lambda: drill.known("dataset_build") and drill.known("pretrain"))
    drill.unpause("pretrain")
    earlier = drill.api("dags/dataset_build/dagRuns", {"logical_date": days_ago(5), "conf": {}})["dag_run_id"]
    drill.api(f"dags/dataset_build/dagRuns/{earlier}", {"state": "failed"}, "PATCH")  # the last one before a silence
    drill.unpause("dataset_build")
    [job] = until("the build's job", 120, lambda: drill.running("--until report"))
    run = next(run for run in drill.runs("dataset_build") if run.startswith("scheduled"))
    until("a look at the job", 60, lambda: drill.tasks("dataset_build", run)["build.wait"] == "running")
    for name in ("scheduler", "triggerer"):
        drill.services.kill(name)
    time.sleep(5)
    survived = drill.running("--until report") == [job]
    for name in ("scheduler", "triggerer"):
        drill.services.start_again(name)
    state = drill.ends("dataset_build", run, 480)  # a dead worker is noticed after 30 s, and its task waits to retry
    until("pretrain", 60, lambda: drill.runs("pretrain"))
    trained = drill.ends("pretrain", next(iter(drill.runs("pretrain"))), 300)
    missed = drill.events("wenlan_dataset")[0]["extra"]["missed"] or {}
    return {
        "the missed intervals are in the event": at_least(missed.get("to", "")[:10] == days_ago(1)[:10], 1, ""),
        "jobs of the killed build": at_most(len(drill.jobs("--until report")), 1, "jobs"),
        "job went on without a scheduler": at_least(survived, 1, ""),
        "scheduled build is green": at_least(state == "success", 1, ""),
        "pretrain by its asset is green": at_least(trained == "success", 1, ""),
        "checkpoints published": at_least(len(drill.events("wenlan_checkpoint")), 1, "events"),
    }


def judged(drill: Drill) -> dict[str, Figure]:
    """A second training on the same dataset, measured beside the checkpoint that the first one published."""
    [manifest] = (drill.folder / "builds").glob("news-*/shards/manifest.json")
    run = drill.trigger("pretrain", manifest=str(manifest), run_root=str(drill.folder / "again"))
    state, tasks = drill.ends("pretrain", run, 300), drill.tasks("pretrain", run)
    return {
        "second pretrain is green": at_least(state == "success", 1, ""),
        "the last checkpoint was evaluated too": at_least(tasks["evaluate_last.wait"] == "success", 1, ""),
        "checkpoints published by both": at_least(len(drill.events("wenlan_checkpoint")), 2, "events"),
    }


def backfilled(drill: Drill) -> dict[str, Figure]:
    """A backfill of the day that was built, from its captures, and of one on which nobody crawled."""
    drill.built()
    asked, states = drill.site.asked, {}
    for day in (1, 3):
        midnight = f"{days_ago(day)[:10]}T00:00:00Z"
        body = {"dag_id": "dataset_build", "from_date": midnight, "to_date": midnight, "run_backwards": False}
        body |= {"max_active_runs": 1, "reprocess_behavior": "completed", "dag_run_conf": {}}
        before = set(drill.runs("dataset_build"))
        jobs = set(drill.jobs("--no-crawl"))
        until("end of the backfill before", 120, lambda: all(drill.backfills().values()))
        drill.backfill(body)
        until("the backfill's job", 120, lambda jobs=jobs: set(drill.jobs("--no-crawl")) - jobs)
        run = next(
            run["dag_run_id"]
            for run in drill.api("dags/dataset_build/dagRuns")["dag_runs"]
            if run["run_type"] == "backfill" and (run["dag_run_id"] not in before or day == 1)
        )
        states[day] = drill.ends("dataset_build", run)
    return {
        "backfill from stored captures is green": at_least(states[1] == "success", 1, ""),
        "backfill without captures is red": at_least(states[3] == "failed", 1, ""),
        "pages asked for by backfills": at_most(drill.site.asked - asked, 0, "requests"),
    }


def cleared_and_failed(drill: Drill) -> dict[str, Figure]:
    """A cleared task ends its job and starts another; a run that a person marks failed ends that one too."""
    spec = drill.spec("cleared", delay_s=2)
    run = drill.trigger("dataset_build", spec=spec)
    [first] = until("the job", 120, lambda: drill.running("cleared.yaml"))
    until("a look at the job", 60, lambda: drill.tasks("dataset_build", run)["build.wait"] == "running")
    body = {"dry_run": False, "dag_run_id": run, "task_ids": ["build.wait"], "only_failed": False}
    drill.api("dags/dataset_build/clearTaskInstances", {**body, "include_downstream": True, "reset_dag_runs": True})
    [second] = until("the next job", 120, lambda: drill.running("cleared.yaml", but=(first,)))
    after_clear = drill.jobs("cleared.yaml")[first]
    until("a look at the job", 60, lambda: drill.tasks("dataset_build", run)["build.wait"] == "running")
    drill.api(f"dags/dataset_build/dagRuns/{run}", {"state": "failed"}, "PATCH")
    until("no job", 120, lambda: not drill.running("cleared.yaml"))
    return {
        "cleared: the job is gone": at_least(after_clear == "STOPPED", 1, ""),
        "failed by hand: the job is gone": at_least(drill.jobs("cleared.yaml")[second] == "STOPPED", 1, ""),
        "jobs of the cleared build": at_most(len(drill.jobs("cleared.yaml")), 2, "jobs"),
    }


def gated(drill: Drill) -> dict[str, Figure]:
    """A gate that fails: red, nothing published, and the link opens the report that says why."""
    before = len(drill.events("wenlan_dataset"))
    run = drill.trigger("dataset_build", spec=drill.spec("gated", 0, "publish: {min_samples: 10000}"))
    state, tasks = drill.ends("dataset_build", run), drill.tasks("dataset_build", run)
    links = drill.api(f"dags/dataset_build/dagRuns/{run}/taskInstances/publish.wait/links")["extra_links"]
    link = str(links.get("Quality report") or "")
    with urllib.request.urlopen(link, timeout=30) as answer:
        opened = answer.status == 200 and b"min_samples" in answer.read()
    drill.gate_run, drill.gate_link = run, link
    manifests = list((drill.folder / "builds").glob("gated-*/shards/manifest.json"))
    return {
        "gate: run and task are red": at_least((state, tasks["publish.wait"]) == ("failed", "failed"), 1, ""),
        "gate: the build before it is green": at_least(tasks["build.wait"] == "success", 1, ""),
        "gate: datasets published": at_most(len(drill.events("wenlan_dataset")) - before + len(manifests), 0, ""),
        "gate: the link opens the report": at_least(opened, 1, ""),
    }


def kept_house(drill: Drill) -> dict[str, Figure]:
    """A takedown reaches the published dataset."""
    [manifest] = (drill.folder / "builds").glob("news-*/shards/manifest.json")  # a refused backfill leaves none
    before = json.loads(manifest.read_bytes())
    url = f"http://127.0.0.1:{drill.port}/i0.jpg"
    (drill.folder / "takedowns").write_text(f"url {url}\n", encoding="utf-8")
    drill.unpause("housekeeping")
    run = drill.trigger("housekeeping")
    state, tasks = drill.ends("housekeeping", run), drill.tasks("housekeeping", run)
    words = [sys.executable, "-m", "pipeline", "verify", str(manifest.parents[1])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    after = json.loads(manifest.read_bytes())
    return {
        "housekeeping is green": at_least(state == "success", 1, ""),
        "its three jobs are green": at_least(
            sum(tasks[f"{step}.wait"] == "success" for step in ("takedowns", "expire", "prune")), 3, "jobs"
        ),
        "the picture is out of the dataset": at_least(_samples(before) - _samples(after), 1, "samples"),
        "the dataset verifies afterwards": at_least(done.returncode == 0, 1, ""),
    }


def looped(drill: Drill) -> dict[str, Figure]:
    """The loop of model and data, its five Ray jobs one after the other; and again, with nothing left to do."""
    towers, share = drill.folder / "towers", 0.7
    score = f"pair_score: {{image: {towers}.image.onnx, text: {towers}.text.onnx}}"
    paths = {"strict_spec": drill.spec("best", 0), "spec": drill.spec("every", 0, score)}
    every = Path(paths["spec"])
    chosen = f"{{name: pair_score, top_share: {share}}}]\nregions"
    every.write_text(every.read_text("utf-8").replace("]\nregions", f", {chosen}"), encoding="utf-8")
    best = Path(paths["strict_spec"])
    best.write_text(best.read_text("utf-8").replace("min_chars: 4", "min_chars: 8"), encoding="utf-8")
    drill.unpause("data_loop")
    conf = {**paths, "towers": str(towers), "scorer_set": "run.epochs=2", "run_root": str(drill.folder / "loop")}
    states, jobs = list[str](), list[int]()
    for _ in range(2):
        run = drill.trigger("data_loop", **conf)
        states.append(drill.ends("data_loop", run, 900))
        jobs.append(len(drill.jobs(str(towers.parent / "loop"))))
    [build] = (drill.folder / "builds").glob("every-*/build.json")
    passes = json.loads(build.read_bytes())["passes"]
    scored, kept = passes["curate.score"]["funnel"]["scored"], passes["curate"]["funnel"]["kept"]
    models = list((drill.folder / "loop").glob("*/checkpoints"))
    return {
        "loop: both runs are green": at_least(states.count("success"), 2, "runs"),
        "loop: pairs scored by its own model": at_least(scored, 1, "pairs"),
        "loop: kept of them, less the share": at_most(abs(kept - share * scored), 1, "pairs"),
        "loop: models trained": at_least(len(models), 2, "runs"),
    }


def _samples(manifest: Any) -> int:
    return sum(shard["samples"] for shard in manifest["shards"])


def pictures(drill: Drill) -> None:
    builds = {state: run for run, state in drill.runs("dataset_build").items()}
    drill.shot("grid", f"{drill.airflow}/dags/dataset_build")
    drill.shot("green", f"{drill.airflow}/dags/dataset_build/runs/{builds.get('success', '')}")
    drill.shot("pretrain", f"{drill.airflow}/dags/pretrain")
    drill.shot("gate", f"{drill.airflow}/dags/dataset_build/runs/{drill.gate_run}/tasks/publish.wait")
    drill.shot("links", f"{drill.airflow}/dags/dataset_build/runs/{drill.gate_run}/tasks/publish.wait/details")
    drill.shot("report", drill.gate_link)


PARTS = (scheduled_and_killed, judged, backfilled, cleared_and_failed, gated, kept_house, looped, weeks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder, and keep it")
    parser.add_argument("--shots", action="store_true", help="take screenshots into the folder")
    parser.add_argument(
        "--only", action="append", default=[], choices=[part.__name__ for part in PARTS], help="run these parts only"
    )
    args = parser.parse_args()
    if not (ROOT / ".venv-dags" / "bin" / "airflow").exists():
        told("no Airflow here: run `make dags-venv` first")
        return 2
    folder = args.keep or Path(tempfile.mkdtemp(prefix="wd"))  # short: a socket's path holds 107 bytes
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    try:
        with Services(folder) as services:
            drill = Drill(services, folder)
            for part in PARTS:
                if args.only and part.__name__ not in args.only:
                    continue
                began = time.monotonic()
                try:
                    figures |= part(drill)
                except DrillFailed as e:
                    figures[f"{part.__name__}: {e}"] = at_least(0, 1, "")
                told(f"{part.__name__}: {time.monotonic() - began:.0f} s")
            if args.shots:
                pictures(drill)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
