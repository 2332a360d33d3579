"""Every file a cluster is started with, held to the validator of what reads it; each validator to a planted error.

Kubernetes' own schemas check core kinds and every pod template, Ray's own schema the cluster launcher's file and, where
`ray[serve]` is installed, the Serve configuration; Ray's own command line parses what the start script says. KubeRay's
schemas are in no package: where MEDLOOM_KUBERAY_CRDS names a folder of its CRD files they are used, else the fields
around the pod templates are held to the lists below, which state what its API has (ray.io/v1).
"""

from __future__ import annotations

import copy
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "infra" / "deploy"
KUBERNETES = "1.33"
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
           "workerGroupSpecs", "headServiceAnnotations", "suspend"}
FIELDS = {
    "RayCluster": CLUSTER,
    "RayService": {"serveConfigV2", "rayClusterConfig", "serveService"},
    "RayJob": {"entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes",
               "ttlSecondsAfterFinished", "rayClusterSpec", "submitterPodTemplate", "runtimeEnvYAML", "suspend"},
    "headGroupSpec": {"serviceType", "rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams",
                         "template"},
    "autoscalerOptions": {"upscalingMode", "idleTimeoutSeconds", "resources", "env", "version"},
}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def known(where: str, there: dict[str, Any]) -> None:
    assert set(there) <= FIELDS[where], f"{where} has no field {sorted(set(there) - FIELDS[where])}"


def check(document: dict[str, Any]) -> None:
    """Raise for what the cluster would refuse."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    if document["apiVersion"] != "ray.io/v1":
        validate(document, KUBERNETES, strict=True)
        return
    if folder := os.environ.get("MEDLOOM_KUBERAY_CRDS"):
        import jsonschema

        plural = f"{document['kind'].lower()}s"
        (crd,) = [d for path in Path(folder).glob(f"*{plural}*.yaml") for d in documents(path)]
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        jsonschema.validate(document, version["schema"]["openAPIV3Schema"])
    known(document["kind"], document["spec"])
    cluster = cluster_of(document)
    known("RayCluster", cluster)
    known("autoscalerOptions", cluster.get("autoscalerOptions", {}))
    known("headGroupSpec", cluster["headGroupSpec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        known("workerGroupSpecs", group)
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for template in pods(document):
        holder = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        validate(holder, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_kubernetes_is_given_fits_its_schemas(path: Path) -> None:
    for document in documents(path):
        check(document)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_planted_error_is_found(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for document in documents(path):
        broken = [copy.deepcopy(document) for _ in range(2)]
        if document["apiVersion"] == "ray.io/v1":
            next(pods(broken[0]))["spec"]["containers"][0]["imagePullPolice"] = "Always"
            cluster_of(broken[1])["authOption"] = {"mode": "token"}
        else:
            broken[0]["specs"] = {}
            broken[1]["metadata"] = []
        for one in broken:
            with pytest.raises((jsonschema.ValidationError, AssertionError)):
                check(one)


RAY = [d for path in FILES for d in documents(path) if d["apiVersion"] == "ray.io/v1"]


@pytest.mark.parametrize("document", RAY, ids=lambda d: d["kind"])
def test_no_cluster_is_open_and_no_secret_stands_in_a_file(document: dict[str, Any]) -> None:
    cluster = cluster_of(document)
    assert cluster["authOptions"]["mode"] == "token" and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert str(cluster["rayVersion"]) == "2.60.0"
    for template in pods(document):
        (container,) = template["spec"]["containers"]
        environment = {e["name"]: e["value"] for e in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert not {"RAY_AUTH_TOKEN", "MEDLOOM_DEID_KEY"} & set(environment)
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    if document["kind"] != "RayService":
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_service_serves_what_the_file_for_a_bare_cluster_serves() -> None:
    (service,) = [d for d in RAY if d["kind"] == "RayService"]
    there, here = yaml.safe_load(service["spec"]["serveConfigV2"]), yaml.safe_load((DEPLOY / "vllm.yaml").read_text())
    assert there.pop("http_options") == {**here.pop("http_options"), "host": "0.0.0.0"}
    assert there == here


LAUNCHER = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
validate_config(prepare_config(yaml.safe_load(sys.stdin)))
"""


