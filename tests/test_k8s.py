"""Renders the Kubernetes manifests and checks them: schemas first, then what schemas miss."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jobs.main import COMMANDS
from jobs.settings import UniqueKeyLoader
from streaming.cluster import Topology, index_from_hostname

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("base", "overlays/small", "overlays/production")
BIN = Path(sys.executable).parent
UNITS = {"m": 1e-3, "": 1.0, "Mi": 2.0**20, "Gi": 2.0**30}

Objects = list[dict[str, Any]]


def render(layer: str) -> Objects:
    done = subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "k8s" / layer], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.load_all(done.stdout, UniqueKeyLoader))


@pytest.fixture(scope="module", params=LAYERS)
def rendered(request: pytest.FixtureRequest) -> Objects:
    return render(request.param)


@pytest.fixture(scope="module")
def base() -> Objects:
    return render("base")


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(o for o in of_kind(objects, kind) if o["metadata"]["name"] == name)


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    return only


def arguments(workload: dict[str, Any], objects: Objects) -> dict[str, str]:
    """Returns the container's flags, with variables filled in as the kubelet does."""
    found = container(workload)
    names = [source["configMapRef"]["name"] for source in found.get("envFrom", [])]
    values = {k: v for name in names for k, v in named(objects, "ConfigMap", name)["data"].items()}
    flags = [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], text) for text in found["args"][1:]]
    return {name: value for name, _, value in (flag.partition("=") for flag in flags)}


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def problems(objects: Objects) -> Iterator[str]:
    """Yields what is wrong and still valid by the schema."""
    workloads = of_kind(objects, "StatefulSet", "Job")
    for workload in workloads + of_kind(objects, "Deployment"):
        name = workload["metadata"]["name"]
        for check in CHECKS if workload in workloads else CHECKS_OF_ALL:
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


def network_problems(objects: Objects) -> Iterator[str]:
    """Checks that only the run's own pods reach TensorFlow's servers, and all of them do."""
    workloads = of_kind(objects, "StatefulSet", "Job")
    own = {"key": "app.kubernetes.io/component", "operator": "In"}
    own["values"] = ["coordinator", "worker", "ps"]
    for workload in workloads:
        name = workload["metadata"]["name"]
        peers = _peers(objects, workload, "grpc")
        chosen = [peer.get("podSelector", {}).get("matchExpressions") for peer in peers]
        if chosen != [[own]] or "namespaceSelector" in peers[0]:
            yield f"{name}: its grpc port is open to {peers}"
        peers = _peers(objects, workload, "http")
        wanted = [["namespaceSelector"]] if name == "headrace-coordinator" else []
        if [list(peer) for peer in peers] != wanted:
            yield f"{name}: its http port is open to {peers}; metrics are for monitoring"


def _peers(objects: Objects, workload: dict[str, Any], port: str) -> list[dict[str, Any]]:
    """Returns whom the network policies let in."""
    specs = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    return [
        peer
        for spec in specs
        if selects(spec["podSelector"]["matchLabels"], workload)
        for rule in spec["ingress"]
        if port in [each["port"] for each in rule["ports"]]
        for peer in rule["from"]
    ]


def selects(wanted: dict[str, str], workload: dict[str, Any]) -> bool:
    return wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


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
    settings = yaml.safe_load(files[mounted][config.name])
    directory = Path(container(workload)["workingDir"]) / settings["train"]["directory"]
    kept = [path for path, name in mounts.items() if "persistentVolumeClaim" in volumes[name]]
    if not any(directory.is_relative_to(path) for path in kept):
        yield f"train.directory {directory} is on no volume that lasts"


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
    watch = yaml.safe_load(config["data"]["stream.yaml"])["train"]["watch"]
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


CHECKS = (
    label_problems,
    job_problems,
    reference_problems,
    thread_problems,
    resource_problems,
    address_problems,
    probe_problems,
)
CHECKS_OF_ALL = (exporter_problems, reference_problems, thread_problems, resource_problems)


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


def test_manifests_are_valid_by_the_published_schemas(rendered: Objects) -> None:
    assert rendered
    for each in rendered:
        kubernetes_validate.validate(each, "1.30", strict=True)


def test_manifests_have_none_of_the_faults_that_schemas_miss(rendered: Objects) -> None:
    assert list(problems(rendered)) == []


@pytest.mark.parametrize(
    ("layer", "kind"),
    [("base", "Job"), ("overlays/small", "Job"), ("overlays/production", "StatefulSet")],
)
def test_a_run_without_end_has_a_coordinator_that_comes_back(layer: str, kind: str) -> None:
    objects = render(layer)
    workloads = of_kind(objects, "StatefulSet", "Job")
    (found,) = [w for w in workloads if arguments(w, objects)["--role"] == "coordinator"]
    assert (found["kind"], found["metadata"]["name"]) == (kind, "headrace-coordinator")
    if kind == "StatefulSet":
        assert found["spec"]["replicas"] == 1
        assert pod(found)["restartPolicy"] == "Always"
        assert found["spec"]["serviceName"] == "headrace-coordinator"
        assert pod(found)["terminationGracePeriodSeconds"] >= 300, "it saves on its way out"


