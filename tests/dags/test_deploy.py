"""What dags/deploy hands to other systems: KubeRay manifests, the image, the dashboard. None of those runs here."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
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


def test_the_image_installs_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    [extras] = re.findall(r"\$\{wheel\}\[([a-z,]+)\]", text)
    assert set(extras.split(",")) <= set(importlib.metadata.metadata("wenlan").get_all("Provides-Extra") or [])


def dashboard_metrics() -> set[str]:
    """Names of all metrics that the dashboard's queries use, those of its variables included."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert len(queries) > 8
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def test_every_query_of_the_dashboard_names_a_metric_that_exists() -> None:
    ours = {observe.exported(name) for name in observe.METRICS}
    assert dashboard_metrics() - ours == OF_RAY
    tags = {"build", "stage"}.union(*(metric.tags for metric in observe.METRICS.values()))
    text = (DEPLOY / "grafana.json").read_text(encoding="utf-8")
    assert {name for names in re.findall(r"by \(([a-z, ]+)\)", text) for name in names.split(", ")} <= {
        *tags,
        "instance",
    }
