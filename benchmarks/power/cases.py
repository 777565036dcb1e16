"""All scenarios, and which registered checks lack one: a new check cannot be forgotten."""

from __future__ import annotations

from functools import cache

from dinodomain.audit.checks import CHECKS
from power import features, images, leaks, records
from power.scenario import Scenario


@cache
def all_cases() -> tuple[Scenario, ...]:
    """In the order of the registry."""
    order = [check.about.name for check in CHECKS]
    found = [*records.cases(), *features.cases(), *leaks.cases(), *images.cases()]
    return tuple(sorted(found, key=lambda case: order.index(case.check)))


def lacking() -> list[str]:
    """Names of registered checks without a planted, a clean or a too small world."""
    kinds: dict[str, set[str]] = {check.about.name: set() for check in CHECKS}
    for case in all_cases():
        kinds[case.check].add(case.kind)
    return [name for name, found in kinds.items() if len(found) < 3]
