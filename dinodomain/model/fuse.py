"""Separate matrices that we keep as one: queries, keys and values; a gate and its twin. Names are ours, see ``layouts``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def block_numbers(names: Iterable[str]) -> set[int]:
    """Numbers of the blocks that renamed tensors belong to."""
    return {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}


def fuse(parts: Mapping[str, Tensor], named: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """One matrix for queries, keys and values, one for a gate and its twin; whatever is whole already stays."""
    tensors = dict(parts)
    origins: dict[str, tuple[str, ...]] = {name: (full,) for name, full in named.items()}
    for number in sorted(block_numbers(parts)):
        before = f"blocks.{number}."
        qkv, mlp = [f"{before}attn.{one}" for one in "qkv"], [f"{before}mlp.{one}" for one in ("gate", "up")]
        _join(tensors, origins, [f"{name}.weight" for name in qkv], f"{before}attn.qkv.weight")
        _join_biases(tensors, origins, qkv, f"{before}attn.qkv")
        _mask_bias(tensors, origins, f"{before}attn.qkv")
        # Hugging Face's DINOv3 calls the first of two plain linears "up".
        wanted = mlp if f"{mlp[0]}.weight" in parts else mlp[1:]
        for leaf in ("weight", "bias"):
            _join(tensors, origins, [f"{name}.{leaf}" for name in wanted], f"{before}mlp.fc1.{leaf}")
    return tensors, origins


def _join(tensors: dict[str, Tensor], origins: dict[str, tuple[str, ...]], names: list[str], target: str) -> None:
    if all(name in tensors for name in names):
        tensors[target] = torch.cat([tensors.pop(name) for name in names])
        origins[target] = tuple(full for name in names for full in origins.pop(name))


def _join_biases(tensors: dict[str, Tensor], origins: dict[str, tuple[str, ...]], names: list[str], target: str) -> None:
    """A network without a bias computes as one with a bias of 0 does."""
    found = [f"{name}.bias" for name in names if f"{name}.bias" in tensors]
    weight = tensors.get(f"{target}.weight")
    if found and weight is not None:
        rows = len(weight) // 3
        biases = [tensors.pop(f"{name}.bias", torch.zeros(rows, dtype=weight.dtype)) for name in names]
        tensors[f"{target}.bias"] = torch.cat(biases)
        origins[f"{target}.bias"] = tuple(full for name in found for full in origins.pop(name))


def _mask_bias(tensors: dict[str, Tensor], origins: dict[str, tuple[str, ...]], target: str) -> None:
    """DINOv3 multiplies the bias by a mask that is 0 for keys; a mask that was never filled (NaN) means the same."""
    mask, bias = tensors.pop(f"{target}.bias_mask", None), tensors.get(f"{target}.bias")
    masked = origins.pop(f"{target}.bias_mask", ())
    if mask is None or bias is None:
        return
    usual = torch.ones_like(bias)
    usual[len(bias) // 3 : 2 * len(bias) // 3] = 0
    used = torch.where(mask.isfinite(), mask.to(bias.dtype), usual)
    tensors[f"{target}.bias"] = torch.where(used == 0, torch.zeros_like(bias), bias * used)
    origins[f"{target}.bias"] += masked
