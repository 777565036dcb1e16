"""Whose parameter names are these? Renames the weights of DINO, DINOv2 and DINOv3 backbones to our names, whoever wrote them.

Known are Meta's releases and training checkpoints, timm's models, Hugging Face's ``ViTModel``, ``Dinov2Model``,
``Dinov2WithRegistersModel`` and ``DINOv3ViTModel`` (old and new names), and our own. Names only, and what follows from them; no network is
touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.model.fuse import fuse

Layout = Literal["dinodomain", "meta", "timm", "hf"]
Family = Literal["dino", "dinov2", "dinov3"]

_OURS = frozenset({"dinodomain", "meta", "timm"})  # we keep timm's names, which are Meta's where both have one
_ALL = _OURS | {"hf"}
_META, _TIMM, _HF = frozenset({"meta"}), frozenset({"timm"}), frozenset({"hf"})

_WRAPPERS: Final = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_HOLDERS: Final = ("backbone", "model", "base_model", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3", "encoder")
_AVERAGED: Final = ("teacher", "ema", "model_ema", "teacher_backbone")
_HEADS: Final = re.compile(r"^(?:head|heads|dino_head|ibot_head|patch_head|classifier|fc|linear_head|gram_backbone|decode_head|pooler)\.")

_CHANNELS = ("by_name", "by_wave.0", "by_wave.2")

_TOP: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "cls_token": ("cls_token", _OURS),
    "pos_embed": ("pos_embed", _OURS),
    "mask_token": ("mask_token", _META | {"dinodomain"}),
    "reg_token": ("reg_token", _TIMM | {"dinodomain"}),
    "register_tokens": ("reg_token", _META),
    "storage_tokens": ("reg_token", _META),
    "patch_embed.proj": ("patch_embed.proj", _OURS),
    "norm": ("norm", _ALL),
    **{f"patch_embed.{name}": (f"patch_embed.{name}", frozenset({"dinodomain"})) for name in ("key", "value", "out", "query")},
    **{f"patch_embed.channel.{name}": (f"patch_embed.channel.{name}", frozenset({"dinodomain"})) for name in _CHANNELS},
    "embeddings.cls_token": ("cls_token", _HF),
    "embeddings.position_embeddings": ("pos_embed", _HF),
    "embeddings.mask_token": ("mask_token", _HF),
    "embeddings.register_tokens": ("reg_token", _HF),
    "embeddings.patch_embeddings.projection": ("patch_embed.proj", _HF),
    "embeddings.patch_embeddings": ("patch_embed.proj", _HF),
    "layernorm": ("norm", _HF),
}

_INSIDE: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "norm1": ("norm1", _ALL),
    "norm2": ("norm2", _ALL),
    "attn.qkv": ("attn.qkv", _OURS),
    "attn.qkv.bias_mask": ("attn.qkv.bias_mask", _META),
    "attn.proj": ("attn.proj", _OURS),
    "attn.q_bias": ("attn.q.bias", _TIMM),
    "attn.k_bias": ("attn.k.bias", _TIMM),
    "attn.v_bias": ("attn.v.bias", _TIMM),
    "ls1.gamma": ("ls1.gamma", _OURS),
    "ls2.gamma": ("ls2.gamma", _OURS),
    "gamma_1": ("ls1.gamma", _TIMM),
    "gamma_2": ("ls2.gamma", _TIMM),
    "mlp.fc1": ("mlp.fc1", _ALL),
    "mlp.fc2": ("mlp.fc2", _ALL),
    "mlp.w12": ("mlp.fc1", _META),
    "mlp.w1": ("mlp.gate", _META),
    "mlp.w2": ("mlp.up", _META),
    "mlp.w3": ("mlp.fc2", _META),
    "mlp.fc1_g": ("mlp.gate", _TIMM),
    "mlp.fc1_x": ("mlp.up", _TIMM),
    "layernorm_before": ("norm1", _HF),
    "layernorm_after": ("norm2", _HF),
    "attention.output.dense": ("attn.proj", _HF),
    "attention.o_proj": ("attn.proj", _HF),
    **{f"attn.{one}_proj": (f"attn.{one}", _TIMM) for one in "qkv"},
    **{f"attention.{one}_proj": (f"attn.{one}", _HF) for one in "qkv"},
    **{f"attention.attention.{name}": (f"attn.{name[0]}", _HF) for name in ("query", "key", "value")},
    "layer_scale1.lambda1": ("ls1.gamma", _HF),
    "layer_scale2.lambda1": ("ls2.gamma", _HF),
    "intermediate.dense": ("mlp.fc1", _HF),
    "output.dense": ("mlp.fc2", _HF),
    "mlp.weights_in": ("mlp.fc1", _HF),
    "mlp.weights_out": ("mlp.fc2", _HF),
    "mlp.gate_proj": ("mlp.gate", _HF),
    "mlp.up_proj": ("mlp.up", _HF),
    "mlp.down_proj": ("mlp.fc2", _HF),
}

# Meta's training shards number blocks twice: blocks.<shard>.<block>.
_BLOCK: Final = re.compile(r"^(?:blocks\.(?:\d+\.)?|(?:encoder\.|model\.)?layers?\.)(\d+)\.(.+)$")
_LEAF: Final = re.compile(r"^(.+)\.(weight|bias)$")

_KNOWN_UNUSED: Final[Mapping[str, str]] = {
    "rope_embed.periods": "RoPE's periods are computed from model.rope_base",
    "rope_embed.inv_freq": "RoPE's periods are computed from model.rope_base",
    "rope_embeddings.inv_freq": "RoPE's periods are computed from model.rope_base",
    "local_cls_norm": "a norm of local crops' class tokens, used in their training only",
    "cls_norm": "a norm of class tokens alone; ours is one for all tokens, so class tokens come out differently",
    "fc_norm": "a norm after pooling, which belongs to a classifier",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A backbone's weights under our names.

    Attributes:
        layout: Whose names they had.
        family: Whose architecture it is.
        tensors: Our names to tensors. ``pos_embed`` is as it was found; positions of class tokens are still in it.
        origins: Our names to the names in the file.
        unused: Names in the file that have no place in a backbone of ours, with the reason.
        facts: What else the names tell: ``rope_base``.
    """

    layout: Layout
    family: Family
    tensors: Mapping[str, Tensor]
    origins: Mapping[str, tuple[str, ...]]
    unused: Mapping[str, str]
    facts: Mapping[str, float]


