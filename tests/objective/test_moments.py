"""Sums of parts give the measures of the whole, however it was cut; means of measures would not."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dinodomain.objective.centering import make_centering
from dinodomain.objective.moments import collapse_measures, moments_of


def plain(cls: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """The measures in float64, as they are defined."""
    unit, targets = functional.normalize(cls.double(), dim=1), targets.double()
    mean = targets.mean(0)
    return {
        "teacher_entropy": -(targets * targets.log()).sum(1).mean().item(),
        "kl_to_uniform": (mean * (mean * len(mean)).log()).sum().item(),
        "feature_std": unit.std(0, correction=0).mean().item() * math.sqrt(cls.shape[1]),
    }


def measured(cls: torch.Tensor, targets: torch.Tensor, sizes: list[int]) -> dict[str, float]:
    parts = [
        moments_of(own, torch.special.entr(some).sum(1).mean(), some.mean(0)) for own, some in zip(cls.split(sizes), targets.split(sizes))
    ]
    return {name: value.item() for name, value in collapse_measures(parts).items()}


@pytest.fixture
def seen():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 24, generator=generator), torch.randn(12, 40, generator=generator).mul(6).softmax(1)


@pytest.mark.parametrize("sizes", [[12], [6, 6], [1] * 12, [1, 4, 7]])
def test_measures_of_parts_are_those_of_the_whole(seen, sizes):
    assert measured(*seen, sizes) == pytest.approx(plain(*seen), rel=1e-5)


def test_a_healthy_step_of_single_samples_is_not_told_collapsed(seen):
    """The mean of the measures of single samples is no spread at all, and a whole prototype for each."""
    cls, targets = seen
    alone = [measured(cls[row : row + 1], targets[row : row + 1], [1]) for row in range(12)]
    assert max(one["feature_std"] for one in alone) == 0.0
    together = measured(cls, targets, [1] * 12)
    assert together["feature_std"] > 0.8
    assert together["kl_to_uniform"] < 0.6 * sum(one["kl_to_uniform"] for one in alone) / 12


def test_a_collapse_is_not_hidden_by_rounding(seen):
    cls = seen[0][:1].expand(12, -1).contiguous()
    assert measured(cls, seen[1], [3, 9])["feature_std"] < 1e-6


@pytest.mark.parametrize("method", ["softmax", "sinkhorn", "none"])
def test_the_norm_of_the_centre_is_made_on_the_device(method):
    device = torch.device("meta")
    assert make_centering(method, 8, 0.9).to(device).norm(device).device == device
