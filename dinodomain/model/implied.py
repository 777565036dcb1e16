"""Which model plan weights imply. A key that nobody gave is taken from them; one that contradicts them is one clear error."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from dinodomain.errors import Problems, UserError
from dinodomain.model.fuse import block_numbers
from dinodomain.model.plan import ModelPlan
from dinodomain.model.weights import Weights

_FIXED: Final = ("dim", "depth", "heads", "mlp", "mlp_ratio", "position")
"""Keys that weights cannot be fitted to."""

_TRAINING_ONLY: Final = ("drop_path", "init")
"""Keys of our own runs that say nothing about weights."""

_EPS: Final = {"dino": 1e-6, "dinov2": 1e-6, "dinov3": 1e-5}
_HEAD_WIDTH, _WIDEST, _WIDEST_HEAD = 64, 4096, 128
"""Channels of a head in every released model, but for DINOv3's 7B, which is 4096 wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implied:
    """A key of the model plan as the weights have it.

    Attributes:
        value: The value.
        reason: How the weights tell.
        certain: False where the weights do not hold it and it is what such models have.
    """

    value: Any
    reason: str
    certain: bool = True


def implied(weights: Weights) -> dict[str, Implied]:
    """What weights say about keys of ``ModelPlan``."""
    if weights.spec is not None:
        own = ModelPlan(**_tuples(weights.spec["model"]))
        kept = [item.name for item in fields(ModelPlan) if item.name not in _TRAINING_ONLY]
        return {name: Implied(value=getattr(own, name), reason="the weights' own plan") for name in kept}
    found = _sizes(weights)
    found["norm_eps"] = _norm_eps(weights)
    if weights.renamed.family == "dinov3":
        found |= _rotary(weights)
    return found


def _sizes(weights: Weights) -> dict[str, Implied]:
    tensors = weights.tensors
    kernel, first = tensors["patch_embed.proj.weight"], tensors["blocks.0.mlp.fc1.weight"]
    dim, hidden = tensors["cls_token"].shape[-1], tensors["blocks.0.mlp.fc2.weight"].shape[1]
    sides = tuple(kernel.shape[2:])
    gated, scaled = len(first) == 2 * hidden, "blocks.0.ls1.gamma" in tensors
    registers = tensors["reg_token"].shape[-2] if "reg_token" in tensors else 0
    found = {
        "dim": Implied(value=dim, reason=f"width of the class token, {dim}"),
        "depth": Implied(value=len(block_numbers(tensors)), reason="number of blocks"),
        "patch": Implied(
            value=sides[0] if len(set(sides)) == 1 else sides, reason=f"kernel of the patch embedding, {'x'.join(map(str, sides))}"
        ),
        "registers": Implied(value=registers, reason=f"{registers} register tokens" if registers else "no register tokens"),
        "layer_scale": Implied(
            value=ModelPlan().layer_scale if scaled else 0.0, reason="LayerScale in every block" if scaled else "no LayerScale"
        ),
        "mlp": Implied(value="swiglu" if gated else "gelu", reason=f"MLP of {len(first)} to {hidden} channels"),
        "mlp_ratio": Implied(value=_ratio(hidden, dim), reason=f"MLP {hidden} wide for tokens of {dim}"),
        "class_position": Implied(value=False, reason="the class token's position is a constant and is added to the token itself"),
    }
    learned = "pos_embed" in tensors
    if learned or weights.renamed.family == "dinov3":
        reason = "one learned position per patch" if learned else "no positions among the weights, as in DINOv3"
        found["position"] = Implied(value="learned" if learned else "rope", reason=reason)
    if (heads := _heads(weights, dim)) is not None:
        found["heads"] = heads
    return found


