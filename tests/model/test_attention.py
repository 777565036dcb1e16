"""Attention: maps of the class token, and the form that a CPU takes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dinodomain.model import ModelPlan, VisionTransformer
from dinodomain.model.attention import class_attention
from dinodomain.model.block import attend


def test_weights_give_the_class_token_that_the_last_block_computes():
    torch.manual_seed(0)
    vit = VisionTransformer(ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=0), in_channels=1, ndim=2, image_size=16).eval()
    x = torch.randn(2, 1, 16, 24)
    weights = class_attention(vit, x)
    assert weights.shape == (2, 2, 2, 3)
    block, before = vit.blocks[1], vit.encode(x, layer=1)
    tokens = torch.cat([before.cls[:, None], before.patches], dim=1)
    value = block.attn.qkv(block.norm1(tokens))[..., 48:].view(2, 7, 2, 12)
    own = 1 - weights.flatten(2).sum(2)
    mixed = torch.einsum("nhp,nphd->nhd", weights.flatten(2), value[:, 1:]) + own[..., None] * value[:, 0]
    expected = block.attn(block.norm1(tokens).flatten(0, 1), ((2, 7),)).view(2, 7, 24)[:, 0]
    torch.testing.assert_close(block.attn.proj(mixed.flatten(1)), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_is_the_fused_one_to_its_rounding(autocast):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 41, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, fused = attend(query, key, value), functional.scaled_dot_product_attention(query, key, value)
    assert ours.dtype == fused.dtype == torch.bfloat16
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert (ours - exact).abs().max() < 0.03
    for one, other in zip(torch.autograd.grad(ours.sum(), (query, value)), torch.autograd.grad(exact.sum(), (query, value))):
        torch.testing.assert_close(one.float(), other.float(), atol=0.05, rtol=0.05)
