"""The fused losses against the plain ones: values and gradients, chunk by chunk, and what they never do."""

from __future__ import annotations

import pytest
import torch

from dinodomain.objective import reference
from dinodomain.objective.centering import Taught, by_view, make_centering
from dinodomain.objective.dino import dino_loss
from dinodomain.objective.fused import chunk_rows
from dinodomain.objective.ibot import ibot_loss

K, D, T = 96, 12, 0.1


def unit(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def compare(ours, plain, inputs, rtol):
    torch.testing.assert_close(ours, plain.to(ours.dtype), rtol=rtol, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours * 3, inputs), torch.autograd.grad(plain * 3, inputs)):
        assert float((mine - theirs).norm() / theirs.norm()) < rtol


@pytest.fixture(params=[10**9, 20_000, 1], ids=["one chunk", "chunks", "row by row"])
def budget(request, monkeypatch):
    monkeypatch.setattr("dinodomain.objective.fused.CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("num_global", "num_local"), [(2, 3), (1, 2), (3, 0)])
def test_dino_is_the_plain_loss_with_its_gradients(centering, dtype, rtol, num_global, num_local):
    views, batch = num_global + num_local, 5
    z, w = unit(views, batch, D, dtype=dtype).requires_grad_(), unit(K, D, dtype=dtype, seed=1).requires_grad_()
    taught = Taught(unit(num_global * batch, D, dtype=dtype, seed=2), unit(K, D, dtype=dtype, seed=3))
    targets = make_centering(centering, K, 0.9).to(dtype)([taught], 0.05)[0]
    ours = dino_loss(z, w, targets, T, num_global=num_global, local_weight=0.5)
    whole = targets.form(slice(None), num_global)
    plain = reference.dino_loss(z @ w.T, whole, T)
    compare(ours.total, plain.glob + 0.5 * plain.local, (z, w), rtol)
    torch.testing.assert_close(ours.glob + ours.local, ours.total.detach())
    torch.testing.assert_close(ours.local, 0.5 * plain.local.detach())
    torch.testing.assert_close(ours.mean, whole.mean((0, 1)))
    torch.testing.assert_close(ours.entropy, torch.special.entr(whole).sum(-1).mean())


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_ibot_is_the_plain_loss_with_its_gradients(centering, dtype, rtol):
    z, w = unit(7, D, dtype=dtype).requires_grad_(), unit(K, D, dtype=dtype, seed=1).requires_grad_()
    weight = torch.tensor([1, 0.5, 0.5, 0, 1 / 3, 1 / 3, 1 / 3], dtype=dtype)
    taught = Taught(unit(7, D, dtype=dtype, seed=2), unit(K, D, dtype=dtype, seed=3), (weight > 0).to(dtype))
    targets = make_centering(centering, K, 0.9).to(dtype)([taught], 0.05)[0]
    ours = ibot_loss(z, w, targets, weight, 4, T)
    compare(ours, reference.ibot_loss(z @ w.T, targets.form(slice(None))[0], weight, 4, T), (z, w), rtol)


def test_one_head_for_both_losses_gets_the_sum_of_their_gradients():
    z, w = unit(6, D).requires_grad_(), unit(K, D, seed=1).requires_grad_()
    targets = make_centering("softmax", K, 0.9)([Taught(unit(2, D, seed=2), unit(K, D, seed=3))] * 1, 0.05)[0]

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        return dino_loss(by_view(z[:4], 4), w, targets, T, num_global=2).total, ibot_loss(z[4:], w, targets, torch.ones(2), 2, T)

    apart = [torch.autograd.grad(loss, w)[0] for loss in losses()]
    sum(losses()).backward()
    torch.testing.assert_close(w.grad, apart[0] + apart[1])
    assert z.grad.abs().amax(1).gt(0).all()


def test_gradients_are_scaled_once_and_a_second_pass_is_refused():
    z, w = unit(4, D).requires_grad_(), unit(K, D, seed=1).requires_grad_()
    loss = ibot_loss(z, w, make_centering("softmax", K, 0.9)([Taught(unit(4, D, seed=2), w.detach())], 0.05)[0], torch.ones(4), 4, T)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_masked_patch_gives_no_loss_and_no_gradient():
    z, w = unit(1, D)[:0].requires_grad_(), unit(K, D).requires_grad_()
    targets = make_centering("sinkhorn", K, 0.9)([Taught(unit(1, D)[:0], unit(K, D))], 0.05)[0]
    loss = ibot_loss(z, w, targets, torch.zeros(0), 4, T)
    loss.backward()
    assert loss.item() == 0.0
    assert w.grad.abs().sum() == 0


def test_gradients_that_nobody_needs_are_not_made():
    z, w = unit(4, D), unit(K, D, seed=1).requires_grad_()
    targets = make_centering("softmax", K, 0.9)([Taught(unit(4, D, seed=2), unit(K, D, seed=3))], 0.05)[0]
    ibot_loss(z, w, targets, torch.ones(4), 4, T).backward()
    assert z.grad is None
    with torch.no_grad():
        assert not ibot_loss(z.requires_grad_(), w, targets, torch.ones(4), 4, T).requires_grad


def test_under_autocast_products_are_bfloat16_and_the_loss_float32():
    z, w = unit(64, D).requires_grad_(), unit(K, D, seed=1).requires_grad_()
    taught = [Taught(unit(64, D, seed=2), unit(K, D, seed=3))]
    full = ibot_loss(z, w, make_centering("softmax", K, 0.9)(taught, 0.05)[0], torch.ones(64), 64, T)
    with torch.autocast("cpu", torch.bfloat16):
        half = ibot_loss(z, w, make_centering("softmax", K, 0.9)(taught, 0.05)[0], torch.ones(64), 64, T)
    assert half.dtype == torch.float32
    assert 0 < abs(half.item() - full.item()) < 0.02 * full.item()
    half.backward()
    assert w.grad.dtype == z.grad.dtype == torch.float32


def test_no_tensor_of_all_rows_and_prototypes_is_ever_made(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    rows, largest = 400, 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr("dinodomain.objective.fused.CHUNK_BYTES", 100_000)
    z, w = unit(rows, D).requires_grad_(), unit(K, D, seed=1).requires_grad_()
    with Sizes():
        targets = make_centering("softmax", K, 0.9)([Taught(unit(rows, D, seed=2), unit(K, D, seed=3))], 0.05)[0]
        ibot_loss(z, w, targets, torch.ones(rows), rows, T).backward()
    assert largest <= chunk_rows(K, 3) * K < rows * K
