"""Crops in millimetres and metres: what the store must say, what is refused, and what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dinodomain.domain import ViewPolicy
from dinodomain.engine import EnginePlan, Facts, PretrainPlan, resolve
from dinodomain.engine.build import build
from dinodomain.engine.lengths import Lengths
from dinodomain.errors import UserError
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.store import open_store
from dinodomain.testing import SyntheticVolumes, tiny_store
from dinodomain.views import ViewsPlan, draw_batch, resolve_normalisation

VOLUMES = SyntheticVolumes(size=(32, 48, 64))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A store of volumes of 32 x 48 x 64 voxels with these spacings in mm, None where unknown."""

    def make(name: str, spacings: list[tuple[float, float, float] | None]) -> str:
        folder = tmp_path_factory.mktemp(name)
        (folder / "source").mkdir()
        for number, spacing in enumerate(spacings):
            pixels = np.random.default_rng(number).integers(-1000, 1000, (1, *VOLUMES.size)).astype(np.int16)
            np.savez(folder / "source" / f"scan{number}.npz", pixels=pixels, spacing=np.array(spacing or (np.nan,) * 3))
        return str(tiny_store(folder / "store", domain=VOLUMES, source=str(folder / "source"), audit_holdout=0.0))

    return make


@pytest.fixture(scope="module")
def spaced(scans):
    return scans("spaced", [(3.0, 2.0, 1.0), (3.0, 2.0, 1.0), (1.5, 0.8, 0.8)])


def mm_plan(make_plan, store, **views):
    return make_plan(domain=VOLUMES.name, store=store, loader={"min_valid": 0.0}, views=views)


def test_extents_in_millimetres_are_kept_in_plane_and_across_whatever_the_spacing(spaced):
    plan = ViewsPlan(global_size=16, local_size=8, num_local=4, global_extent=(20, 40), local_extent=(8, 16), global_depth=(15, 40),
                     local_depth=(9, 18))  # fmt: skip
    policy = VOLUMES.view_policy()
    numbers = resolve_normalisation("domain", policy, VOLUMES.channels, ("c0",), None)
    batch = next(iter(Loader(open_store(spaced), LoaderPlan(batch=3, threads=0, min_valid=0.0), seed=0)))
    full = (batch.info.valid_box[..., 1] - batch.info.valid_box[..., 0]) * batch.info.spacing
    whole = 0
    for epoch in range(60):
        params = draw_batch(policy, plan, replace(batch, epochs=batch.epochs + epoch), seed=1, normalisation=numbers)
        for group, extent, depth in zip(params.groups, (plan.global_extent, plan.local_extent), (plan.global_depth, plan.local_depth)):
            spacing, most = batch.info.spacing.repeat(group.num_views, 1), full.repeat(group.num_views, 1)
            sides = (group.boxes[..., 1] - group.boxes[..., 0]) * spacing
            half = spacing / 2  # sides are whole pixels
            deepest = torch.minimum(torch.tensor(depth[1]), most[:, 0])
            assert (sides[:, 0] >= torch.minimum(torch.tensor(depth[0]), most[:, 0]) - half[:, 0] - 1e-4).all()
            assert (sides[:, 0] <= deepest + half[:, 0] + 1e-4).all()
            low, high = (sides[:, 1:] - half[:, 1:]).clamp_min(0).prod(1).sqrt(), (sides[:, 1:] + half[:, 1:]).prod(1).sqrt()
            area = most[:, 1:].prod(1).sqrt()
            assert (high >= torch.minimum(torch.tensor(float(extent[0])), area) - 1e-4).all()
            assert (low <= torch.minimum(torch.tensor(float(extent[1])), area) + 1e-4).all()
            whole += int((sides[:, 0] >= most[:, 0] - 1e-4).sum())
    assert whole == 0  # every tile is deeper than every crop


