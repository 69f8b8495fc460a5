from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.schema import InputError
from streaming.checkpoints.lives import Lives, check_unused


def test_whether_a_folder_is_in_use_is_asked_without_beginning_a_life(tmp_path: Path) -> None:
    check_unused(tmp_path / "not there yet")
    check_unused(tmp_path)
    with Lives(tmp_path).begun() as life:
        assert life == 1
        with pytest.raises(InputError, match=r"another trainer uses this .* process \d+ on "):
            check_unused(tmp_path, patience_seconds=0.0)
    check_unused(tmp_path, patience_seconds=0.0)
    with Lives(tmp_path).begun() as life:
        assert life == 2
