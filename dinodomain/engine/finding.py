"""What a symptom is and what a finding says; nothing is looked for here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dinodomain.engine.history import History

Kind = Literal["collapsed", "unstable", "degrading", "stuck", "starved", "leaking", "incomplete"]
Plan = Mapping[str, Any]

ABSURD_LR = 0.05
"""Learning rate of AdamW that no recipe comes near (DINO: at most 0.005, DINOv2: 0.004 times a root of the batch)."""

GO_ON = "go on from its weights in another folder (start.weights=RUN start.heads=true out=NEW)"
"""What keeps a run's work where a key must change that its folder does not take any more: weights, heads and centres go on, schedules and
moments begin anew."""

SPIKE = 10.0
"""Times its usual value from which a norm has broken out (gradients: Chen 2021, figure 4: spikes of the first layer precede dips)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: Short and stable, for programs.
        kind: What the verdict calls a run that has it.
        title: A few words.
        since: Step at which it began.
        numbers: What was measured.
        cause: Most likely.
        advice: What to do, in words.
        keys: Keys to change and their new values; empty where none helps.
    """

    name: str
    kind: Kind
    title: str
    since: int
    numbers: str
    cause: str
    advice: str
    keys: Mapping[str, Any]

    def text(self) -> str:
        """One line."""
        keys = " (" + ", ".join(f"{key}={value}" for key, value in self.keys.items()) + ")" if self.keys else ""
        return f"{self.title} since step {self.since}: {self.numbers}. Likely cause: {self.cause}. Change: {self.advice}{keys}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"keys": dict(self.keys)}


@dataclass(frozen=True, slots=True)
class Symptom:
    """How one thing is found.

    Attributes:
        look: Finds it in a history, as it stands at the last row; the plan may be empty.
        explained_by: Names of findings that make this one needless.
    """

    look: Callable[[History, Plan], Finding | None]
    explained_by: tuple[str, ...] = ()


def lower_rate(plan: Plan) -> dict[str, Any]:
    """A third of the learning rate, by its number where the plan is known; the default's where it is absurd."""
    lr = plan.get("optim", {}).get("lr")
    if not isinstance(lr, (int, float)):
        return {"optim.lr": "a third"}
    return {"optim.lr": f"{lr / 3:.1g}" if lr <= ABSURD_LR else "0.001"}


def is_frozen(plan: Plan, step: int) -> bool:
    """Whether a part is meant to rest at this step."""
    optim, total = plan.get("optim", {}), plan.get("engine", {}).get("steps", 0)
    frozen = max(float(optim.get("freeze_last_layer") or 0), float(optim.get("freeze_backbone") or 0))
    return bool(step < frozen * total)
