"""Gram anchoring: by hand, against plain autograd in float64, in blocks, without invalid patches."""

from __future__ import annotations

import pytest
import torch

from dinodomain.objective.gram import blocks, gram_loss


def plain(student: torch.Tensor, anchor: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    losses = []
    for own, held, real in zip(student, anchor, valid):
        if real.any():
            x, y = (torch.nn.functional.normalize(tokens[real].double(), dim=-1) for tokens in (own, held))
            losses.append((x @ x.T - y @ y.T).square().mean())
    return torch.stack(losses).mean()


def test_by_hand():
    # The student's two patches are alike, the anchor's at right angles: of the four cosines two differ by 1, the mean square is 1/2.
    loss = gram_loss(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]))
    assert loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize("budget", [10**9, 2000, 1])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_value_and_gradient_are_those_of_autograd_in_any_blocks(budget, dtype, rtol, monkeypatch):
    monkeypatch.setattr("dinodomain.objective.gram.CHUNK_BYTES", budget)
    torch.manual_seed(0)
    student, anchor = torch.randn(5, 9, 6, dtype=dtype).requires_grad_(), torch.randn(5, 9, 4, dtype=dtype)
    valid = torch.rand(5, 9) > 0.3
    valid[2] = False
    loss, twin = gram_loss(student, anchor, valid), plain(student, anchor, valid)
    torch.testing.assert_close(loss.double(), twin, rtol=rtol, atol=0)
    mine, theirs = torch.autograd.grad(loss * 2, student)[0], torch.autograd.grad(twin * 2, student)[0]
    assert float((mine - theirs).norm() / theirs.norm()) < rtol
    assert mine[~valid].abs().sum() == 0


def test_nothing_valid_costs_nothing():
    student = torch.randn(2, 3, 4).requires_grad_()
    loss = gram_loss(student, torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.abs().sum() == 0


def test_autocast_changes_nothing():
    student, anchor = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_loss(student, anchor), gram_loss(student, anchor))
        half = gram_loss(student, anchor)
    assert torch.equal(half, gram_loss(student, anchor))


def test_blocks_cover_every_row_once_within_the_budget(monkeypatch):
    monkeypatch.setattr("dinodomain.objective.gram.CHUNK_BYTES", 3 * 4 * 100 * 30)
    for images, patches in [(7, 10), (3, 100), (2, 1000)]:
        covered = torch.zeros(images, patches)
        for some, rows in blocks(images, patches, 4):
            covered[some, rows] += 1
            assert covered[some, rows].numel() * patches <= max(100 * 30, patches)
        assert (covered == 1).all()
