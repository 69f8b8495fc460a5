"""The search for problems must be able to find them: each is planted once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.problems import problems
from tests.k8s.rendering import Objects, named

POD = "spec.template.spec"


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
        ("StatefulSet", "headrace-joiner", "spec.replicas", 3),
        ("StatefulSet", "headrace-joiner", f"{POD}.containers.workingDir", "/tmp"),
        ("StatefulSet", "headrace-joiner", f"{POD}.containers.ports.name", "grpc"),
        ("StatefulSet", "headrace-joiner", f"{POD}.containers.livenessProbe.httpGet.path", "/"),
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
