"""The optimiser and gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dinodomain.optim.groups import Group
from dinodomain.optim.plan import OptimPlan

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Where torch has a fused AdamW; on a CPU it takes a sixth of the time of the plain loop."""


def make_optimizer(groups: Sequence[Group], plan: OptimPlan) -> torch.optim.AdamW:
    """AdamW (Loshchilov 2019) over the groups; ``Schedules.apply`` sets rate and decay before each step.

    Args:
        groups: From ``parameter_groups``.
        plan: Betas, and first values of rate and decay.
    """
    fused = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    return torch.optim.AdamW(list(groups), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay[0], fused=fused)


@torch.no_grad()
def clip_gradients(modules: Mapping[str, nn.Module], max_norm: float) -> dict[str, Tensor]:
    """Clips each sub-module's gradient by its own norm, as DINOv2 does, so that a wild head cannot silence the backbone.

    Args:
        modules: For example ``{"backbone": student.backbone, "head": student.head}``.
        max_norm: Largest norm; 0 measures only.

    Returns:
        The norm of each before clipping, as scalars on the device: nothing waits for them.
    """
    norms = {}
    for name, module in modules.items():
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        # An infinite limit scales by 1 (inf / norm, clamped), so measuring and clipping are one path.
        norms[name] = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
    return norms
