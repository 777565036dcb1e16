"""``recipe=auto``: sizes and lengths derived from the number and size of tiles and from the device, each with its reason.

Only keys that still have their default are chosen; everything a user or a YAML recipe set stays. Prototype counts follow our own
measurements on small data and DINOv2's published 65536 to 131072 for large data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dinodomain.engine.facts import Facts
from dinodomain.engine.plan import PretrainPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One settled key.

    Attributes:
        key: Dotted key of the plan.
        value: What it became.
        reason: Why, in a few words.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.reason}"


def auto_recipe(plan: PretrainPlan, facts: Facts, device: str) -> list[Choice]:
    """The choices of ``recipe=auto`` for keys that still have their default, in the order they depend on each other."""
    small = device == "cpu"
    patch = _own(plan, "model.patch", _patch(facts, small))
    cap = {(2, True): 96, (2, False): 224, (3, True): 48, (3, False): 96}[facts.ndim, small]
    big = _own(plan, "views.global_size", max(patch, min(facts.side, cap) // patch * patch))
    share = 96 / 224 if facts.ndim == 2 else 0.5
    batch = _own(plan, "loader.batch", _batch(facts, plan.loader.draws))
    wanted = [
        Choice(key="model.patch", value=patch, reason=f"{facts.side} pixel tiles in {facts.ndim}-D on {device}"),
        Choice(key="views.global_size", value=big, reason=f"largest multiple of the patch within tile and {cap} pixels"),
        Choice(key="views.local_size", value=max(patch, round(big * share / patch) * patch), reason=f"{share:.2f} of the global side"),
        Choice(key="loader.batch", value=batch, reason=f"{facts.num_tiles} eligible tiles on {facts.world} processes"),
        Choice(key="objective.prototypes", value=_prototypes(facts), reason=f"{facts.num_tiles} eligible tiles"),
        Choice(key="engine.steps", value=_steps(facts, batch, small), reason="100 epochs (30 on a CPU), within 500 to 125000 (2000) steps"),
        *(_small_model() if small else []),
    ]
    return [choice for choice in wanted if _is_default(plan, choice.key) and _get(plan, choice.key) != choice.value]


def replace_key(plan: Any, key: str, value: Any) -> Any:
    """A plan with one dotted key replaced; all checks of the plan run again."""
    head, _, rest = key.partition(".")
    return dataclasses.replace(plan, **{head: replace_key(getattr(plan, head), rest, value) if rest else value})


def _patch(facts: Facts, small: bool) -> int:
    if facts.ndim == 3:
        return 16 if facts.side >= 96 and not small else 8 if facts.side >= 16 else 4
    return 16 if facts.side >= 112 and not small else 8 if facts.side >= 32 else 4


def _batch(facts: Facts, draws: int) -> int:
    """64, or the largest power of two within the tiles; at least two samples a process, which KoLeo needs, and whole reads."""
    fitting = 1 << max(facts.num_tiles, 1).bit_length() - 1
    each = max(min(64, fitting) // facts.world, 2)
    return -(-each // draws) * draws * facts.world


def _prototypes(facts: Facts) -> int:
    return 1024 if facts.num_tiles < 10_000 else 8192 if facts.num_tiles < 100_000 else 65536


def _steps(facts: Facts, batch: int, small: bool) -> int:
    epochs, most = (30, 2000) if small else (100, 125_000)
    return max(500, min(most, epochs * facts.num_tiles // batch))


def _small_model() -> list[Choice]:
    """What a CPU trains in minutes: about 1 M parameters."""
    reason = "a CPU trains this in minutes"
    values = {
        "model.dim": 128, "model.depth": 4, "model.heads": 4, "model.layer_scale": 0.1, "views.num_local": 4,
        "objective.head_hidden": 512, "objective.bottleneck": 64,
    }  # fmt: skip
    return [Choice(key=key, value=value, reason=reason) for key, value in values.items()]


def _own(plan: PretrainPlan, key: str, chosen: Any) -> Any:
    return chosen if _is_default(plan, key) else _get(plan, key)


def _get(plan: Any, key: str) -> Any:
    for name in key.split("."):
        plan = getattr(plan, name)
    return plan


def _is_default(plan: PretrainPlan, key: str) -> bool:
    section, name = key.split(".")
    held = getattr(plan, section)
    return bool(getattr(held, name) == getattr(type(held)(), name))
