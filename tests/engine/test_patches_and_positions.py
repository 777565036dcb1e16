"""Patches of several sides and rotary positions in mm, from the plan to a step."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from dinodomain.domain import ViewPolicy
from dinodomain.engine import EnginePlan, Facts, PretrainPlan, build, resolve, train_step
from dinodomain.engine.lengths import Lengths
from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.testing import SyntheticVolumes, tiny_store
from dinodomain.views import ViewsPlan

ROPE = ModelPlan(dim=24, depth=1, heads=2, patch=8, position="rope", rope_unit="physical")


def facts(ndim: int, **unknown: int) -> Facts:
    kinds = ("extent", "depth")[: ndim - 1]
    known = Lengths(smallest=90.0, largest=200.0, median=120.0, pixel=1.0, sources=9)
    return Facts(
        ndim=ndim, channels=("a",), extents={(96,) * ndim: 100}, policy=ViewPolicy(axes=("IS", "AP", "LR")[-ndim:]),
        lengths={kind: replace(known, unknown=unknown.get(kind, 0), first="scan 4" if kind in unknown else "") for kind in kinds},
    )  # fmt: skip


def plan(model: ModelPlan, **views: object) -> PretrainPlan:
    sizes = {"global_size": 96, "local_size": 48, **views}
    return PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"), model=model, views=ViewsPlan(**sizes))


@pytest.mark.parametrize(
    ("ndim", "views", "length"),
    [
        (2, {"global_scale": (0.2, 0.8)}, 120 * 0.5**0.5 / 2),
        (3, {"global_scale": (0.2, 0.8)}, 120 * 0.5 ** (1 / 3) / 2),
        (2, {"global_extent": (60, 100)}, 40.0),
        (3, {"global_extent": (60, 100)}, 40.0),
    ],
)
def test_the_length_of_positions_is_half_the_median_global_crop(ndim, views, length):
    resolved = resolve(plan(ROPE, **views), facts(ndim))
    assert resolved.plan.model.rope_length == pytest.approx(length, rel=0.01)
    assert any(reason.startswith("model.rope_length = ") for reason in resolved.reasons)
    again = resolve(resolved.plan, facts(ndim))
    assert again.plan == resolved.plan


def test_a_length_that_was_given_stays():
    assert resolve(plan(replace(ROPE, rope_length=7.0)), facts(2)).plan.model.rope_length == 7.0
    assert resolve(plan(replace(ROPE, rope_unit="patch")), facts(2)).plan.model.rope_length is None


def test_positions_in_millimetres_need_the_spacing_of_every_source():
    with pytest.raises(UserError, match=r"model\.rope_unit: is physical and needs the spacing of every source; 2 of 9 have none, the first "
                                        r"is 'scan 4'; use model\.rope_unit=crop"):  # fmt: skip
        resolve(plan(ROPE), facts(3, depth=2))
    resolve(plan(replace(ROPE, rope_unit="crop")), facts(3, depth=2))


def test_crops_must_be_multiples_of_every_side_of_a_patch():
    resolve(plan(ModelPlan(patch=(6, 8, 16))), facts(3))
    with pytest.raises(UserError, match=r"views\.global_size: is 100; allowed: a multiple of model\.patch=6x8x16 along every axis, for "
                                        r"example 96\nviews\.local_size: is 40; .* for example 48"):  # fmt: skip
        resolve(plan(ModelPlan(patch=(6, 8, 16)), global_size=100, local_size=40), facts(3))
    with pytest.raises(UserError, match=r"model\.patch: \(8, 16\) has 2 sides; allowed: one number, or 3 for 3-D tiles"):
        resolve(plan(ModelPlan(patch=(8, 16))), facts(3))


def test_a_run_of_thick_slices_learns_with_the_length_of_its_own_scans(tmp_path):
    volumes = SyntheticVolumes(size=(32, 48, 64))
    (tmp_path / "source").mkdir()
    for number, spacing in enumerate([(4.0, 1.0, 1.0), (4.0, 2.0, 2.0), (4.0, 2.0, 2.0)]):
        pixels = np.random.default_rng(number).integers(-1000, 1000, (1, *volumes.size)).astype(np.int16)
        np.savez(tmp_path / "source" / f"scan{number}.npz", pixels=pixels, spacing=np.array(spacing))
    store = str(tiny_store(tmp_path / "store", domain=volumes, source=str(tmp_path / "source"), audit_holdout=0.0))
    views = ViewsPlan(global_size=16, local_size=8, global_scale=(0.5, 0.5))
    run = PretrainPlan(
        domain=volumes.name, store=store, out=str(tmp_path / "out"), views=views, loader=LoaderPlan(batch=2, threads=0, min_valid=0.0),
        engine=EnginePlan(device="cpu", threads=1, checkpointing=True, steps=2, precision="fp32", trackers=()),
        model=replace(ROPE, patch=(2, 4, 8), mlp="swiglu", drop_path=0.3, rope_rescale=2.0),
        objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2, mask_probability=1.0),
    )  # fmt: skip
    setup = build(run, volumes)
    with closing(iter(setup.loader)) as batches:
        found = train_step(setup.training, next(batches))
    assert np.isfinite(float(found.metrics["loss"]))
    assert float(found.metrics["grad_norm_backbone"]) > 0
    vit = setup.training.pair.student.backbone.vit
    assert vit.grid == (8, 4, 2)
    assert vit.plan.rope_length == pytest.approx(2.0 * (48 * 64) ** 0.5 * 0.5 ** (1 / 3) / 2, rel=0.35)  # tiles are blocks of the scans
