"""Objectives for attribution: one number per image, and Captum finds the pixels that make it, in 2-D and 3-D."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from dinodomain.audit import EncoderObjective
from dinodomain.errors import UserError
from dinodomain.types import Features

attr = pytest.importorskip("captum.attr")


class PatchEncoder(nn.Module):
    """Embeds each 4-pixel patch alone and averages: which pixels matter is known."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = (nn.Conv2d if ndim == 2 else nn.Conv3d)(1, 6, 4, stride=4)

    def encode(self, x, keep=None, layer=None):
        grid = self.embed(x)
        tokens = torch.tanh(grid.flatten(2).transpose(1, 2))
        return Features(cls=tokens.mean(dim=1), registers=tokens[:, :0], patches=tokens, grid=tuple(grid.shape[2:]))


@pytest.fixture(params=[2, 3])
def case(request):
    encoder = PatchEncoder(request.param)
    torch.manual_seed(1)
    images = 0.1 * torch.randn(3, 1, *[8] * request.param)
    images[..., :4] += 1.0  # the left half is bright
    return encoder, images


def objective(case, mode, **keys):
    width = 6 if mode == "token" else 12
    needs = {"probe": {"weight": torch.ones(width)}, "token": {"weight": torch.ones(width), "token": 0}}
    return EncoderObjective(case[0], mode, **(needs.get(mode, {}) | keys))


@pytest.mark.parametrize("mode", ["probe", "cosine", "label_free", "token"])
def test_every_mode_gives_one_number_per_image_with_gradients_to_the_pixels(case, mode):
    wrapped, images = objective(case, mode), case[1].requires_grad_()
    reference = wrapped.reference_of(images) if mode in ("cosine", "label_free") else None
    value = wrapped(images, reference)
    assert value.shape == (3,)
    value.sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_integrated_gradients_are_complete_for_the_probe(case):
    wrapped, images = objective(case, "probe"), case[1]
    found, gap = attr.IntegratedGradients(wrapped).attribute(images, n_steps=64, return_convergence_delta=True)
    assert found.shape == images.shape
    assert gap.abs().max() < 1e-2
    assert found[..., :4].abs().sum() > 2 * found[..., 4:].abs().sum()


@pytest.mark.parametrize("mode", ["cosine", "label_free"])
def test_captum_repeats_the_reference_with_its_images(case, mode):
    wrapped, images = objective(case, mode), case[1]
    reference = wrapped.reference_of(images)
    found, gap = attr.IntegratedGradients(wrapped).attribute(
        images, baselines=torch.full_like(images, 0.05), additional_forward_args=reference, n_steps=200, return_convergence_delta=True
    )
    assert found.shape == images.shape
    assert gap.abs().max() < 0.05


def test_occlusion_of_another_patch_leaves_a_token_unmoved(case):
    wrapped, images = objective(case, "token"), case[1]
    window = (1, *[4] * (images.ndim - 2))
    found = attr.Occlusion(wrapped).attribute(images, sliding_window_shapes=window, strides=window)
    own = found[(slice(None), slice(None), *[slice(0, 4)] * (images.ndim - 2))]
    assert own.abs().min() > 0
    assert found.abs().sum() == pytest.approx(float(own.abs().sum()))


def test_a_common_reference_equals_the_cosine_by_hand(case):
    encoder, images = case
    weight = torch.arange(12.0)
    wrapped = EncoderObjective(encoder, "cosine", weight=weight)
    torch.testing.assert_close(wrapped(images), cosine_similarity(wrapped.pooled(images), weight[None].expand(3, 12), dim=1))


def test_mistakes_are_told_in_one_message(case):
    encoder, images = case
    with pytest.raises(UserError, match="unknown 'saliency'; allowed: probe, cosine, label_free, token"):
        EncoderObjective(encoder, "saliency")
    with pytest.raises(UserError, match="missing for mode 'probe'"):
        EncoderObjective(encoder, "probe")
    with pytest.raises(UserError, match=r"allowed: \(12,\)"):
        EncoderObjective(encoder, "probe", weight=torch.ones(5))(images)
    with pytest.raises(UserError, match="pass reference_of"):
        EncoderObjective(encoder, "label_free")(images)
    with pytest.raises(UserError, match="token: 99; allowed: 0 to"):
        EncoderObjective(encoder, "token", weight=torch.ones(6), token=99)(images)
