"""KoLeo, and the plain DINO and iBOT losses, which test_fused holds the fast ones to, against hand-derived values and float64 twins."""

from __future__ import annotations

import math

import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.objective.dino import num_terms
from dinodomain.objective.koleo import koleo_counts, koleo_loss
from dinodomain.objective.reference import cross_entropy, dino_loss, ibot_loss


def plain_dino(student: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean over all pairs of different views, one pair at a time, in float64."""
    losses = []
    for t, target in enumerate(targets.double()):
        for s, logits in enumerate(student.double()):
            if s != t:
                losses.append(-(target * torch.log_softmax(logits / temperature, dim=-1)).sum(-1).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 8), (2, 0), (1, 3), (3, 2)])
def test_dino_equals_the_mean_over_pairs_and_has_its_gradient(num_global, num_local):
    torch.manual_seed(0)
    student = torch.rand(num_global + num_local, 5, 64).mul(2).sub(1).requires_grad_()
    targets = torch.softmax(torch.randn(num_global, 5, 64) * 5, dim=-1)
    loss = dino_loss(student, targets, 0.1)
    twin = plain_dino(student, targets, 0.1)
    assert (loss.glob + loss.local).item() == pytest.approx(twin.item(), rel=1e-6)
    ours = torch.autograd.grad(loss.glob + loss.local, student, retain_graph=True)[0]
    theirs = torch.autograd.grad(twin, student)[0]
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-7)


def test_dino_by_hand():
    # One sample, two prototypes, temperature 1. Targets are one-hot, so a cross-entropy is a log-sum-exp less one logit.
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    student = torch.tensor([[[0.0, 1.0]], [[2.0, 0.0]], [[1.0, 1.0]]])
    loss = dino_loss(student, targets, 1.0)
    # Student global 0 against teacher 1, student global 1 against teacher 0, the local view against both: 4 pairs.
    first, second = math.log(1 + math.e) - 1, math.log(1 + math.e**2) - 2
    assert loss.glob.item() == pytest.approx((first + second) / 4, abs=1e-6)
    assert loss.local.item() == pytest.approx(2 * math.log(2) / 4, abs=1e-6)


def test_terms_of_the_published_crops():
    assert num_terms(2, 8) == 18
    with pytest.raises(UserError, match="1 global and 0 local views make no pair"):
        num_terms(1, 0)


def test_uniform_targets_and_logits_cost_log_k():
    assert cross_entropy(torch.zeros(3, 50), torch.full((3, 50), 1 / 50), 0.1).tolist() == pytest.approx([math.log(50)] * 3)


def test_cross_entropy_of_bfloat16_logits_is_taken_in_float32():
    logits = torch.randn(4, 4096).bfloat16()
    targets = torch.softmax(torch.randn(4, 4096), -1)
    loss = cross_entropy(logits, targets, 0.1)
    assert loss.dtype == torch.float32
    twin = -(targets.double() * torch.log_softmax(logits.double() / 0.1, -1)).sum(-1)
    torch.testing.assert_close(loss, twin.float(), rtol=1e-5, atol=1e-5)


def test_ibot_equals_a_loop_over_crops():
    torch.manual_seed(0)
    counts = [3, 0, 5, 1]
    student, targets = torch.randn(9, 32), torch.softmax(torch.randn(9, 32), -1)
    weight = torch.cat([torch.full((count,), 1 / max(count, 1)) for count in counts])
    total, first = torch.zeros((), dtype=torch.float64), 0
    for count in counts:
        rows = slice(first, first + count)
        if count:
            logs = torch.log_softmax(student[rows].double() / 0.1, -1)
            total += -(targets[rows].double() * logs).sum(-1).mean()
        first += count
    loss = ibot_loss(student, targets, weight, len(counts), 0.1)
    assert loss.item() == pytest.approx(total.item() / 4, rel=1e-6)


def test_ibot_by_hand_and_without_masked_patches():
    # Two crops, one masked patch each; K = 2, uniform student: log 2 for each crop.
    loss = ibot_loss(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.ones(2), 2, 0.1)
    assert loss.item() == pytest.approx(math.log(2))
    assert ibot_loss(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0), 4, 0.1).item() == 0.0


def test_koleo_by_hand():
    # Points at 0, 90 and 180 degrees: every nearest neighbour is sqrt(2) away, so the loss is -log(sqrt(2)).
    points = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]])
    assert koleo_loss(points).item() == pytest.approx(-0.5 * math.log(2), abs=1e-6)


def test_koleo_equals_a_loop_in_float64_summed_over_views():
    torch.manual_seed(0)
    features = torch.randn(2, 7, 16)
    expected = 0.0
    for view in torch.nn.functional.normalize(features.double(), dim=-1):
        distances = torch.cdist(view, view) + torch.eye(7) * 9
        expected -= (distances.amin(1) + 1e-8).log().mean().item()
    assert koleo_loss(features).item() == pytest.approx(expected, rel=1e-6)


def test_koleo_of_duplicates_is_finite_with_a_finite_gradient():
    features = torch.ones(1, 4, 8).requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_koleo_of_one_sample_is_zero():
    assert koleo_loss(torch.randn(2, 1, 8)).item() == 0.0


def test_koleo_under_bfloat16_is_taken_in_float32():
    features = torch.randn(1, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo_loss(features).item() == pytest.approx(koleo_loss(features).item())
        assert koleo_loss(features.bfloat16()).dtype == torch.float32


def test_koleo_leaves_out_crops_without_content():
    torch.manual_seed(0)
    features = torch.randn(1, 6, 8).requires_grad_()
    valid = torch.tensor([[True, True, False, True, True, False]])
    loss = koleo_loss(features, valid)
    torch.testing.assert_close(loss, koleo_loss(features[:, valid[0]]))
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient[0, ~valid[0]].abs().sum() == 0


def test_koleo_of_unequal_parts_has_the_mean_of_all():
    """Two micro-batches of 4 and 2 valid crops, a third with a lone one that has no neighbour: exact counts weigh all crops alike."""
    torch.manual_seed(0)
    parts = [torch.randn(1, 4, 8) for _ in range(3)]
    valid = [torch.arange(4)[None] < number for number in (4, 2, 1)]
    counts = [koleo_counts(one) for one in valid]
    assert [one.item() for one in counts] == [4, 2, 0]
    share = torch.stack(counts).sum(0) / 3
    ours = torch.stack([koleo_loss(x, one, share) for x, one in zip(parts, valid)]).mean()
    plain = (4 * koleo_loss(parts[0]) + 2 * koleo_loss(parts[1][:, :2])) / 6
    torch.testing.assert_close(ours, plain)