def test_the_launchers_file_fits_rays_schema_and_a_planted_error_does_not() -> None:
    pytest.importorskip("jsonschema")
    text = (DEPLOY / "ray" / "cluster.yaml").read_text()
    for given, code in ((text, 0), (text.replace("max_workers: 100", "max_worker: 100"), 1)):
        command = [sys.executable, "-W", "ignore", "-c", LAUNCHER]
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-1500:]
    config = yaml.safe_load(text)
    assert config["provider"]["use_internal_ips"] is True
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        parsed(command.replace("RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray ", "").split())


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What Ray's own command line makes of them; raises for an option that it does not have."""
    from ray.scripts.scripts import start

    assert arguments[0] == "start"
    return dict(start.make_context("start", arguments[1:]).params)


def node(kind: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the start script with a `ray` that prints its arguments."""
    fake = tmp_path / "bin" / "ray"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE" "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "token").write_text("long enough")
    own = {"PATH": f"{fake.parent}:/usr/bin:/bin", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), **environment}
    return subprocess.run([DEPLOY / "ray" / "node.sh", kind], env=own, capture_output=True, text=True)


def test_the_start_script_starts_nodes_that_ray_understands(tmp_path: Path) -> None:
    head = node("head", tmp_path, MEDLOOM_RAY_IP="10.0.0.1").stdout.split()
    worker = node("worker", tmp_path, MEDLOOM_RAY_IP="10.0.0.2", MEDLOOM_RAY_HEAD="10.0.0.1").stdout.split()
    assert head[0] == worker[0] == "token"
    start = parsed(head[1:])
    assert start["head"] and start["num_cpus"] == 0 and start["node_ip_address"] == "10.0.0.1" and start["block"]
    start = parsed(worker[1:])
    assert not start["head"] and start["address"] == "10.0.0.1:6379" and start["num_cpus"] is None


@pytest.mark.parametrize(
    ("kind", "environment", "why"),
    [
        ("head", {}, "set MEDLOOM_RAY_IP"),
        ("head", {"MEDLOOM_RAY_IP": "0.0.0.0"}, "every network"),
        ("head", {"MEDLOOM_RAY_IP": "10.0.0.1", "RAY_AUTH_MODE": "disabled"}, "would open the cluster"),
        ("head", {"MEDLOOM_RAY_IP": "10.0.0.1", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "no token"),
        ("worker", {"MEDLOOM_RAY_IP": "10.0.0.2"}, "MEDLOOM_RAY_HEAD"),
        ("sever", {"MEDLOOM_RAY_IP": "10.0.0.2"}, "say head or worker"),
    ],
)
def test_the_start_script_refuses_what_would_be_open(
    kind: str, environment: dict[str, str], why: str, tmp_path: Path
) -> None:
    done = node(kind, tmp_path, **environment)
    assert done.returncode == 78 and why in done.stderr and done.stdout == ""


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("no systemd-analyze here")
    text = (DEPLOY / "ray" / "medloom-ray@.service").read_text()
    text = text.replace("/opt/medloom/deploy/ray/node.sh", str(DEPLOY / "ray" / "node.sh"))
    for content, ok in ((text, True), (text.replace("Restart=on-failure", "Restart=often"), False)):
        unit = tmp_path / "medloom-ray@head.service"
        unit.write_text(content)
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        if "System has not been booted" in done.stderr or "Failed to initialize manager" in done.stderr:
            pytest.skip(f"systemd-analyze cannot run here: {done.stderr.strip()[:200]}")
        said = [line for line in done.stderr.splitlines() if "medloom-ray" in line]
        assert (said == []) is ok, done.stderr
