"""Scenarios for checks that show images to an encoder again: an untrained tiny one, over a store of smooth patterns with a sign in half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch

from dinodomain.audit import AuditSet, Effort, Finding, Policy
from dinodomain.audit.checks import layers, reconstruction
from dinodomain.audit.maps import Map
from dinodomain.audit.masks.ocr import Plant as Planted
from dinodomain.audit.masks.ocr import as_pictures, make_reader, plant
from dinodomain.audit.observe import Observer
from dinodomain.audit.observe.restore import Patched, patches_of
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.decoder import fit_decoder
from dinodomain.embed import embed_store
from dinodomain.model import Backbone, ModelPlan, random_like
from dinodomain.probes.frozen import Frozen
from dinodomain.store import array_record, build_store
from dinodomain.testing import SyntheticImages
from dinodomain.types import Normalisation
from power.scenario import Scenario, audited, quiet, several, short

SIDE = 32
EFFORT = Effort(permutations=99, bootstraps=60, folds=3, attackers=False)
Plant = Callable[[np.ndarray, float], None]
"""Changes an image [C, SIDE, SIDE] uint8 of the group that carries the sign, in place, by so many grey levels."""


def glyph(image: np.ndarray, by: float) -> None:
    """A checkerboard in one patch."""
    board = np.indices((8, 8)).sum(axis=0) % 2
    image[:, 8:16, 16:24] = np.clip(image[:, 8:16, 16:24] + by * (board - 0.5), 0, 255)


def framed(image: np.ndarray, by: float) -> None:
    """A brighter line along the upper edge."""
    image[:, :2] = np.clip(image[:, :2] + by, 0, 255)


def _pattern(generator: np.random.Generator, body: bool) -> np.ndarray:
    """[3, SIDE, SIDE], neighbouring patches of which say little about each other; a body is a disc on dark ground."""
    image: np.ndarray = np.kron(generator.integers(40, 160, (3, 8, 8)), np.ones((4, 4))).astype(np.uint8)
    if body:
        y, x = np.indices((SIDE, SIDE)) - SIDE / 2 + 0.5
        image[:, y**2 + x**2 > (0.4 * SIDE) ** 2] //= 8
    return image


@contextmanager
def shown(seed: int, plant: Plant, by: float, num: int, body: bool = False) -> Iterator[tuple[Observer, AuditSet]]:
    """An untrained encoder over a store whose odd images carry the sign, and its audited set; each image is a unit.

    The columns: ``sign``, and ``coin``, which nothing shows.
    """
    generator = np.random.default_rng(seed)
    images = {f"i{index:04d}": _pattern(generator, body) for index in range(num)}
    for image in list(images.values())[1::2]:
        plant(image, by)
    domain = SyntheticImages(size=(SIDE, SIDE))
    records = {name: array_record(image, channels=tuple(domain.channels), layout="whole") for name, image in images.items()}
    with TemporaryDirectory() as folder:
        store = build_store(Path(folder) / "store", records, domain=domain.name, units={name: name for name in images})
        torch.manual_seed(seed)
        levels = Normalisation(mode="domain", channels=store.channels, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)
        plan = ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=1, init="xavier", layer_scale=1.0)
        backbone = Backbone.create(plan, ndim=2, image_size=SIDE, normalisation=levels, domain=domain.name).eval()
        frozen = Frozen(backbone=backbone, untrained=random_like(backbone, 1), store=store, domain=domain, origin={})
        table = embed_store(backbone, store, domain, batch=64)
        columns = {
            "sign": np.where(np.arange(num) % 2, "yes", "no"),
            "coin": np.where(generator.permutation(np.arange(num) % 2), "heads", "tails"),
        }
        yield Observer(frozen=frozen, batch=64), AuditSet(
            features={"audited": table.features}, units=table.units, content_hash=table.content_hash, sources=table.rows, columns=columns
        )  # fmt: skip


def looked(
    seed: int, *, check: str, plant: Plant = glyph, by: float = 255.0, num: int, body: bool = False, **asked: Any
) -> Sequence[Finding]:  # fmt: skip
    """One check over such a store."""
    with shown(seed, plant, by, num, body) as (observer, data):
        return audited(data, check, seed, observer=observer, effort=EFFORT, **asked)


def mapped(seed: int, *, edges: bool = False, num: int = 100) -> Sequence[Finding]:
    """Maps of a probe of a glyph, of few images in few steps; or edges of the image instead of them, which know no model."""
    few = patch.multiple("dinodomain.audit.checks.maps", EXPLAINED=6, STEPS=6, PROBES=2)
    with few, patch("dinodomain.audit.observe.explain.explain", _edges) if edges else nullcontext():
        return looked(seed, check="maps", num=num, task="sign")


def _edges(objective: object, images: torch.Tensor, *how: object, **more: object) -> Map:
    tone = images.mean(dim=1).cpu()
    return Map(values=tone - tone.roll(1, dims=-1), complete=torch.ones(len(images), dtype=torch.bool))


def grown(seed: int, *, by: float, num: int, operations: bool = False) -> Sequence[Finding]:
    """Features that show a sign by ``by`` where those of the untrained encoder show nothing.

    Operations of the views are looked at where they are asked for: they take most of the time and are no part of the verdict.
    """
    spared = patch("dinodomain.audit.checks.shape.look_through_operations", lambda *given: {})
    with shown(seed, glyph, 0.0, num) as (observer, data), nullcontext() if operations else spared:
        generator = np.random.default_rng(seed)
        sign = (data.columns["sign"] == "yes")[:, None]
        rows = {kind: generator.normal(size=(num, 12)) for kind in ("audited", "untrained")}
        rows["audited"] += by * sign * (np.arange(12) < 3)
        columns: dict[str, Any] = {"attributes": ("sign",), "domains": ("coin",)}
        return audited(replace(data, features=rows), "shape", seed, observer=observer, effort=EFFORT, **columns)


def layered(seed: int, *, by: float, num: int = 200) -> Sequence[Finding]:
    """A sign that the second of two made-up layers adds, and a task that both show."""
    generator = np.random.default_rng(seed)
    sign, task = (generator.permutation(np.arange(num) % 2) for _ in range(2))
    early = generator.normal(size=(num, 6)) + 3.0 * task[:, None] * (np.arange(6) == 1)
    late = early + 0.1 * generator.normal(size=early.shape) + by * sign[:, None] * (np.arange(6) == 0)
    found = {"block 1, class": early, "block 2, class": late}
    leak, use = (layers.read(found, read_attribute("x", values, np.arange(num)), EFFORT) for values in (sign, task))
    return [layers.finding("sign", leak, use, {})]


def restored(seed: int, *, share: float) -> Sequence[Finding]:
    """Tokens of which so much is a mix of the patch's pixels, and the rest noise; a written id in each of ten tried images."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(64, 80)) / 8

    def soft(num: int) -> torch.Tensor:
        coarse = torch.from_numpy(generator.uniform(0.2, 0.6, (num, 1, 4, 6)).astype(np.float32))
        return torch.nn.functional.interpolate(coarse, size=(64, 96), mode="bilinear")

    def patched(images: torch.Tensor, planted: tuple[Planted, ...] = ()) -> Patched:
        patches = patches_of(images, (8, 8))
        noise = generator.normal(size=(2, *patches.shape[:2], 80))
        tokens = {"audited": share * patches @ mixing + (1 - share) * noise[0], "untrained": noise[1]}
        return Patched(numbers=np.arange(len(images)), tokens=tokens, patches=patches, grid=(8, 12), patch=(8, 8), planted=planted)

    def written(images: torch.Tensor) -> tuple[torch.Tensor, tuple[Planted, ...]]:
        made = [plant(picture, size=16, contrast=120, rotation=0, generator=generator) for picture in as_pictures(images)]
        there = [one for one in made if one is not None]
        pixels = [torch.from_numpy(picture[None, :, :, 0].astype(np.float32) / 255) for picture, _ in there]
        return torch.stack(pixels), tuple(planted for _, planted in there)

    evidence = cast(Any, SimpleNamespace(lines=Policy().thresholds, effort=SimpleNamespace(seed=seed)))
    few = partial(fit_decoder, steps=20)
    with patch.multiple("dinodomain.audit.checks.reconstruction", MIN_READABLE=5, fit_decoder=few):
        sides = patched(torch.cat([soft(40), written(soft(20))[0]])), patched(soft(10)), patched(*written(soft(10)))
        finding, _ = reconstruction._tried(evidence, *sides, make_reader(), {})
    return [cast(Finding, finding)]


