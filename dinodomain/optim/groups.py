"""Parameters sorted into groups by weight decay, by depth, and by what may be frozen for a while."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from dinodomain.optim.plan import OptimPlan

Group = dict[str, Any]
"""params, name, lr_scale, wd_scale (0 or 1), last_layer, backbone."""

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed\.|pos_embed$|cls_token$|reg_token$|mask_token$)")
_PATCH = re.compile(r"(?:^|\.)patch_embed\.")
_BACKBONE = re.compile(r"(?:^|\.)backbone\.")
_TOKEN = re.compile(r"(?:^|\.)(?:pos_embed|cls_token|reg_token|mask_token|patch_embed\.query|by_name)$")
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WORDS = ("no_decay", "last_layer", "patch", "backbone")
_LAST_LAYER = re.compile(r"(?:^|\.)prototypes\.")


def parameter_groups(module: nn.Module, plan: OptimPlan) -> list[Group]:
    """Puts every trainable parameter into exactly one group.

    No weight decay on biases, norms, LayerScale gains, positions and tokens (DINO, DINOv2). Learning-rate scale
    layer_decay ** (depth + 1 - i) with i = 0 for embeddings, k + 1 for block k and depth + 1 for the final norm and heads
    (BEiT, Bao 2022); that of the patch embedding is multiplied by ``patch_lr`` besides (DINOv2, DINOv3). Names may carry the prefixes of
    compiled and wrapped modules.

    Args:
        module: Usually ``pair.student``.
        plan: For its ``layer_decay`` and ``patch_lr``.

    Returns:
        Groups in a fixed order, for ``make_optimizer``.
    """
    named = [(_clean(name), parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    depth = 1 + max((int(found[1]) for name, _ in named if (found := _BLOCK.search(name))), default=-1)
    groups: dict[tuple[int, bool, bool, bool, bool], Group] = {}
    for name, parameter in named:
        level = _level(name, depth) if plan.layer_decay != 1.0 else depth + 1
        decays, last = parameter.ndim > 1 and not _TOKEN.search(name), bool(_LAST_LAYER.search(name))
        # Groups that no key tells apart stay one: fewer groups are fewer kernels.
        patch, backbone = plan.patch_lr != 1.0 and bool(_PATCH.search(name)), plan.freeze_backbone > 0 and bool(_BACKBONE.search(name))
        key = (level, decays, last, patch, backbone)
        if key not in groups:
            groups[key] = {
                "params": [],
                "name": f"level{level}" + "".join(f".{word}" for word, holds in zip(_WORDS, (not decays, last, patch, backbone)) if holds),
                "lr_scale": plan.layer_decay ** (depth + 1 - level) * (plan.patch_lr if patch else 1.0),
                "wd_scale": 1.0 if decays else 0.0,
                "last_layer": last,
                "backbone": backbone,
            }
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _clean(name: str) -> str:
    """A parameter's name without what compilation, data parallelism and activation checkpointing put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _level(name: str, depth: int) -> int:
    found = _BLOCK.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if _EMBEDDING.search(name) else depth + 1
