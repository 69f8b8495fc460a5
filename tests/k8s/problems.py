"""What can be wrong with manifests that are valid by their schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from streaming.cluster import Topology, index_from_hostname
from tests.k8s.rendering import (
    Objects,
    arguments,
    container,
    of_kind,
    pod,
    selected_by,
    selects,
)

UNITS = {"m": 1e-3, "": 1.0, "Mi": 2.0**20, "Gi": 2.0**30}


def problems(objects: Objects) -> Iterator[str]:
    """Yields what is wrong and still valid by the schema."""
    workloads = of_kind(objects, "StatefulSet", "Job")
    for workload in workloads + of_kind(objects, "Deployment"):
        name = workload["metadata"]["name"]
        checks = CHECKS_OF.get(name, CHECKS)
        for check in checks:
            yield from (f"{name}: {problem}" for problem in check(workload, objects))
    for service in of_kind(objects, "Service"):
        yield from service_problems(service, workloads)
    for budget in of_kind(objects, "PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        matched = [w["metadata"]["name"] for w in workloads if selects(wanted, w)]
        if matched != ["headrace-ps"]:
            yield f"disruption budget matches {matched}"
    yield from network_problems(objects)
    if len({o["metadata"].get("namespace") for o in objects if o["kind"] != "Namespace"}) != 1:
        yield "objects in several namespaces"


def service_problems(service: dict[str, Any], workloads: Objects) -> Iterator[str]:
    name, spec = service["metadata"]["name"], service["spec"]
    served = [w for w in workloads if selects(spec["selector"], w)]
    governed = [
        w for w in workloads if name in (w["spec"].get("serviceName"), pod(w).get("subdomain"))
    ]
    if len(served) != 1 or served != governed:
        yield f"service {name}: selects other pods than those that are named by it"
        return
    if spec["clusterIP"] != "None" or not spec.get("publishNotReadyAddresses"):
        yield f"service {name}: must be headless and publish names before pods are ready"
    ports = {port["name"]: port["containerPort"] for port in container(served[0])["ports"]}
    for port in spec["ports"]:
        if ports.get(port["targetPort"]) != port["port"]:
            yield f"service {name}: port {port} is not among the pods' {ports}"


def network_problems(objects: Objects) -> Iterator[str]:
    """Checks that only the run's own pods reach TensorFlow's servers, and all of them do."""
    workloads = of_kind(objects, "StatefulSet", "Job")
    own = {"key": "app.kubernetes.io/component", "operator": "In"}
    own["values"] = ["coordinator", "worker", "ps"]
    for workload in workloads:
        name = workload["metadata"]["name"]
        peers = _peers(objects, workload, "grpc")
        chosen = [peer.get("podSelector", {}).get("matchExpressions") for peer in peers]
        if name == JOINER:
            own_ports = [port["name"] for port in container(workload)["ports"]]
            if own_ports != ["http"]:
                yield f"{name}: listens at {own_ports}"
        elif chosen != [[own]] or "namespaceSelector" in peers[0]:
            yield f"{name}: its grpc port is open to {peers}"
        peers = _peers(objects, workload, "http")
        told = name in ("headrace-coordinator", JOINER)
        wanted = [["namespaceSelector"]] if told else []
        if [list(peer) for peer in peers] != wanted:
            yield f"{name}: its http port is open to {peers}; metrics are for monitoring"


def _peers(objects: Objects, workload: dict[str, Any], port: str) -> list[dict[str, Any]]:
    """Returns whom the network policies let in."""
    specs = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    return [
        peer
        for spec in specs
        if selected_by(spec["podSelector"], workload)
        for rule in spec["ingress"]
        if port in [each["port"] for each in rule["ports"]]
        for peer in rule["from"]
    ]


def label_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    if workload["kind"] == "StatefulSet":
        if not selects(workload["spec"]["selector"]["matchLabels"], workload):
            yield "its selector does not select its pods"
        if workload["spec"]["podManagementPolicy"] != "Parallel":
            yield "pods start one after the other, and wait for each other for ever"
        if pod(workload).get("restartPolicy", "Always") != "Always":
            yield "restartPolicy of a StatefulSet"


def job_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    if workload["kind"] != "Job":
        return
    if pod(workload).get("restartPolicy") != "Never":
        yield "restartPolicy: podFailurePolicy needs Never"
    if workload["spec"].get("completionMode") != "Indexed":
        yield "without completionMode Indexed its pod has no stable name"
    if workload["spec"]["backoffLimit"] < 100:
        yield "backoffLimit counts over months: so few crashes end a run that goes on"
    rules = workload["spec"]["podFailurePolicy"]["rules"]
    codes = {c: r["action"] for r in rules for c in r.get("onExitCodes", {}).get("values", [])}
    if codes != {2: "FailJob", 75: "Ignore"}:
        yield f"exit codes are answered with {codes}"
    names = {r["onExitCodes"]["containerName"] for r in rules if "onExitCodes" in r}
    if names != {container(workload)["name"]}:
        yield f"rules name the containers {names}"


def reference_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    existing = {(o["kind"], o["metadata"]["name"]) for o in objects}
    volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in existing:
            yield f"no ConfigMap {volume['configMap']['name']}"
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and ("PersistentVolumeClaim", claim) not in existing:
            yield f"no PersistentVolumeClaim {claim}"
    for mount in container(workload)["volumeMounts"]:
        if mount["name"] not in volumes:
            yield f"no volume {mount['name']}"
    config = Path(arguments(workload, objects)["--config"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container(workload)["volumeMounts"]}
    mounted = volumes.get(mounts.get(str(config.parent), ""), {}).get("configMap", {}).get("name")
    files = {o["metadata"]["name"]: o["data"] for o in of_kind(objects, "ConfigMap")}
    if config.name not in files.get(mounted, {}):
        yield f"{config} is not mounted"
        return
    yield from _folder_problems(workload, yaml.safe_load(files[mounted][config.name]))


def _folder_problems(workload: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    """Checks that what must last is written to a volume that does."""
    volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(workload)["volumeMounts"]}
    kept = [path for path, name in mounts.items() if "persistentVolumeClaim" in volumes[name]]
    written = {
        "train.directory": settings["train"]["directory"],
        "join.snapshot.directory": settings["join"]["snapshot"]["directory"],
    }
    for option, folder in written.items():
        directory = Path(container(workload)["workingDir"]) / folder
        if not any(directory.is_relative_to(path) for path in kept):
            yield f"{option} {directory} is on no volume that lasts"


def thread_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    (found,) = container(workload)["env"]
    threads = found["valueFrom"]["resourceFieldRef"]
    if found["name"] != "TF_NUM_INTRAOP_THREADS" or threads.get("containerName") is not None:
        yield f"sets {found}"
    if (threads["resource"], threads["divisor"]) != ("limits.cpu", "1"):
        yield "threads: not as many as cores that it may use"


def resource_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    resources = container(workload)["resources"]
    for kind in ("cpu", "memory"):
        requested, limit = resources["requests"][kind], resources["limits"][kind]
        if quantity(requested) > quantity(limit):
            yield f"requests {requested} of {kind}, above its limit of {limit}"
    if (
        workload["metadata"]["name"] == "headrace-ps"
        and resources["requests"] != resources["limits"]
    ):
        yield "a parameter server needs guaranteed quality of service"
    if pod(workload)["terminationGracePeriodSeconds"] < 30:
        yield "too short a grace period"


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def address_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    """Checks that every address passed to a role is the name of a pod that will be."""
    flags = arguments(workload, objects)
    topology = Topology(
        flags["--coordinator"],
        tuple(flags["--workers"].split(",")),
        tuple(flags["--ps"].split(",")),
    )
    role = flags["--role"]
    spec = workload["spec"]
    count = spec.get("replicas", spec.get("completions"))
    service = spec.get("serviceName", pod(workload).get("subdomain"))
    (port,) = [each for each in container(workload)["ports"] if each["name"] == "grpc"] or [{}]
    passed = {"ps": topology.ps, "worker": topology.workers, "coordinator": [topology.coordinator]}
    if len(passed[role]) != count:
        yield f"{len(passed[role])} addresses for {count} pods"
        return
    for number in range(count):
        name = f"{workload['metadata']['name']}-{number}"
        expected = f"{name}.{service}:{port.get('containerPort')}"
        found = topology.address(role, index_from_hostname(name))
        if found != expected:
            yield f"pod {name} is passed as {found}; it will be {expected}"


def probe_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    """Checks that the coordinator's probes ask where it listens."""
    found = container(workload)
    probes = {key: each["httpGet"] for key, each in found.items() if "httpGet" in each}
    if not probes:
        return
    paths = {key: probe["path"] for key, probe in probes.items()}
    if paths != {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }:
        yield f"probes ask {paths}"
    (config,) = [o for o in of_kind(objects, "ConfigMap") if "configs" in o["metadata"]["name"]]
    section = "join" if workload["metadata"]["name"] == JOINER else "train"
    watch = yaml.safe_load(config["data"]["stream.yaml"])[section]["watch"]
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    asked = {ports.get(probe["port"]) for probe in probes.values()}
    scraped = int(workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"])
    if asked | {scraped} != {watch["port"]} or watch["host"] != "0.0.0.0":
        yield f"probes ask {asked}, Prometheus {scraped}; it listens at {watch}"


def exporter_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    if workload["spec"]["replicas"] != 1 or workload["spec"]["strategy"] != {"type": "Recreate"}:
        yield "several exporters would refuse to write beside each other"
    if "--follow" not in arguments(workload, objects):
        yield "it ends after one export"


def joiner_problems(workload: dict[str, Any], objects: Objects) -> Iterator[str]:
    """Checks that all pods together have each partition, and no two the same."""
    count = workload["spec"]["replicas"]
    (units,) = [arguments(workload, objects)["--set"].removeprefix("join.input.units=")]
    if units != f"0/{count}":
        yield f"pod 0 of {count} has {units} of the partitions"
    if workload["spec"]["serviceName"] != JOINER:
        yield "its pods have no names"
    threads = {e["name"]: e["valueFrom"] for e in container(workload)["env"]}["POLARS_MAX_THREADS"]
    if threads != {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}:
        yield f"threads: {threads}"


JOINER = "headrace-joiner"
CHECKS = (
    label_problems,
    job_problems,
    reference_problems,
    thread_problems,
    resource_problems,
    address_problems,
    probe_problems,
)
CHECKS_OF = {
    "headrace-exporter": (
        exporter_problems,
        reference_problems,
        thread_problems,
        resource_problems,
    ),
    JOINER: (
        joiner_problems,
        label_problems,
        reference_problems,
        resource_problems,
        probe_problems,
    ),
}
