"""The moving centre and Sinkhorn-Knopp."""

from __future__ import annotations

import pytest
import torch

from dinodomain.objective.centering import Center, Sinkhorn, make_centering, sinkhorn_knopp


def published_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """SwAV's and DINOv2's form: the whole matrix is rescaled in every sweep; in float64."""
    matrix = (logits.double() / temperature).exp().T
    matrix = matrix / matrix.sum()
    prototypes, samples = matrix.shape
    for _ in range(3):
        matrix = matrix / matrix.sum(1, keepdim=True) / prototypes
        matrix = matrix / matrix.sum(0, keepdim=True) / samples
    return (matrix * samples).T


@pytest.mark.parametrize("temperature", [0.04, 0.07, 0.5])
def test_sinkhorn_equals_the_published_sweeps(temperature):
    torch.manual_seed(0)
    logits = torch.rand(48, 128) * 2 - 1
    torch.testing.assert_close(Sinkhorn()(logits, temperature), published_sinkhorn(logits, temperature).float(), rtol=1e-4, atol=1e-9)


def test_sinkhorn_in_float64_equals_the_published_sweeps_to_its_precision():
    logits = torch.rand(20, 30, dtype=torch.float64)
    ours = sinkhorn_knopp(logits, 0.1, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(ours, published_sinkhorn(logits, 0.1), rtol=1e-12, atol=0)


def test_sinkhorn_by_hand():
    # Two samples, two prototypes; the matrix [[a, 1], [1, a]] is doubly stochastic after one scaling.
    targets = sinkhorn_knopp(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1.0, torch.ones(2))
    share = torch.e / (1 + torch.e)
    torch.testing.assert_close(targets, torch.tensor([[share, 1 - share], [1 - share, share]]))


def test_sinkhorn_rows_sum_to_one_and_do_not_overflow():
    logits = torch.randn(16, 64) * 30  # far outside the cosines that a head gives
    targets = Sinkhorn()(logits, 0.04)
    assert targets.isfinite().all()
    targets = Sinkhorn()(torch.rand(16, 64) * 2 - 1, 0.04)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))


def test_rows_without_weight_count_for_nothing():
    torch.manual_seed(0)
    logits = torch.rand(10, 16)
    weight = torch.tensor([1.0] * 6 + [0.0] * 4)
    targets = Sinkhorn()(logits, 0.1, weight)
    torch.testing.assert_close(targets[:6], Sinkhorn()(logits[:6], 0.1))
    assert targets[6:].abs().sum() == 0
    weighted, plain = Center(16, 0.9), Center(16, 0.9)
    weighted(logits, 0.1, weight)
    plain(logits[:6], 0.1)
    weighted.update()
    plain.update()
    torch.testing.assert_close(weighted.center, plain.center)


def test_the_centre_is_a_moving_mean_that_moves_only_when_told():
    centering = Center(4, 0.9)
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    targets = centering(logits, 0.5)
    torch.testing.assert_close(targets, torch.softmax(logits / 0.5, -1))
    assert centering.center.abs().sum() == 0
    centering.update()
    torch.testing.assert_close(centering.center, torch.full((4,), 0.2))
    torch.testing.assert_close(centering(logits, 0.5), torch.softmax((logits - 0.2) / 0.5, -1))


def test_micro_batches_make_one_update_and_a_skipped_step_leaves_no_trace():
    torch.manual_seed(0)
    logits = torch.randn(8, 4)
    whole, parts = Center(4, 0.9), Center(4, 0.9)
    whole(logits, 0.1)
    for rows in (slice(0, 2), slice(2, 8)):
        parts(logits[rows], 0.1)
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.center, parts.center)
    before = whole.center.clone()
    whole(torch.full((2, 4), torch.nan), 0.1)
    whole.discard()
    whole.update()
    assert torch.equal(whole.center, before)


def test_only_the_centre_is_saved():
    assert set(Center(4, 0.9).state_dict()) == {"center"}
    assert make_centering("sinkhorn", 4, 0.9).state_dict() == {}


def test_targets_of_half_precision_logits_are_float32():
    logits = torch.rand(4, 8).bfloat16()
    for centering in (Center(8, 0.9), Sinkhorn()):
        targets = centering(logits, 0.04)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
