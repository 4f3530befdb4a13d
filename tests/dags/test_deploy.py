"""What dags/deploy hands to other systems: KubeRay manifests, the image, dashboard, alerts. None of those runs here.

Where promtool is installed (Debian: promtool), Prometheus' own checks run too, with the series of alerts_test.yaml.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline import cli as data_cli
from pipeline import observe
from tests.places import ROOT
from training import cli as train_cli
from training.outputs.trackers import PROMETHEUS

DEPLOY = ROOT / "dags" / "deploy"
MANIFESTS = sorted(DEPLOY.glob("rayjob-*.yaml"))
OF_RAY = {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_memory"}
"""What the dashboard draws of Ray's own; tests/dags/test_ray_jobs.py sees that a real head exports them."""


def _manifest(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _groups(manifest: Any) -> list[Any]:
    cluster = manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _refuses(manifest: Any) -> bool:
    schema = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text(encoding="utf-8"))
    return not jsonschema.Draft202012Validator(schema).is_valid(manifest)


def test_there_is_a_manifest_for_each_use() -> None:
    assert [path.name for path in MANIFESTS] == ["rayjob-build.yaml", "rayjob-train.yaml"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_kuberays_schema_and_their_pods_that_of_kubernetes(path: Path) -> None:
    manifest = _manifest(path)
    assert not _refuses(manifest)
    for group in _groups(manifest):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": group["template"]}
        kubernetes_validate.validate(template, "1.33", strict=True)
    for fault in ("entrypont", "replicas"):
        broken = _manifest(path)
        broken["spec"][fault] = 1
        assert _refuses(broken), "the check can fail"
    number = _manifest(path)
    number["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 1
    assert _refuses(number), "parameters of ray start are text"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_run_commands_that_exist_on_images_of_one_ray(path: Path) -> None:
    manifest = _manifest(path)
    program, *words = shlex.split(manifest["spec"]["entrypoint"])
    {"wenlan-data": data_cli, "wenlan-train": train_cli}[program]._parser().parse_args(words)
    version = manifest["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"rayproject/ray:{version}-" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for group in _groups(manifest):
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits["memory"] == container["resources"]["requests"]["memory"], "Ray counts on what it asked for"
        assert int(group["rayStartParams"]["object-store-memory"]) <= int(limits["memory"].removesuffix("Gi")) << 29


def test_builds_and_trainings_share_one_storage_under_one_path() -> None:
    claim = _manifest(DEPLOY / "storage.yaml")
    kubernetes_validate.validate(claim, "1.33", strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "pods on several nodes"
    roots = set()
    for path in MANIFESTS:
        for group in _groups(_manifest(path)):
            pod = group["template"]["spec"]
            [volume] = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
            claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if v["name"] == volume]
            assert claims == [claim["metadata"]["name"]]
            assert pod["securityContext"]["fsGroup"] == 100
            roots |= {m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"] if m["name"] == volume}
    [root] = roots
    build, train = (shlex.split(_manifest(path)["spec"]["entrypoint"]) for path in MANIFESTS)
    named = [(word, value) for words in (build, train) for word, value in pairwise(words)]
    paths = {(word, value) for word, value in named if word in ("--out", "--store", "--data")}
    assert len(paths) == 4
    assert all(value.startswith(f"{root}/") for _, value in paths)
    dataset = Path(build[2]).stem
    store = dict(named)["--store"]
    assert dict(named)["--data"] == f"{store}/datasets/{dataset}/000001.json", "the first release of that store"


POD_MONITOR: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {"type": "object"},  # Kubernetes' own: checked as that of a Deployment
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^(\d+(ms|[smhd]))+$"},
                            "relabelings": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                        "targetLabel": {"type": "string"},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The part of the Prometheus operator's PodMonitor that deploy/ uses, closed: a name that is not here is refused."""


def test_the_pod_monitor_scrapes_the_metrics_port_of_every_ray_pod() -> None:
    monitor = _manifest(DEPLOY / "podmonitor.yaml")
    jsonschema.Draft202012Validator(POD_MONITOR).validate(monitor)
    selector = monitor["spec"]["selector"]
    labels = {"ray.io/node-type": "worker"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    kubernetes_validate.validate({**deployment, "spec": {"selector": selector, "template": pod}}, "1.33", strict=True)
    [rule] = selector["matchExpressions"]
    assert rule == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}, "KubeRay's label"
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for path in MANIFESTS:
        for group in _groups(_manifest(path)):
            [container] = group["template"]["spec"]["containers"]
            assert endpoint["port"] in [port["name"] for port in container["ports"]]


def test_the_image_installs_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    [extras] = re.findall(r"\$\{wheel\}\[([a-z,]+)\]", text)
    assert set(extras.split(",")) <= set(importlib.metadata.metadata("wenlan").get_all("Provides-Extra") or [])


def dashboard_queries() -> list[str]:
    """All queries of the dashboard, those of its variables included."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert len(queries) > 20
    return queries


def _metrics(queries: list[str]) -> set[str]:
    """Names of metrics in queries, as they come from Ray: a training's may come from a text file, without `ray_`."""
    return {name for query in queries for name in re.findall(r"\bray_\w+", query.replace("(ray_)?", "ray_"))}


OURS = {observe.exported(name) for name in observe.METRICS} | {f"ray_{name}" for name in PROMETHEUS}
TAGS = {"build", "stage", "run"}.union(*(metric.tags for metric in observe.METRICS.values()))


def test_every_query_of_the_dashboard_names_a_metric_that_exists() -> None:
    queries = dashboard_queries()
    assert _metrics(queries) - OURS == OF_RAY
    text = "\n".join(queries)
    assert {name for names in re.findall(r"(?:by|on) \(([a-z, ]+)\)", text) for name in names.split(", ")} <= {
        *TAGS,
        "instance",
    }
    assert set(re.findall(r'[{,](\w+)=~?"', text)) - {"__name__"} <= TAGS


def _rules() -> list[Any]:
    groups = _manifest(DEPLOY / "alerts.yaml")["groups"]
    assert all(group.keys() <= {"name", "interval", "rules"} for group in groups)
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_asks_for_metrics_that_exist_and_has_a_line_in_the_runbook() -> None:
    rules = _rules()
    recorded = {rule["record"] for rule in rules if "record" in rule}
    text = "\n".join(rule["expr"] for rule in rules)
    assert _metrics([text]) <= OURS
    assert set(re.findall(r"\bwenlan:[\w:]+", text)) == recorded, "each is recorded, and each is used"
    runbook = (ROOT / "dags" / "README.md").read_text(encoding="utf-8")
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) == 8
    for rule in alerts:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook"] == f"dags/README.md#{rule['alert']}"
        assert f'| <a id="{rule["alert"]}"></a>`{rule["alert"]}` | ' in runbook
    assert set(re.findall(r'fate(?:=~?)"([a-z_|]+)"', text)) <= {
        "failed", "kept", "kept|dropped", "http_status|timeout|connection|unreachable|robots_unreachable",
    }  # fmt: skip


PROMTOOL = shutil.which("promtool")


def _promtool(*words: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here")
def test_prometheus_itself_reads_the_rules_and_the_queries(tmp_path: Path) -> None:
    _promtool("check", "rules", "dags/deploy/alerts.yaml")
    queries = [query for query in dashboard_queries() if not query.startswith("label_values")]
    rules = [
        {"record": f"panel:{i}", "expr": query.replace("$__rate_interval", "1m")} for i, query in enumerate(queries)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    _promtool("check", "rules", str(path))


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here")
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    _promtool("test", "rules", "tests/dags/alerts_test.yaml")
    tested = _manifest(ROOT / "tests" / "dags" / "alerts_test.yaml")["tests"]
    fired = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in _rules() if "alert" in rule}