def test_every_source_file_has_each_key_once() -> None:
    for path in [*(ROOT / "k8s").rglob("*.yaml"), *(ROOT / "jobs" / "configs").glob("*.yaml")]:
        assert list(yaml.load_all(path.read_text(), UniqueKeyLoader)), path


def test_the_config_map_holds_all_files_of_jobs_configs_as_they_are(base: Objects) -> None:
    (found,) = [o for o in of_kind(base, "ConfigMap") if "configs" in o["metadata"]["name"]]
    files = set((ROOT / "jobs" / "configs").glob("*.yaml"))
    files -= {ROOT / "jobs" / "configs" / "kustomization.yaml"}
    assert found["data"] == {path.name: path.read_text() for path in files}


def test_pods_run_commands_that_exist_with_flags_that_they_have(base: Objects) -> None:
    workloads = of_kind(base, "StatefulSet", "Job", "Deployment")
    commands = {container(workload)["args"][0] for workload in workloads}
    assert commands <= {name for group in COMMANDS.values() for name in group}
    shown = {command: _help(command) for command in commands}
    roles = re.search(r"--role \{([\w,]+)\}", shown["train"])
    assert roles is not None
    for workload in workloads:
        command, flags = container(workload)["args"][0], arguments(workload, base)
        assert set(flags) <= set(re.findall(r"--\w+", shown[command]))
        assert flags.get("--role", "worker") in roles[1].split(",")


def _help(command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "jobs.main", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_image_is_built_as_its_linter_wants_it() -> None:
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "k8s" / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Returns a function that sets a value inside an object; a list is entered at its start."""

    def apply(target: dict[str, Any]) -> None:
        here: Any = target
        *parents, last = path.split(".")
        for part in parents:
            here = here[0][part] if isinstance(here, list) else here[part]
        here = here[0] if isinstance(here, list) else here
        here[last] = value

    return apply


POD = "spec.template.spec"


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("StatefulSet", "headrace-ps", "spec.selector.matchLabels", {"app": "other"}),
        ("StatefulSet", "headrace-ps", "spec.podManagementPolicy", "OrderedReady"),
        ("StatefulSet", "headrace-ps", "spec.replicas", 2),
        ("StatefulSet", "headrace-ps", "spec.serviceName", "headrace-worker"),
        ("StatefulSet", "headrace-ps", f"{POD}.restartPolicy", "OnFailure"),
        ("StatefulSet", "headrace-ps", f"{POD}.containers.resources.requests.cpu", "1"),
        ("StatefulSet", "headrace-worker", f"{POD}.containers.resources.requests.memory", "9Gi"),
        ("StatefulSet", "headrace-worker", f"{POD}.containers.ports.containerPort", 2223),
        ("StatefulSet", "headrace-worker", f"{POD}.containers.ports.name", "http"),
        ("StatefulSet", "headrace-worker", f"{POD}.containers.volumeMounts.name", "nothing"),
        ("StatefulSet", "headrace-worker", f"{POD}.volumes.configMap.name", "other"),
        ("StatefulSet", "headrace-worker", f"{POD}.containers.workingDir", "/tmp"),
        ("StatefulSet", "headrace-worker", "metadata.namespace", "other"),
        ("Job", "headrace-coordinator", f"{POD}.restartPolicy", "OnFailure"),
        ("Job", "headrace-coordinator", f"{POD}.containers.name", "main"),
        ("Job", "headrace-coordinator", f"{POD}.subdomain", "headrace"),
        ("Job", "headrace-coordinator", "spec.completionMode", "NonIndexed"),
        ("Job", "headrace-coordinator", "spec.podFailurePolicy.rules.action", "Count"),
        ("Job", "headrace-coordinator", "spec.backoffLimit", 6),
        (
            "StatefulSet",
            "headrace-worker",
            f"{POD}.containers.env",
            [
                {
                    "name": "TF_NUM_INTRAOP_THREADS",
                    "valueFrom": {
                        "resourceFieldRef": {"resource": "limits.memory", "divisor": "1"}
                    },
                }
            ],
        ),
        ("Job", "headrace-coordinator", f"{POD}.containers.livenessProbe.httpGet.path", "/readyz"),
        ("Job", "headrace-coordinator", f"{POD}.containers.readinessProbe.httpGet.port", "grpc"),
        ("Deployment", "headrace-exporter", "spec.replicas", 2),
        ("Deployment", "headrace-exporter", f"{POD}.volumes.configMap.name", "other"),
        ("Service", "headrace-ps", "spec.selector", {"app.kubernetes.io/name": "headrace"}),
        ("Service", "headrace-ps", "spec.publishNotReadyAddresses", False),
        ("Service", "headrace-ps", "spec.ports.targetPort", "http"),
        ("PodDisruptionBudget", "headrace-ps", "spec.selector.matchLabels", {"app": "none"}),
    ],
)
def test_a_planted_fault_is_found(
    base: Objects, kind: str, name: str, path: str, value: object
) -> None:
    objects = copy.deepcopy(base)
    change(path, value)(named(objects, kind, name))
    assert list(problems(objects)) != []
