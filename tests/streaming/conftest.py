"""Fixtures of the trainer's tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.streaming.coordinating import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that may read in this process, which is its coordinator and its workers."""
    # Here, since most of these tests do without TensorFlow.
    from streaming.worker import reader
    from tests.streaming.coordinating import Run

    monkeypatch.setattr(reader, "register_coordinator", lambda: None)
    return Run(tmp_path)