def _ratio(hidden: int, dim: int) -> float:
    """A ratio that gives just this width when it is multiplied and cut."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _heads(weights: Weights, dim: int) -> Implied | None:
    for key in ("num_attention_heads", "num_heads"):
        if isinstance(weights.config.get(key), int):
            return Implied(value=weights.config[key], reason=f"config.json, {key}")
    width = _WIDEST_HEAD if dim == _WIDEST else _HEAD_WIDTH
    if dim % width:
        return None
    reason = f"heads of {width} channels, as in all released DINO models this wide; the weights themselves do not tell"
    return Implied(value=dim // width, reason=reason, certain=False)


def _norm_eps(weights: Weights) -> Implied:
    if isinstance(weights.config.get("layer_norm_eps"), float):
        return Implied(value=weights.config["layer_norm_eps"], reason="config.json, layer_norm_eps")
    family = weights.renamed.family
    return Implied(value=_EPS[family], reason=f"as {family} was trained", certain=False)


def _rotary(weights: Weights) -> dict[str, Implied]:
    """DINOv3 (Simeoni 2025): base 100, a crop spans -1..1, and training rescales it by up to 2."""
    config, facts = weights.config, weights.renamed.facts
    published = Implied(value=100.0, reason="as dinov3 was trained", certain=False)
    base = Implied(value=facts["rope_base"], reason="periods among the weights") if "rope_base" in facts else published
    if isinstance(config.get("rope_theta"), (int, float)):
        base = Implied(value=float(config["rope_theta"]), reason="config.json, rope_theta")
    training = {
        name: config.get(f"pos_embed_{name}", published) for name, published in (("shift", None), ("jitter", None), ("rescale", 2.0))
    }
    neutral = {"shift": 0.0, "jitter": 1.0, "rescale": 1.0}
    return {
        "rope_base": base,
        "rope_unit": Implied(value="crop", reason="as dinov3 was trained", certain=False),
        **{
            f"rope_{name}": Implied(value=float(value) if value else neutral[name], reason="as dinov3 was trained", certain=False)
            for name, value in training.items()
        },
    }


def plan_from_weights(plan: ModelPlan, weights: Weights, *, given: Collection[str] = ()) -> dict[str, Implied]:
    """What a model plan has to take from the weights: every key that nobody gave and that they say otherwise.

    Args:
        plan: As composed.
        weights: That it shall begin with.
        given: Names of keys that were stated, also with their default's value; a key with another value counts as given anyway.

    Raises:
        Problems: Keys that were set contradict the weights; or the number of heads is not known.
    """
    said, default = implied(weights), ModelPlan()
    problems: list[UserError] = []
    choices: dict[str, Implied] = {}
    if "heads" not in said and weights.tensors["cls_token"].shape[-1] % plan.heads:
        dim = weights.tensors["cls_token"].shape[-1]
        divisors = ", ".join(str(count) for count in range(1, dim + 1) if dim % count == 0)
        problems.append(UserError("model.heads", f"is not known: the weights ({dim} wide) do not tell", allowed=divisors))
    problems += _activation(weights, said["mlp"].value)
    for name, found in said.items():
        stated = getattr(plan, name)
        if _same(stated, found.value):
            continue
        if name not in given and _same(stated, getattr(default, name)):
            choices[name] = found
        elif name in _FIXED and found.certain:
            problems.append(
                UserError(
                    f"model.{name}", f"is {stated!r}, {weights.place} has {found.value!r} ({found.reason})",
                    remedy=f"set model.{name}={_typed(found.value)} or leave it out, or choose other weights",
                )
            )  # fmt: skip
    if problems:
        raise Problems(problems)
    return choices


def _activation(weights: Weights, mlp: str) -> list[UserError]:
    """Another activation fits every shape and spoils every number."""
    found, wanted = weights.config.get("hidden_act"), "silu" if mlp == "swiglu" else "gelu"
    # Hugging Face's gated Dinov2 is silu whatever its configuration says.
    if found in (None, wanted) or (mlp == "swiglu" and weights.renamed.family == "dinov2"):
        return []
    return [UserError("start.weights", f"{weights.place} activates its MLP by {found!r} (config.json, hidden_act)", allowed=wanted)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _tuples(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}


def _typed(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
