from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dinodomain.checkpoint import CheckpointPlan
from dinodomain.engine import EnginePlan, PretrainPlan
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.testing import SyntheticImages, SyntheticVolumes, tiny_store
from dinodomain.views import ViewsPlan

IMAGES, VOLUMES = SyntheticImages(size=(32, 32)), SyntheticVolumes(size=(32, 32, 32))


@pytest.fixture(scope="session")
def images() -> SyntheticImages:
    return IMAGES


@pytest.fixture(scope="session")
def volumes() -> SyntheticVolumes:
    return VOLUMES


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("store") / "images", domain=IMAGES)


@pytest.fixture(scope="session")
def volume_store(tmp_path_factory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("store") / "volumes", domain=VOLUMES, num=4)


@pytest.fixture(scope="session")
def tiny_plan(store) -> Callable[..., PretrainPlan]:
    """A run that takes a fraction of a second."""

    def make(out: Path) -> PretrainPlan:
        return PretrainPlan(
            domain="synthetic",
            store=str(store),
            out=str(out),
            loader=LoaderPlan(batch=4, threads=0),
            views=ViewsPlan(global_size=16, local_size=8, num_local=2),
            model=ModelPlan(dim=16, depth=2, heads=2, patch=8, registers=1, drop_path=0.3, layer_scale=0.1),
            objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2, mask_probability=1.0),
            checkpoint=CheckpointPlan(every=5),
            engine=EnginePlan(steps=10, device="cpu", precision="fp32", threads=1, trackers=()),
        )

    return make


@pytest.fixture
def make_plan(tiny_plan, tmp_path) -> Callable[..., PretrainPlan]:
    """The tiny run with changes: a dict replaces keys of a section, anything else a key."""

    def make(**changes: object) -> PretrainPlan:
        plan = tiny_plan(tmp_path / "run")
        for name, value in changes.items():
            plan = replace(plan, **{name: replace(getattr(plan, name), **value) if isinstance(value, dict) else value})
        return plan

    return make
