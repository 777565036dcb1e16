"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads without this package. Images only.

Our parameter names and arithmetic are those of timm's ``VisionTransformer``, so the weights travel unchanged but for the mask token.
With rotary positions they are those of its ``Eva``, which calls LayerScale otherwise. Architectures are named for what timm lets no
argument say (packed SwiGLU, the epsilon of norms); every size is an argument.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dinodomain.errors import UserError, require
from dinodomain.export.inputs import input_facts
from dinodomain.lineage import Json
from dinodomain.model import Backbone, ModelPlan
from dinodomain.model.vit import without_mask_token

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"

_EPSILONS: Final[dict[bool, dict[float, str]]] = {
    False: {1e-6: "vit_tiny_patch16_224"},
    True: {1e-6: "vit_medium_patch16_rope_reg1_gap_256", 1e-5: "vit_small_patch16_dinov3"},
}
"""Architectures by what their norms add to the variance, without and with rotary positions."""


def timm_config(backbone: Backbone, provenance: Json) -> dict[str, Any]:
    """The ``config.json`` timm reads: architecture, its arguments, and input facts under ``pretrained_cfg``.

    Raises:
        UserError: timm cannot compute what this backbone does.
    """
    refuse_unknown(backbone)
    plan, sides = backbone.vit.plan, backbone.image_size
    architecture, own = _rotary(plan) if plan.position == "rope" else _plain(plan)
    arguments = {
        "img_size": sides[0],
        "patch_size": backbone.patch[0] if len(set(backbone.patch)) == 1 else list(backbone.patch),
        "in_chans": len(backbone.channels),
        "embed_dim": plan.dim,
        "depth": plan.depth,
        "num_heads": plan.heads,
        "init_values": plan.layer_scale or None,
        "num_classes": 0,
        "dynamic_img_size": True,
        **own,
    }
    facts = {
        "input_size": [len(backbone.channels), *sides],
        "fixed_input_size": False,
        "num_classes": 0,
        "interpolation": "bicubic",
        "mean": list(backbone.normalisation.mean),
        "std": list(backbone.normalisation.std),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": plan.dim,
        "model_args": arguments,
        "pretrained_cfg": facts,
        "dinodomain": {"spec": backbone.spec, "input": input_facts(backbone.normalisation), "lineage": provenance},
    }


def refuse_unknown(backbone: Backbone) -> None:
    """Refuses what timm has no class for, and names the key that asks for it.

    Raises:
        UserError: Volumes, crops that are not square, channels by wavelength, another epsilon of norms, or rotary positions of another
            kind than DINOv3's.
    """
    plan, sides = backbone.vit.plan, backbone.image_size
    width, found = plan.dim // plan.heads, ""
    if backbone.ndim != 2:
        raise UserError("format", "timm has no transformer for volumes", allowed="torch_export or safetensors for a 3-D backbone")
    if sides[0] != sides[1]:
        found = f"timm's config holds one image side, this backbone has {sides}"
    elif plan.channels != "fixed":
        found = f"timm has no patch embedding that tells channels apart (model.channels={plan.channels})"
    elif plan.norm_eps not in _EPSILONS[plan.position == "rope"]:
        found = f"timm has no such transformer whose norms add {plan.norm_eps:g} (model.norm_eps)"
    elif plan.position == "rope" and plan.rope_unit != "crop":
        found = f"timm's rotary positions span every crop alike, this backbone's do not (model.rope_unit={plan.rope_unit})"
    elif plan.position == "rope" and width % 4:
        found = f"timm's rotary positions need heads of a multiple of 4 channels, this backbone has {width} (model.dim / model.heads)"
    if found:
        raise UserError("format", found, allowed="torch_export or safetensors")


def _plain(plan: ModelPlan) -> tuple[str, dict[str, Any]]:
    own = {"reg_tokens": plan.registers, "no_embed_class": not plan.class_position}
    if plan.mlp == "gelu":
        return _EPSILONS[False][plan.norm_eps], own | {"mlp_ratio": plan.mlp_ratio}
    both = 2 * int(plan.dim * plan.mlp_ratio)  # timm's packed SwiGLU counts gate and value together, and rounds down
    ratio = both / plan.dim
    return "vit_giant_patch14_dinov2", own | {"mlp_ratio": ratio if int(plan.dim * ratio) == both else math.nextafter(ratio, math.inf)}


def _rotary(plan: ModelPlan) -> tuple[str, dict[str, Any]]:
    return _EPSILONS[True][plan.norm_eps], {
        "qkv_bias": True,
        "mlp_ratio": plan.mlp_ratio,
        "swiglu_mlp": plan.mlp == "swiglu",
        "class_token": True,
        "num_reg_tokens": plan.registers,
        "global_pool": "token",
        "use_fc_norm": False,
        "attn_type": "rope",
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "rope_temperature": plan.rope_base,
    }


def timm_weights(backbone: Backbone) -> dict[str, Tensor]:
    """Tensors under timm's names; the mask token is needed in pretraining only and stays behind."""
    state = {name.removeprefix("vit."): value for name, value in backbone.state_dict().items()}
    renamed = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"} if backbone.vit.rope is not None else {}
    for ours, theirs in renamed.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in without_mask_token(state).items()}


@torch.no_grad()
def timm_tokens(folder: Path, images: Tensor) -> Tensor:
    """Tokens [n, 1 + R + P, E] that timm computes from the exported folder."""
    timm = require("timm", extra="export", wanted_by="format=timm")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    tokens: Tensor = network.forward_features(images)
    return tokens
