"""What is measured of a policy is what its views are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dinodomain.domain import linear_to_unit
from dinodomain.policy import ViewPolicy
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render
from dinodomain.views.measure import measure

NORM = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(255.0,), mean=(0.5,), std=(0.25,))
POLICY = ViewPolicy(axes=("NS", "EW"), min_valid=0.0)
PLAN = ViewsPlan(global_size=32, local_size=16, num_global=1, num_local=2)


def tiles(valid: torch.Tensor | None = None) -> Batch:
    torch.manual_seed(0)
    ones, ids = torch.ones(3, 1), torch.arange(3)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=255 * ones, spacing=torch.tensor([[10.0, 20.0]] * 3),
        valid_box=torch.tensor([[0, 64], [0, 48]]).expand(3, -1, -1),
    )  # fmt: skip
    return Batch(
        pixels=torch.randint(0, 255, (3, 1, 1, 64, 48), dtype=torch.uint8), valid=valid, info=info, channels=("a",), tile_ids=ids,
        epochs=0 * ids, draws=0 * ids, rows=ids, origins=torch.zeros(3, 2, dtype=torch.int64), slots=ids,
    )  # fmt: skip


def test_lengths_and_shares_are_those_of_the_boxes():
    batch = tiles()
    large, small = measure(POLICY, PLAN, [batch], seed=0, draws=3, normalisation=NORM, patch=8)
    boxes = draw_batch(POLICY, PLAN, batch, seed=0, normalisation=NORM).groups[0].boxes.double()
    sides = boxes[..., 1] - boxes[..., 0]
    assert torch.equal(large.extents, sides * torch.tensor([10.0, 20.0]))
    assert torch.allclose(large.pixel_size, sides * torch.tensor([10.0, 20.0]) / 32)
    assert torch.allclose(large.share, sides.prod(dim=1) / (64 * 48))
    assert (large.name, large.tokens, small.name, small.tokens, len(small.share)) == ("global", 16, "local", 4, 6)
    assert bool((large.known == 1).all())
    assert bool((large.tokens_known == 1).all())


def test_draws_are_repeats_that_a_run_would_make():
    one, two = (measure(POLICY, PLAN, [tiles()], seed=0, draws=draws, normalisation=NORM, patch=8)[0] for draws in (3, 7))
    assert (len(one.share), len(two.share)) == (3, 9), "whole rounds of all tiles, at least as many as asked for"
    assert torch.equal(two.share[:3], one.share)
    assert len(two.share.unique()) > 5


@pytest.mark.parametrize(("bits", "patch"), [(1, 8), (2, 8), (1, (4, 16))])
def test_known_tokens_are_those_of_the_rendered_views(bits, patch):
    valid = torch.zeros(3, 1, 64, 48, dtype=torch.uint8)
    valid[..., 20:] = bits
    batch = tiles(valid)
    views = render(
        batch, draw_batch(POLICY, PLAN, batch, seed=0, normalisation=NORM), to_float=linear_to_unit, normalisation=NORM, patch_size=patch
    )
    for found, group in zip(measure(POLICY, PLAN, [batch], seed=0, draws=3, normalisation=NORM, patch=patch), views.groups):
        assert found.tokens == group.valid.shape[1]
        assert torch.equal(found.tokens_known, (group.valid >= 0.5).double().mean(dim=1))
        assert bool((found.known < 1).any())
        assert torch.allclose(found.known, found.tokens_known, atol=0.3)


def test_the_plans_changes_are_measured():
    plan = replace(PLAN, global_extent=(200.0, 200.0), policy={"aspect": [1.0, 1.0]})
    large = measure(POLICY, plan, [tiles()], seed=0, draws=3, normalisation=NORM, patch=8)[0]
    assert torch.allclose(large.extents, torch.full((3, 2), 200.0, dtype=torch.float64), atol=10.0)
