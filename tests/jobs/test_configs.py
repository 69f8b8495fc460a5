"""Every file of jobs/configs is valid in all its sections, so that a copy of it is a good start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.settings import SECTIONS, load_settings
from models.config import ExportConfig, TwoTowerConfig
from pipeline.publish import PublishConfig
from pipeline.samples import SamplesConfig
from pipeline.specification import Specification
from streaming.config import TrainConfig
from streaming.joining.config import JoinConfig

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
MODELS = {
    "specification": Specification,
    "samples": SamplesConfig,
    "publish": PublishConfig,
    "join": JoinConfig,
    "model": TwoTowerConfig,
    "train": TrainConfig,
    "export": ExportConfig,
}


@pytest.mark.parametrize(
    "name", sorted({path.name for path in CONFIGS.glob("*.yaml")} - {"kustomization.yaml"})
)
def test_a_deployment_is_valid_in_every_section(name: str) -> None:
    present = yaml.safe_load((CONFIGS / name).read_text())
    loaded = load_settings(CONFIGS / name, [], {section: MODELS[section] for section in present})
    assert set(loaded) == set(present)
    assert present


def test_every_section_has_an_owner() -> None:
    assert set(MODELS) == set(SECTIONS)
