"""Attention maps of the class token."""

from __future__ import annotations

import torch

from dinodomain.model import ModelPlan, VisionTransformer
from dinodomain.model.attention import class_attention


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
