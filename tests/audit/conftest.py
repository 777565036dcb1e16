"""Made-up audited sets: units with two images each, a planted attribute, a clean one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dinodomain.audit import Asked, AuditSet, Effort, Finding, Policy, run_checks

QUICK = Effort(permutations=199, bootstraps=200)


@pytest.fixture(scope="session")
def make_set() -> Callable[..., AuditSet]:
    """Units in a low-dimensional space, as trained encoders have; ``leak`` is how far the site moves them."""

    def make(*, num_units: int = 260, leak: float = 0.0, seed: int = 0, **changes: object) -> AuditSet:
        generator = np.random.default_rng(seed)
        index = np.repeat(np.arange(num_units), 2)
        site, sex = (generator.permutation(np.arange(num_units) % 2)[index] for _ in range(2))
        mixing = generator.normal(size=(8, 24))

        def features(strength: float) -> np.ndarray:
            content = generator.normal(size=(num_units, 8))[index] + 0.3 * generator.normal(size=(2 * num_units, 8))
            content[:, 0] += strength * site
            return content @ mixing + 0.1 * generator.normal(size=(2 * num_units, 24))

        columns = {
            "site": np.array(["A", "B"])[site],
            "sex": np.array(["F", "M"])[sex],
            "age": generator.normal(60, 10, num_units)[index],
            "split": np.where(index < num_units * 0.8, "train", "test"),
        }
        settings = {
            "features": {"audited": features(leak), "pixels": features(leak / 4), "untrained": features(0)},
            "units": np.array([f"u{i}" for i in index]),
            "content_hash": np.array([f"h{i}" for i in range(2 * num_units)]),
            "sources": np.arange(2 * num_units),
            "columns": columns,
            "split": "split",
        }
        return AuditSet(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def quick() -> Effort:
    return QUICK


@pytest.fixture(scope="session")
def found() -> Callable[..., tuple[Finding, ...]]:
    """Findings of the named checks on a set, by keywords of ``Asked``."""

    def run(data: AuditSet, *names: str, policy: Policy | None = None, **asked: object) -> tuple[Finding, ...]:
        return run_checks(data, asked=Asked(**asked), effort=QUICK, policy=policy, names=names).report.findings

    return run
