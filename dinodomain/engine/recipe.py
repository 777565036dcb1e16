"""``recipe=auto``: sizes, rates and lengths derived from the tiles and from the device, each with its reason.

Only keys that nobody gave are chosen; everything a user or a YAML recipe set stays, also where it equals the plan's default. Every rule
names what it stands on: a paper, a measurement of ours (experiments.md), or that it is merely our rule. With weights to start from, their
sizes are the plan's already and only rates are chosen here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dinodomain.engine.facts import Facts
from dinodomain.engine.machine import readable_size
from dinodomain.engine.memory import USABLE, estimate, patches, smallest_accumulation
from dinodomain.engine.plan import PretrainPlan

SHORT = 3000
"""Steps below which a run is short: targets sharp and the teacher quick from the start (experiments.md, UC Merced, 120 to 400 steps)."""

CPU_STEPS, DEVICE_STEPS = 2000, 125_000
"""Most steps: an hour or so of two cores; DINOv2's short recipe."""


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
    """The choices of ``recipe=auto`` for keys that nobody gave, in the order they depend on each other."""
    chooser = _Chooser(plan, facts, small=device == "cpu")
    chooser.sizes()
    chooser.lengths()
    chooser.targets()
    chooser.rates()
    chooser.memory()
    return chooser.choices