def _by(check: str, *levels: float, **how: Any) -> list[tuple[str, Callable[[int], Sequence[Finding]]]]:
    return [(f"{by:g} grey levels", partial(looked, check=check, by=by, **how)) for by in levels]


def cases() -> list[Scenario]:
    """All of them, check by check."""
    sign: dict[str, Any] = {"attributes": ("sign",)}
    return [
        *several("shape", "a sign that training brought in", [(f"{by} SD", partial(grown, by=by, num=120)) for by in (0.3, 0.6, 1.2)]),
        quiet("shape", "no sign", partial(grown, by=0.0, num=120)),
        short("shape", "40 units", partial(grown, by=1.2, num=40, operations=True)),
        *several("corruption", "a task in fine detail", _by("corruption", 20, 60, 255, num=140, task="sign")),
        quiet("corruption", "a task that nothing shows", partial(looked, check="corruption", num=140, task="coin")),
        short("corruption", "40 units", partial(looked, check="corruption", num=40, task="sign")),
        *several("layers", "a sign that the last layer adds", [(f"{by} SD", partial(layered, by=by)) for by in (0.2, 0.5, 1.0)]),
        quiet("layers", "layers that show the same", partial(layered, by=0.0)),
        short("layers", "40 units", partial(looked, check="layers", num=40, **sign)),
        *several("dense", "a glyph in one patch", _by("dense", 10, 20, 80, num=200, **sign)),
        quiet("dense", "an attribute that nothing shows", partial(looked, check="dense", num=200, attributes=("coin",))),
        short("dense", "40 units", partial(looked, check="dense", num=40, **sign)),
        *several("shortcut", "a line along the border", _by("shortcut", 15, 60, plant=framed, num=420, **sign)),
        quiet("shortcut", "a sign inside a body", partial(looked, check="shortcut", num=420, body=True, **sign)),
        short("shortcut", "120 units", partial(looked, check="shortcut", plant=framed, num=120, **sign)),
        *several("reconstruction", "tokens of pixels", [(f"{one:.0%} pixels", partial(restored, share=one)) for one in (0.2, 0.5, 1.0)]),
        quiet("reconstruction", "tokens of noise", partial(restored, share=0.0)),
        short("reconstruction", "40 units", partial(looked, check="reconstruction", num=40)),
        *several("maps", "edges of the image instead of maps", [("", partial(mapped, edges=True))]),
        quiet("maps", "maps of a probe of a glyph", mapped),
        short("maps", "40 units", partial(mapped, num=40)),
    ]  # fmt: skip
