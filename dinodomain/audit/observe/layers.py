"""Pooled features of every block, class token and mean patch apart. n rows, E width."""

from __future__ import annotations

import numpy as np
import torch

from dinodomain.audit.observe.observer import Observer
from dinodomain.embed import token_weights


@torch.no_grad()
def look_at_layers(observer: Observer, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Features by block: ``block k, class`` and ``block k, patches`` to [n, E], raw; the last two are after the final norm.

    Args:
        observer: Shows the tiles.
        numbers: [n] rows of the whole audited set, sorted.
    """
    backbone = observer.backbone
    depth = backbone.vit.plan.depth
    out: dict[str, np.ndarray] = {}
    for rows, shown in observer.placed(numbers):
        weights = token_weights(shown.valid.cpu(), backbone.patch)
        weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, torch.ones_like(weights))
        for block in (*range(1, depth), None):
            found = backbone.encode(shown.pixels.to(backbone.device), layer=block, about=shown.about)
            mean = (found.patches.float().cpu() * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
            for part, values in (("class", found.cls.float().cpu()), ("patches", mean)):
                name = f"block {depth if block is None else block}, {part}"
                out.setdefault(name, np.zeros((len(numbers), values.shape[1]), np.float32))[rows] = values.numpy()
    return out