class _Chooser:
    """Takes one group of keys after the other; later ones see what earlier ones chose."""

    def __init__(self, plan: PretrainPlan, facts: Facts, *, small: bool) -> None:
        self.asked, self.plan, self.facts, self.small = plan, plan, facts, small
        self.warm = plan.start.weights is not None
        self.choices: list[Choice] = []

    def take(self, key: str, value: Any, reason: str) -> None:
        """Chooses a key, unless somebody set it or it already is so."""
        self.take_all({key: value}, reason)

    def take_all(self, values: dict[str, Any], reason: str) -> None:
        """Chooses keys of one section together, so that checks across them see all at once."""
        wanted = {key: value for key, value in values.items() if not self.asked.is_given(key) and _get(self.plan, key) != value}
        if wanted:
            section = next(iter(wanted)).split(".")[0]
            changes = {key.split(".")[1]: value for key, value in wanted.items()}
            self.plan = dataclasses.replace(self.plan, **{section: dataclasses.replace(getattr(self.plan, section), **changes)})
            self.choices += [Choice(key=key, value=value, reason=reason) for key, value in wanted.items()]

    def sizes(self) -> None:
        """Patch, network, crops."""
        facts, small = self.facts, self.small
        if not self.warm:
            where = f"{facts.side} pixel tiles in {facts.ndim}-D on {'a CPU' if small else 'an accelerator'}"
            self.take("model.patch", _patch(facts, small), f"{where}: large patches, about four or more a side (our rule)")
            self._network()
        unit = max(patches(self.plan.model, facts.ndim))
        cap = {(2, True): 96, (2, False): 224, (3, True): 48, (3, False): 96}[facts.ndim, small]
        big = _get(self.plan, "views.global_size") if self.asked.is_given("views.global_size") else 0
        big = big or max(unit, min(facts.side, cap) // unit * unit)
        share = 96 / 224 if facts.ndim == 2 else 0.5
        sizes = {"views.global_size": big, "views.local_size": max(unit, round(big * share / unit) * unit)}
        if small:
            sizes["views.num_local"] = 4
        told = f"within the tile and {cap} pixels, what {'a CPU' if small else 'an accelerator'} trains in {facts.ndim}-D; local crops are "
        self.take_all(sizes, told + f"{share:.2f} of the side" + (", four of them (DINO: 6 to 8) to save time" if small else " (DINO)"))

    def _network(self) -> None:
        tiles = self.facts.num_tiles
        if self.small:
            values = {"model.dim": 128, "model.depth": 4, "model.heads": 4, "model.layer_scale": 0.1, "model.init": "xavier"}
            reason = "about 1 M parameters, minutes of a CPU; LayerScale and first weights that such a network needs (experiments.md)"
            self.take_all(values, reason)
            self.take_all({"objective.head_hidden": 512, "objective.bottleneck": 64}, "a head in proportion to a small network (our rule)")
            return
        dim, heads, name = (192, 3, "ViT-Ti") if tiles < 5000 else (384, 6, "ViT-S") if tiles < 1_000_000 else (768, 12, "ViT-B")
        reason = f"{name} for {tiles} tiles: Ti below 5,000, S below a million, then B (our rule; DINOv2's ViT-L had 142 M images)"
        self.take_all({"model.dim": dim, "model.heads": heads}, reason)

    def lengths(self) -> None:
        """Batch and steps."""
        facts = self.facts
        self.take("loader.batch", _batch(facts, self.plan.loader.draws, self.small),
                  f"{facts.num_tiles} eligible tiles on {facts.world} processes; {'64' if self.small else '256'} at most, "
                  "one sample in ten of the data at most beyond 64 (our rule)")  # fmt: skip
        epochs, most = (30, CPU_STEPS) if self.small else (100, DEVICE_STEPS)
        if self.warm:
            epochs, most = epochs // 3, most // 5
        # Several draws of a read are that many looks at a tile: they save reading, and make no run longer.
        draws = self.plan.loader.draws
        steps = max(500, min(most, epochs * facts.num_tiles // self.plan.loader.batch))
        told = "; a third of that from trained weights (our rule)" if self.warm else ""
        told += f"; a tile is read {epochs / draws:.3g} times and drawn {draws} times from each (loader.draws)" if draws > 1 else ""
        self.take(
            "engine.steps",
            steps,
            f"every tile drawn {epochs} times (DINOv2: 100 epochs; a third on a CPU), within 500 and {most} steps{told}",
        )

    def targets(self) -> None:
        """Prototypes, temperature, centring, masks."""
        tiles, steps = self.facts.num_tiles, self.plan.engine.steps
        count = 1024 if tiles < 10_000 else 8192 if tiles < 100_000 else 65536
        told = "1024 below 10,000, 8192 below 100,000 (a third of a small step is prototypes; our measurement), then DINOv2's 65536"
        if not (self.warm and self.plan.start.heads):
            self.take("objective.prototypes", count, f"{tiles} eligible tiles: {told}")
        if steps < SHORT:
            self.take("objective.teacher_temperature", (0.04, 0.04), f"{steps} steps: rising to .07 in a short run brings the teacher "
                      "near uniform (experiments.md)")  # fmt: skip
            self.take(
                "objective.centering", "sinkhorn", f"{steps} steps: at least as good as a moving centre in short runs (experiments.md)"
            )
        if self.small and steps < SHORT and not self.warm:
            self.take(
                "objective.ibot_weight", 0.0, "masked patches cost a short CPU run a quarter of its time and did not help (experiments.md)"
            )

    def rates(self) -> None:
        """Learning rate, momentum, and what a warm start needs."""
        steps, plan = self.plan.engine.steps, self.plan
        if self.warm:
            self.take_all({"optim.lr": 2e-4, "optim.layer_decay": 0.9, "optim.weight_decay": (0.04, 0.2)},
                          "trained weights: a tenth of the rate, less for lower blocks (our rule; more may collapse)")  # fmt: skip
            self.take("optim.momentum", (0.996, 1.0), "from trained weights: a slower teacher keeps what they know (our rule)")
            if not plan.start.heads:
                self.take(
                    "optim.freeze_backbone", 0.1, "a fresh head learns first, so that it does not spoil trained weights (as FINO does)"
                )
            return
        if self.small and plan.model.dim <= 192:
            self.take("optim.lr", 4e-3, "a small network at a small batch takes twice DINOv2's rate (experiments.md)")
        elif plan.model.dim <= 768:
            self.take("optim.lr", 2e-3, "DINOv2's .004 at 1024 samples, by its square root rule")
        if steps < SHORT:
            self.take("optim.momentum", (0.99, 1.0), f"{steps} steps: a teacher that remembers 100 steps (DINOv2's .992: 125)")
        if not self.small:
            self.take("optim.patch_lr", 0.2, "DINOv2")

    def memory(self) -> None:
        """Micro-batches, and checkpointing if those are not enough."""
        facts, plan = self.facts, self.plan
        there = facts.memory.get("cpu" if self.small else "cuda")
        if there is None:
            return
        size = facts.step_sizes(plan)
        budget = int(USABLE * there)
        needed = estimate(plan, **size)
        if needed.total <= budget:
            return
        told = f"a step in one part needs about {readable_size(needed.total)}, the device has {readable_size(there)}"
        count = self._parts(budget, size)
        if count is None and not plan.engine.checkpointing:
            self.take("engine.checkpointing", True, told + " and micro-batches alone do not make it fit")
            count = self._parts(budget, size)
        while count is None and not self.asked.is_given("loader.batch") and self._halve_batch(told):
            count = self._parts(budget, size)
        if count is not None and count > 1:
            self.take("engine.accumulate", count, told)

    def _parts(self, budget: int, size: dict[str, int]) -> int | None:
        """Micro-batches with which a step fits; those that were asked for, or none."""
        if self.asked.is_given("engine.accumulate"):
            return self.plan.engine.accumulate if estimate(self.plan, **size).total <= budget else None
        return smallest_accumulation(self.plan, budget, **size)

    def _halve_batch(self, told: str) -> bool:
        """Half the batch, down to eight samples a process: tiles and targets of all micro-batches are held together."""
        batch, unit = self.plan.loader.batch // 2, self.facts.world * self.plan.loader.draws
        if batch % unit or batch < 8 * self.facts.world:
            return False
        self.choices = [choice for choice in self.choices if choice.key != "loader.batch"]
        self.take("loader.batch", batch, f"{told}, and more samples do not fit with their tiles and targets")
        return True


def replace_key(plan: Any, key: str, value: Any) -> Any:
    """A plan with one dotted key replaced; all checks of the plan run again."""
    head, _, rest = key.partition(".")
    return dataclasses.replace(plan, **{head: replace_key(getattr(plan, head), rest, value) if rest else value})


def _patch(facts: Facts, small: bool) -> int:
    if facts.ndim == 3:
        return 16 if facts.side >= 96 and not small else 8 if facts.side >= 16 else 4
    return 16 if facts.side >= 112 and not small else 8 if facts.side >= 32 else 4


def _batch(facts: Facts, draws: int, small: bool) -> int:
    """The largest power of two within the tiles, up to 64 or a tenth of them; at least two samples a process, and whole reads."""
    fitting = 1 << max(facts.num_tiles, 1).bit_length() - 1
    most = 64 if small else max(64, min(256, 1 << (max(facts.num_tiles, 10) // 10).bit_length() - 1))
    each = max(min(most, fitting) // facts.world, 2)
    return -(-each // draws) * draws * facts.world


def _get(plan: Any, key: str) -> Any:
    for name in key.split("."):
        plan = getattr(plan, name)
    return plan