def rename(state: Mapping[str, Tensor], *, wanted: str = "any", place: str = "start.weights") -> Renamed:
    """Recognises a layout and renames its tensors.

    Args:
        state: One flat state dict; prefixes of wrappers and of models that hold the backbone may stand before every name.
        wanted: A layout that it has to be, or ``any``.
        place: Where the weights lie, for messages.

    Raises:
        UserError: No known layout, or another than wanted.
    """
    stripped, unused = _strip(state)
    named: dict[str, str] = {}
    layouts, parts = set(_ALL), dict[str, Tensor]()
    for short, full in stripped.items():
        target, signs = _target(short)
        if target is None:
            unused[full] = _why_unused(short)
            continue
        if target in parts:
            raise UserError(place, f"{full!r} and {named[target]!r} both are {target!r}", remedy="give the state of one backbone")
        layouts &= signs
        parts[target], named[target] = state[full], full
    layout = _choose(layouts, wanted, parts, place)
    tensors, origins = fuse(parts, named)
    return Renamed(
        layout=layout, family=_family(tensors, stripped), tensors=tensors, origins=origins, unused=unused, facts=_facts(stripped, state)
    )


def _strip(state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Short names to full ones, without wrappers and holders; of a student and its average, the average."""
    short = {full: ".".join(part for part in full.split(".") if part not in _WRAPPERS) for full in state}
    unused: dict[str, str] = {}
    averaged = [branch for branch in _AVERAGED if any(name.startswith(f"{branch}.") for name in short.values())]
    if averaged:
        unused = {full: f"not of the {averaged[0]}" for full, name in short.items() if not name.startswith(f"{averaged[0]}.")}
        short = {full: name[len(averaged[0]) + 1 :] for full, name in short.items() if full not in unused}
    elif any(name.startswith("student.") for name in short.values()):
        short = {full: name.removeprefix("student.") for full, name in short.items()}
    while (holder := _holder(short.values())) is not None:
        for full, name in short.items():
            if not name.startswith(f"{holder}."):
                unused[full] = "a head of their training or use" if _HEADS.match(name) else f"outside of {holder!r}"
        short = {full: name.removeprefix(f"{holder}.") for full, name in short.items() if name.startswith(f"{holder}.")}
    return {name: full for full, name in short.items()}, unused


def _holder(names: Iterable[str]) -> str | None:
    """The module that holds the backbone, where the names do not begin with the backbone itself."""
    names = list(names)
    if any(_target(name)[0] is not None for name in names if not name.startswith("norm.")):
        return None
    inner = [holder for holder in _HOLDERS if any(name.startswith(f"{holder}.") for name in names)]
    return inner[0] if inner else None


def _target(name: str) -> tuple[str | None, frozenset[str]]:
    found = _BLOCK.match(name)
    if found:
        renamed, signs = _look_up(found[2], _INSIDE)
        return (f"blocks.{found[1]}.{renamed}" if renamed else None), signs
    return _look_up(name, _TOP)


def _look_up(name: str, table: Mapping[str, tuple[str, frozenset[str]]]) -> tuple[str | None, frozenset[str]]:
    if name in table:
        return table[name]
    leaf = _LEAF.match(name)
    if leaf and leaf[1] in table:
        renamed, signs = table[leaf[1]]
        return f"{renamed}.{leaf[2]}", signs
    return None, _ALL


def _why_unused(name: str) -> str:
    for known, why in _KNOWN_UNUSED.items():
        if name == known or name.startswith(f"{known}."):
            return why
    return "a head of their training or use" if _HEADS.match(name) else "unknown name"


def _choose(layouts: set[str], wanted: str, parts: Mapping[str, Tensor], place: str) -> Layout:
    if wanted != "any" and wanted not in layouts:
        found = " or ".join(sorted(layouts)) or "a mixture of several layouts"
        raise UserError(
            "start.layout", f"is {wanted!r}, the names in {place} are those of {found}", remedy="start.layout=any recognises them"
        )
    if not layouts:
        raise UserError(place, "mixes the names of several layouts", remedy="give the state of one backbone")
    if wanted != "any":
        return wanted  # type: ignore[return-value]  # the plan's own check
    order: tuple[Layout, ...] = ("hf", "meta", "timm", "dinodomain")
    if layouts >= {"timm", "meta"} and "mask_token" not in parts:
        order = ("timm", "meta", "hf", "dinodomain")  # same names; Meta's DINOv2 has a mask token
    return next(one for one in order if one in layouts)


def _family(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Family:
    scaled = any(name.endswith("ls1.gamma") for name in tensors)
    if "pos_embed" not in tensors and scaled:
        return "dinov3"
    return "dinov2" if scaled or "reg_token" in tensors else "dino"


def _facts(short: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, float]:
    """DINOv3's periods are base ** (k / n) for k = 0 .. n - 1 (Simeoni 2025)."""
    full = short.get("rope_embed.periods")
    periods = state[full].double() if full is not None else None
    if periods is None or len(periods) < 2 or not bool(periods.isfinite().all()) or float(periods.min()) <= 0:
        return {}
    base = float((periods[1:] / periods[:-1]).log().mean().mul(len(periods)).exp())
    return {"rope_base": float(f"{base:.2g}")}  # released in bfloat16, which holds two digits