def test_a_store_without_spacing_is_refused_with_count_first_source_and_the_way_out(make_plan, scans):
    store = scans("unknown", [(3.0, 2.0, 1.0), None, None, (np.nan, 2.0, 1.0)])
    with pytest.raises(
        UserError,
        match=r"views\.global_extent: needs the spacing of every source; 2 of 4 have none, the first is 'scan1\.npz'; use fractions "
        r"\(views\.global_scale\).*\nviews\.local_depth: needs the spacing of every source; 3 of 4",
    ):
        build(mm_plan(make_plan, store, global_extent=(10, 20), local_depth=(10, 20)), VOLUMES)
    build(mm_plan(make_plan, store), VOLUMES)  # fractions need none
    build(mm_plan(make_plan, store, num_local=0, local_extent=(10, 20)), VOLUMES)  # nor do crops that are not made


def test_a_range_beyond_the_largest_tile_is_refused_and_one_that_reaches_beyond_some_is_told(make_plan, spaced):
    with pytest.raises(
        UserError, match=r"views\.global_extent: is \[78\.4, 90\], all of it beyond the side of the largest tile, 78\.3837: "
    ):
        build(mm_plan(make_plan, spaced, global_extent=(78.4, 90)), VOLUMES)
    with pytest.raises(UserError, match=r"views\.local_depth: is \[96, 99\], all of it beyond the depth of the deepest tile, 96: every"):
        build(mm_plan(make_plan, spaced, local_depth=(96, 99)), VOLUMES)
    setup = build(mm_plan(make_plan, spaced, global_extent=(20, 60), global_depth=(10, 20)), VOLUMES)
    told = [reason for reason in setup.reasons if reason.startswith("views.global_")]
    assert told == ["views.global_extent = [20, 60]: crops are whole tiles where they would be longer (tiles measure 44.3405 to 78.3837)"]


def facts(ndim):
    kinds = ("extent", "depth")[: ndim - 1]
    return Facts(
        ndim=ndim, channels=("a",), extents={(96,) * ndim: 100}, policy=ViewPolicy(axes=("IS", "AP", "LR")[-ndim:]),
        lengths={kind: Lengths(smallest=90.0, largest=200.0, pixel=1.0, sources=9) for kind in kinds},
    )  # fmt: skip


def resolved(ndim, **views):
    views = {"global_size": 96, "local_size": 48, **views}
    return resolve(PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"), views=ViewsPlan(**views)), facts(ndim))


def test_a_scale_is_claimed_only_where_it_decides_a_length():
    assert resolved(2, global_extent=(10, 20)).plan.views.global_scale is None
    assert resolved(2, global_extent=(10, 20)).plan.views.local_scale == (0.05, 0.32)
    assert resolved(3, global_extent=(10, 20)).plan.views.global_scale == (0.32, 1.0)  # of the depth
    assert resolved(3, global_depth=(10, 20)).plan.views.global_scale == (0.32, 1.0)  # in plane
    assert resolved(3, global_extent=(10, 20), global_depth=(10, 20)).plan.views.global_scale is None
    with pytest.raises(UserError, match=r"views\.global_scale: is set beside views\.global_extent and views\.global_depth, which take"):
        resolved(3, global_extent=(10, 20), global_depth=(10, 20), global_scale=(0.1, 0.2))


def test_images_have_no_depth():
    with pytest.raises(UserError, match=r"views\.local_depth: is set, images have no depth; leave it out; use views\.local_extent"):
        resolved(2, local_depth=(10, 20))


def test_a_range_that_is_always_beyond_the_smallest_tile_says_so():
    reasons = resolved(3, global_depth=(95, 220)).reasons
    assert (
        "views.global_depth = [95, 220]: crops are as deep as their tile where they would be deeper, always on the smallest "
        "(tiles measure 90 to 200)" in reasons
    )


def test_a_range_below_a_pixel_is_refused():
    with pytest.raises(
        UserError, match=r"views\.local_extent: is \[0\.1, 0\.9\], less than a pixel of any tile, 1; allowed: 1 or more; lengths are in mm"
    ):
        resolved(2, local_extent=(0.1, 0.9))
    assert resolved(2, local_extent=(0.1, 1.9)).plan.views.local_extent == (0.1, 1.9)


def test_the_smallest_pixel_is_known(make_plan, spaced):
    with pytest.raises(UserError, match=r"views\.global_depth: is \[0\.01, 0\.02\], less than a pixel of any tile, "):
        build(mm_plan(make_plan, spaced, global_depth=(0.01, 0.02)), VOLUMES)
