"""The manifests, rendered once."""

from __future__ import annotations

import pytest

from tests.k8s.rendering import LAYERS, Objects, render


@pytest.fixture(scope="session", params=LAYERS)
def rendered(request: pytest.FixtureRequest) -> Objects:
    return render(request.param)


@pytest.fixture(scope="session")
def base() -> Objects:
    return render("base")
