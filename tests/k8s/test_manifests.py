"""Every layer of the manifests: valid by the schemas, and without what schemas miss."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.k8s.problems import problems
from tests.k8s.rendering import Objects, arguments, of_kind, pod, render


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
    (found,) = [w for w in workloads if arguments(w, objects).get("--role") == "coordinator"]
    assert (found["kind"], found["metadata"]["name"]) == (kind, "headrace-coordinator")
    if kind == "StatefulSet":
        assert found["spec"]["replicas"] == 1
        assert pod(found)["restartPolicy"] == "Always"
        assert found["spec"]["serviceName"] == "headrace-coordinator"
        assert pod(found)["terminationGracePeriodSeconds"] >= 300, "it saves on its way out"
