"""What a scenario is, and how the runner is asked for one check alone. Plants nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal
from unittest.mock import patch

from dinodomain.audit import Asked, AuditSet, Effort, Finding, Policy, run_checks
from dinodomain.audit.checks import CHECKS
from dinodomain.audit.finding import SelfTest

Kind = Literal["planted", "clean", "few"]
DETECTED = 0.8
"""Share of seeds in which the largest stated effect has to be found."""
FALSE = 0.05
"""Share of clean seeds that may be flagged or warned of: the level of all tests of a question together."""
SEEDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One made-up world for one check.

    Attributes:
        check: Its name in the registry.
        name: What is planted, or what is missing.
        kind: ``planted`` (expects FLAG or WARN), ``clean`` (expects neither), ``few`` (expects NOT_ASSESSABLE).
        effect: How large the plant is, in words; empty where there is none.
        run: Seed to the findings of that world.
        finding: Id of the finding that answers; empty takes all of the check.
        aim: Share that is asked for; None where a small effect is only measured.
    """

    check: str
    name: str
    kind: Kind
    run: Callable[[int], Sequence[Finding]]
    effect: str = ""
    finding: str = ""
    aim: float | None = None

    @property
    def key(self) -> str:
        """What lines of the state are found by."""
        return " / ".join(part for part in (self.check, self.name, self.effect) if part)

    def outcome(self, seed: int) -> dict[str, Any]:
        """The verdicts of one world, and whether they are what they should be.

        Raises:
            ValueError: The check gave no finding of the name.
        """
        found = [item for item in self.run(seed) if item.check == self.check and self.finding in ("", item.id)]
        if not found:
            raise ValueError(f"{self.key}: no finding {self.finding or self.check!r}")
        verdicts = [item.verdict for item in found]
        return {
            "verdicts": verdicts,
            "found": any(verdict in ("FLAG", "WARN") for verdict in verdicts),
            "unknown": all(verdict == "NOT_ASSESSABLE" for verdict in verdicts),
            "broken": "ERROR" in verdicts,
            "reasons": [item.reason_code for item in found],
        }  # fmt: skip


def several(
    check: str, name: str, effects: Sequence[tuple[str, Callable[[int], Sequence[Finding]]]], **more: Any
) -> list[Scenario]:  # fmt: skip
    """A planted scenario per effect, smallest first; only the largest has an aim."""
    last = len(effects) - 1
    return [
        Scenario(check=check, name=name, kind="planted", effect=effect, run=run, aim=DETECTED if at == last else None, **more)
        for at, (effect, run) in enumerate(effects)
    ]


def quiet(check: str, name: str, run: Callable[[int], Sequence[Finding]], **more: Any) -> Scenario:
    """A clean scenario."""
    return Scenario(check=check, name=name, kind="clean", run=run, aim=FALSE, **more)


def short(check: str, name: str, run: Callable[[int], Sequence[Finding]], **more: Any) -> Scenario:
    """A scenario with less than the check needs."""
    return Scenario(check=check, name=name, kind="few", run=run, aim=1.0, **more)


@cache
def _once(name: str) -> SelfTest:
    """The controls of a check, which know no seed, run once a process."""
    return next(check for check in CHECKS if check.about.name == name).self_test()


def _controls(name: str) -> Callable[[], SelfTest]:
    return lambda: _once(name)


_REMEMBERING = tuple(replace(check, self_test=_controls(check.about.name)) for check in CHECKS)


def audited(
    data: AuditSet, check: str, seed: int, *, policy: Policy | None = None, effort: Effort | None = None, asked: Asked | None = None,
    record: Any = None, observer: Any = None, trail: Any = None, **columns: Any,
) -> Sequence[Finding]:  # fmt: skip
    """Findings of one check on one world, through the runner with its needs, corrections and controls.

    Args:
        data: The audited set.
        check: Its name.
        seed: Of folds, permutations and draws.
        policy: None takes the defaults.
        effort: None takes few permutations and no stronger attackers.
        asked: Which columns mean what; None makes one of ``columns``.
        record: Lineage record of the encoder.
        observer: The encoder.
        trail: What ingest and training recorded.
        **columns: Of ``Asked``.
    """
    chosen = replace(effort or Effort(permutations=199, bootstraps=200, attackers=False), seed=seed)
    with patch("dinodomain.audit.run.CHECKS", _REMEMBERING):
        return run_checks(
            data, asked=asked or Asked(**columns), effort=chosen, policy=policy, names=(check,), record=record, observer=observer,
            trail=trail,
        ).report.findings  # fmt: skip
