"""Where the class token looks: the last block's attention, for figures. Not part of training or export."""

from __future__ import annotations

import torch
from torch import Tensor

from dinodomain.model.block import Block
from dinodomain.model.rope import turned
from dinodomain.model.vit import VisionTransformer
from dinodomain.types import Acquisition


@torch.no_grad()
def class_attention(vit: VisionTransformer, x: Tensor, about: Acquisition | None = None) -> Tensor:
    """Attention of the class token to the patches in the last block (Caron 2021, figure 1).

    Args:
        vit: The transformer, in evaluation mode.
        x: [N, C, *size] in the network's range.
        about: What is known of the images beside their pixels.

    Returns:
        [N, heads, *grid], each head's weights over class, registers and patches summing to at most 1 over the patches.
    """
    features = vit.encode(x, layer=vit.plan.depth - 1, about=about)
    tokens = torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)
    block = vit.blocks[-1]
    assert isinstance(block, Block)
    qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, block.attn.heads, -1))
    query, key = qkv[:, 0, 0], qkv[:, :, 1]  # the class token is not turned
    turn = vit.turn(x, about)
    key = key if turn is None else turned(key, turn)
    scores = torch.einsum("nhd,nthd->nht", query, key) / query.shape[-1] ** 0.5
    weights: Tensor = scores.softmax(dim=-1)[:, :, vit.num_prefix :]
    return weights.reshape(*weights.shape[:2], *features.grid)
