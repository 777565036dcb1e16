"""The projection head, and the teacher as a moving average of the student."""

from __future__ import annotations

import copy

import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.model.heads import unit
from dinodomain.types import Normalisation

PLAN = ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=1, drop_path=0.2)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    normalisation = Normalisation(mode="domain", channels=("HU",), low=(-1000.0,), high=(1000.0,), mean=(0.4,), std=(0.2,))
    return Backbone.create(PLAN, ndim=2, image_size=32, normalisation=normalisation, domain="ct")


def head(seed: int = 1) -> Head:
    torch.manual_seed(seed)
    return Head(24, prototypes=32, hidden=40, bottleneck=12)


def test_logits_are_cosines_whatever_the_length_of_the_prototypes():
    ours = head()
    x = torch.randn(6, 24)
    logits = ours(x)
    assert logits.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        ours.prototypes.weight.mul_(7.0)
    torch.testing.assert_close(ours(x), logits)
    expected = torch.nn.functional.cosine_similarity(ours.mlp(x)[:, None], ours.prototypes.weight[None], dim=2)
    torch.testing.assert_close(logits, expected)


def test_head_equals_weight_normalisation_with_a_gain_of_one():
    ours = head()
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(12, 32, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1.0)
        layer.parametrizations.weight.original1.copy_(ours.prototypes.weight)
    x = torch.randn(5, 24)
    torch.testing.assert_close(ours(x), layer(torch.nn.functional.normalize(ours.mlp(x), dim=-1)))


@pytest.mark.parametrize("block", [1, 50, 10**6], ids=["row by row", "blocks", "one block"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-13), (torch.bfloat16, 1e-2)])
def test_unit_vectors_and_their_gradient_are_those_of_normalize(block, dtype, rtol, monkeypatch):
    monkeypatch.setattr("dinodomain.model.heads._BLOCK", block)
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Rows at the floor of 1e-6 and under it: nothing at all, a tenth of it, twice of it.
    x[0, :3] = torch.tensor([0.0, 1e-7, 2e-6], dtype=dtype)[:, None] * torch.nn.functional.one_hot(torch.tensor(2), 8).to(dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = unit(mine)
    plain = torch.nn.functional.normalize(theirs.to(ours.dtype), dim=-1, eps=1e-6)
    assert ours.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(ours, plain)
    weight = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).view(ours.shape)
    (ours * weight).sum().backward()
    (plain * weight).sum().backward()
    # Gradients grow as rows shrink, and their rounding with them.
    length = x.to(ours.dtype).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    torch.testing.assert_close(mine.grad * length, theirs.grad * length, rtol=rtol, atol=rtol)


def test_no_rows_have_no_unit_vectors():
    x = torch.zeros(0, 8, requires_grad=True)
    unit(x).sum().backward()
    assert x.grad.shape == (0, 8)


def test_head_state_holds_plain_tensors():
    assert set(head().state_dict()) == {
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
        "mlp.4.weight",
        "mlp.4.bias",
        "prototypes.weight",
    }


def test_tiny_features_are_normalised_in_float32_under_bfloat16():
    ours = head()
    with torch.no_grad():
        ours.mlp[-1].bias.fill_(1e-5)
        ours.mlp[-1].weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        embedded = ours.embed(torch.randn(3, 24))
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3), rtol=1e-2, atol=0)


def test_a_head_without_prototypes_is_refused():
    with pytest.raises(UserError, match=r"objective\.prototypes: is 0; allowed: at least 1"):
        Head(24, prototypes=0)


def test_teacher_starts_equal_takes_no_gradient_and_shares_no_memory(backbone):
    pair = Pair(backbone, head())
    for (name, student), teacher in zip(pair.student.named_parameters(), pair.teacher.parameters()):
        assert torch.equal(student, teacher), name
        assert student.data_ptr() != teacher.data_ptr()
        assert not teacher.requires_grad


def test_teacher_never_drops_paths(backbone):
    pair = Pair(backbone, head()).train()
    assert pair.student.backbone.training
    assert not any(module.training for module in pair.teacher.modules())
    pair.eval().train()
    assert not pair.teacher.training


def test_update_equals_the_plain_loop(backbone):
    pair = Pair(backbone, head())
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = copy.deepcopy(pair.teacher)
    for teacher, student in zip(expected.parameters(), pair.student.parameters()):
        teacher.data = 0.99 * teacher.data + (1 - 0.99) * student.data
    pair.update_teacher(0.99)
    for ours, plain in zip(pair.teacher.parameters(), expected.parameters()):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_momentum_one_keeps_and_zero_copies(backbone):
    pair = Pair(backbone, head())
    before = copy.deepcopy(pair.teacher.state_dict())
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(1.0)
    pair.update_teacher(1.0)
    assert all(torch.equal(value, before[name]) for name, value in pair.teacher.state_dict().items())
    pair.update_teacher(0.0)
    assert all(torch.equal(value, pair.student.state_dict()[name]) for name, value in pair.teacher.state_dict().items())


def test_the_mask_token_waits_for_no_gradient_where_nothing_is_masked(backbone):
    pair = Pair(backbone, head(), masks=False)
    assert not pair.student.backbone.vit.mask_token.requires_grad
