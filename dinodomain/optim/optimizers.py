"""The optimiser and gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dinodomain.optim.groups import Group
from dinodomain.optim.plan import OptimPlan
from dinodomain.parallel import all_reduce_sum, is_sharded, own_rows

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Where torch has a fused AdamW; on a CPU it takes a sixth of the time of the plain loop."""

EPS = 1e-6
"""Added to a norm before the limit is divided by it, as in torch's ``clip_grad_norm_``."""


def make_optimizer(groups: Sequence[Group], plan: OptimPlan) -> torch.optim.AdamW:
    """AdamW (Loshchilov 2019) over the groups; ``Schedules.apply`` sets rate and decay before each step.

    Args:
        groups: From ``parameter_groups``.
        plan: Betas, and first values of rate and decay.
    """
    fused = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    return torch.optim.AdamW(list(groups), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay[0], fused=fused)


@torch.no_grad()
def clip_gradients(
    modules: Mapping[str, nn.Module], max_norm: float, *, measured: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """Clips each sub-module's gradient by its own norm, as DINOv2 does, so that a wild head cannot silence the backbone.

    Every gradient is read once for its norm, whatever is asked about it, and written once.

    Args:
        modules: For example ``{"backbone": student.backbone, "head": student.head}``; they share no parameter.
        max_norm: Largest norm; 0 measures only.
        measured: Parts of them whose norms are told but not limited.

    Returns:
        The norm of each before clipping, as scalars on the device: nothing waits for them. Sharded gradients give the norm of the whole.
    """
    asked = {**modules, **(measured or {})}
    gradients = {id(parameter): parameter.grad for module in asked.values() for parameter in module.parameters()}
    own = {key: own_rows(gradient) for key, gradient in gradients.items() if gradient is not None}
    if not own:
        return {}
    each = dict(zip(own, torch._foreach_norm(list(own.values()))))
    members = {name: [key for parameter in module.parameters() if (key := id(parameter)) in own] for name, module in asked.items()}
    members = {name: keys for name, keys in members.items() if keys}
    norms = torch.stack([torch.linalg.vector_norm(torch.stack([each[key] for key in keys])) for keys in members.values()])
    if any(gradient is not None and is_sharded(gradient) for gradient in gradients.values()):
        norms = all_reduce_sum(norms.square()).sqrt()
    found = dict(zip(members, norms.unbind()))
    if max_norm > 0:
        for name in modules.keys() & found.keys():
            factor = (max_norm / (found[name] + EPS)).clamp_max(1.0)
            torch._foreach_mul_([own[key] for key in members[name]], factor)
    return found
