"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads without this package. Images only.

Our parameter names and arithmetic are those of timm's ``VisionTransformer``, so the weights travel unchanged but for the mask token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dinodomain.errors import UserError, require
from dinodomain.export.inputs import input_facts
from dinodomain.lineage import Json
from dinodomain.model import Backbone
from dinodomain.model.vit import without_mask_token

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"


def timm_config(backbone: Backbone, provenance: Json) -> dict[str, Any]:
    """The ``config.json`` timm reads: architecture, its arguments, and input facts under ``pretrained_cfg``.

    Raises:
        UserError: The backbone is for volumes or for crops that are not square.
    """
    plan, sides = backbone.vit.plan, backbone.image_size
    if backbone.ndim != 2:
        raise UserError("format", "timm has no transformer for volumes", allowed="torch_export or safetensors for a 3-D backbone")
    if sides[0] != sides[1]:
        raise UserError("format", f"timm's config holds one image side, this backbone has {sides}", allowed="torch_export or safetensors")
    arguments = {
        "img_size": sides[0],
        "patch_size": plan.patch,
        "in_chans": len(backbone.channels),
        "embed_dim": plan.dim,
        "depth": plan.depth,
        "num_heads": plan.heads,
        "mlp_ratio": plan.mlp_ratio,
        "reg_tokens": plan.registers,
        "init_values": plan.layer_scale or None,
        "no_embed_class": not plan.class_position,
        "num_classes": 0,
        "dynamic_img_size": True,
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
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": plan.dim,
        "model_args": arguments,
        "pretrained_cfg": facts,
        "dinodomain": {"spec": backbone.spec, "input": input_facts(backbone.normalisation), "lineage": provenance},
    }


def timm_weights(backbone: Backbone) -> dict[str, Tensor]:
    """Tensors under timm's names; the mask token is needed in pretraining only and stays behind."""
    state = {name.removeprefix("vit."): value for name, value in backbone.state_dict().items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in without_mask_token(state).items()}


@torch.no_grad()
def timm_tokens(folder: Path, images: Tensor) -> Tensor:
    """Tokens [n, 1 + R + P, E] that timm computes from the exported folder."""
    timm = require("timm", extra="export", wanted_by="format=timm")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    tokens: Tensor = network.forward_features(images)
    return tokens
