"""Made-up audited sets: units with two images each, a planted attribute, a clean one; and stores of images with a sign planted in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinodomain.audit import Asked, AuditSet, Effort, Finding, Policy, run_checks
from dinodomain.audit.observe import Observer
from dinodomain.embed import embed_store
from dinodomain.model import Backbone, ModelPlan, random_like
from dinodomain.probes.frozen import Frozen
from dinodomain.store import array_record, build_store
from dinodomain.testing import SyntheticImages
from dinodomain.types import Normalisation

QUICK = Effort(permutations=199, bootstraps=200, attackers=False)


@pytest.fixture(scope="session")
def make_set() -> Callable[..., AuditSet]:
    """Units in a low-dimensional space, as trained encoders have; ``leak`` is how far the site moves them."""

    def make(*, num_units: int = 260, leak: float = 0.0, seed: int = 0, **changes: object) -> AuditSet:
        generator = np.random.default_rng(seed)
        index = np.repeat(np.arange(num_units), 2)
        site, sex = (generator.permutation(np.arange(num_units) % 2)[index] for _ in range(2))
        mixing = generator.normal(size=(8, 24))

        def features(strength: float) -> np.ndarray:
            content = generator.normal(size=(num_units, 8))[index] + 0.3 * generator.normal(size=(2 * num_units, 8))
            content[:, 0] += strength * site
            return content @ mixing + 0.1 * generator.normal(size=(2 * num_units, 24))

        columns = {
            "site": np.array(["A", "B"])[site],
            "sex": np.array(["F", "M"])[sex],
            "age": generator.normal(60, 10, num_units)[index],
            "split": np.where(index < num_units * 0.8, "train", "test"),
        }
        settings = {
            "features": {"audited": features(leak), "pixels": features(leak / 4), "untrained": features(0)},
            "units": np.array([f"u{i}" for i in index]),
            "content_hash": np.array([f"h{i}" for i in range(2 * num_units)]),
            "sources": np.arange(2 * num_units),
            "columns": columns,
            "split": "split",
        }
        return AuditSet(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def quick() -> Effort:
    return QUICK


@pytest.fixture(scope="session")
def found() -> Callable[..., tuple[Finding, ...]]:
    """Findings of the named checks on a set, by keywords of ``Asked``."""

    def run(data: AuditSet, *names: str, policy: Policy | None = None, **asked: object) -> tuple[Finding, ...]:
        return run_checks(data, asked=Asked(**asked), effort=QUICK, policy=policy, names=names).report.findings

    return run


SIDE = 32
Plant = Callable[[np.ndarray], None]
"""Changes an image [C, SIDE, SIDE] uint8 of the group that carries the sign, in place."""


def glyph(image: np.ndarray) -> None:
    """A checkerboard in the second row and third column of patches of 8."""
    image[:, 8:16, 16:24] = 255 * (np.indices((8, 8)).sum(axis=0) % 2)


def brighter(image: np.ndarray) -> None:
    """Another exposure of the whole image."""
    np.minimum(image.astype(np.int64) + 60, 255, out=image, casting="unsafe")


def framed(image: np.ndarray) -> None:
    """A bright line along the upper edge."""
    image[:, :2] = 255


def observer(folder: Path, plant: Plant, *, num: int = 200, seed: int = 0, plan: ModelPlan | None = None) -> Observer:
    """An untrained encoder over a store whose odd images carry the sign; each image is a unit."""
    generator = np.random.default_rng(seed)
    images = {f"i{index:04d}": _image(generator) for index in range(num)}
    for index, image in enumerate(images.values()):
        if index % 2:
            plant(image)
    domain = SyntheticImages(size=(SIDE, SIDE))
    records = {name: array_record(image, channels=tuple(domain.channels), layout="whole") for name, image in images.items()}
    store = build_store(folder / "store", records, domain=domain.name, units={name: name for name in images})
    torch.manual_seed(seed)
    numbers = Normalisation(mode="domain", channels=store.channels, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)
    plan = plan or ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=1, init="xavier", layer_scale=1.0)
    backbone = Backbone.create(plan, ndim=2, image_size=SIDE, normalisation=numbers, domain=domain.name).eval()
    frozen = Frozen(backbone=backbone, untrained=random_like(backbone, 1), store=store, domain=domain, origin={})
    return Observer(frozen=frozen, batch=64)


def _image(generator: np.random.Generator) -> np.ndarray:
    """A smooth pattern of one tone, so that neighbouring patches say little about each other."""
    coarse = generator.integers(40, 160, (3, 8, 8))
    return np.kron(coarse, np.ones((4, 4))).astype(np.uint8)


def audit_set(observed: Observer) -> AuditSet:
    """Features of the observer's store, with the columns ``sign`` (planted) and ``coin`` (not)."""
    table = embed_store(observed.backbone, observed.frozen.store, observed.frozen.domain, batch=64)
    count = len(table.rows)
    coin = np.random.default_rng(7).permutation(np.arange(count) % 2)
    columns = {"sign": np.where(np.arange(count) % 2, "yes", "no"), "coin": np.where(coin, "heads", "tails")}
    return AuditSet(
        features={"audited": table.features}, units=table.units, content_hash=table.content_hash, sources=table.rows, columns=columns
    )


@pytest.fixture(scope="session")
def planted() -> SimpleNamespace:
    """``observer(folder, plant)`` over images with a sign, ``audit_set(observer)``, and the signs."""
    return SimpleNamespace(observer=observer, audit_set=audit_set, glyph=glyph, brighter=brighter, framed=framed)
