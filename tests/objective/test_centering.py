"""The moving centre and Sinkhorn-Knopp."""

from __future__ import annotations

import pytest
import torch

from dinodomain.objective.centering import ITERATIONS, Center, Sinkhorn, Taught, make_centering
from dinodomain.objective.reference import centred_softmax, sinkhorn_knopp


def part(logits: torch.Tensor, weight: torch.Tensor | None = None) -> Taught:
    """Points whose logits are these: the prototypes are the axes."""
    return Taught(logits, torch.eye(logits.shape[1], dtype=logits.dtype), weight)


def targets_of(centering, logits: torch.Tensor, temperature: float, weight: torch.Tensor | None = None) -> torch.Tensor:
    """All targets of one micro-batch."""
    return centering([part(logits, weight)], temperature)[0].form(slice(None))[0]


def published_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return sinkhorn_knopp(logits.double(), temperature, ITERATIONS)


@pytest.mark.parametrize("temperature", [0.04, 0.07, 0.5])
def test_sinkhorn_equals_the_published_sweeps(temperature):
    torch.manual_seed(0)
    logits = torch.rand(48, 128) * 2 - 1
    torch.testing.assert_close(
        targets_of(Sinkhorn(), logits, temperature), published_sinkhorn(logits, temperature).float(), rtol=1e-4, atol=1e-9
    )


def test_sinkhorn_in_float64_equals_the_published_sweeps_to_its_precision():
    logits = torch.rand(20, 30, dtype=torch.float64)
    ours = targets_of(Sinkhorn(), logits, 0.1)
    torch.testing.assert_close(ours, published_sinkhorn(logits, 0.1), rtol=1e-12, atol=0)


def test_sinkhorn_by_hand():
    # Two samples, two prototypes; the matrix [[a, 1], [1, a]] is doubly stochastic after one scaling.
    targets = targets_of(Sinkhorn(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1.0)
    share = torch.e / (1 + torch.e)
    torch.testing.assert_close(targets, torch.tensor([[share, 1 - share], [1 - share, share]]))


def test_sinkhorn_rows_sum_to_one_and_do_not_overflow():
    logits = torch.randn(16, 64) * 30  # far outside the cosines that a head gives
    targets = targets_of(Sinkhorn(), logits, 0.04)
    assert targets.isfinite().all()
    targets = targets_of(Sinkhorn(), torch.rand(16, 64) * 2 - 1, 0.04)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))


def test_rows_without_weight_count_for_nothing():
    torch.manual_seed(0)
    logits = torch.rand(10, 16)
    weight = torch.tensor([1.0] * 6 + [0.0] * 4)
    targets = targets_of(Sinkhorn(), logits, 0.1, weight)
    torch.testing.assert_close(targets[:6], targets_of(Sinkhorn(), logits[:6], 0.1))
    assert targets[6:].abs().sum() == 0
    weighted, plain = Center(16, 0.9), Center(16, 0.9)
    targets_of(weighted, logits, 0.1, weight)
    targets_of(plain, logits[:6], 0.1)
    weighted.update()
    plain.update()
    torch.testing.assert_close(weighted.center, plain.center)


def test_the_centre_is_a_moving_mean_that_moves_only_when_told():
    centering = Center(4, 0.9)
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    targets = targets_of(centering, logits, 0.5)
    torch.testing.assert_close(targets, torch.softmax(logits / 0.5, -1))
    assert centering.center.abs().sum() == 0
    centering.update()
    torch.testing.assert_close(centering.center, torch.full((4,), 0.2))
    torch.testing.assert_close(targets_of(centering, logits, 0.5), torch.softmax((logits - 0.2) / 0.5, -1))


def test_micro_batches_make_one_update_and_a_skipped_step_leaves_no_trace():
    torch.manual_seed(0)
    logits = torch.randn(8, 4)
    whole, parts = Center(4, 0.9), Center(4, 0.9)
    targets_of(whole, logits, 0.1)
    for rows in (slice(0, 2), slice(2, 8)):
        targets_of(parts, logits[rows], 0.1)
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.center, parts.center)
    before = whole.center.clone()
    targets_of(whole, torch.full((2, 4), torch.nan), 0.1)
    whole.discard()
    whole.update()
    assert torch.equal(whole.center, before)


def test_only_the_centre_is_saved():
    assert set(Center(4, 0.9).state_dict()) == {"center"}
    assert make_centering("sinkhorn", 4, 0.9).state_dict() == {}


def test_targets_of_half_precision_logits_are_float32():
    logits = torch.rand(4, 8).bfloat16()
    for centering in (Center(8, 0.9), Sinkhorn()):
        targets = targets_of(centering, logits, 0.04)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("method", ["softmax", "sinkhorn"])
def test_chunks_views_and_micro_batches_give_the_targets_of_the_whole(method, monkeypatch):
    torch.manual_seed(0)
    logits = torch.rand(12, 16)
    center = make_centering(method, 16, 0.9)
    whole = targets_of(center, logits, 0.1)
    plain = centred_softmax(logits, torch.zeros(16), 0.1) if method == "softmax" else published_sinkhorn(logits, 0.1).float()
    torch.testing.assert_close(whole, plain, rtol=1e-5, atol=1e-8)
    monkeypatch.setattr("dinodomain.objective.fused.CHUNK_BYTES", 1000)
    first, nobody, second = center([part(logits[:4]), part(logits[:0]), part(logits[4:])], 0.1)
    assert nobody.form(slice(None)).shape == (1, 0, 16)
    torch.testing.assert_close(torch.cat([first.form(slice(None))[0], second.form(slice(None))[0]]), whole, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(second.form(slice(1, 3), 2), whole[4:].view(2, 4, 16)[:, 1:3], rtol=1e-5, atol=1e-8)


def test_a_weightless_row_cannot_spoil_the_others():
    logits = torch.rand(6, 8)
    logits[5] = 30.0
    weight = torch.tensor([1.0] * 5 + [0.0])
    torch.testing.assert_close(targets_of(Sinkhorn(), logits, 0.05, weight)[:5], targets_of(Sinkhorn(), logits[:5], 0.05))
