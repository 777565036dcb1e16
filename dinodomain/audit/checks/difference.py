"""Against the previous release: on the same audit set, is anything worse than it was?

Task score, leaks and gaps of both encoders are measured on the same rows through the same folds, permutations and resampled units, so
the differences are paired. A lower leak bought with a lower task score is a trade-off, said as such and never a win. "No difference" is
no proof of sameness: only a difference bounded below the margin is (non-inferiority, CONSORT extension, Piaggio et al. 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinodomain.audit.compare import Difference, Word, count, differences, forest, table
from dinodomain.audit.evidence import UNITS, About, Asked, Check, Draft, Evidence, Need, Result
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort

ABOUT = About(
    name="difference", code="DIFF", question="Q4", title="Is anything worse than with the previous encoder?",
    limits=(
        "Holds for these rows, this task and these attributes.",
        "No difference shown is not the same as equal; see the column on non-inferiority.",
    ),
    maps_to={"EU AI Act": ("Art. 9", "Art. 15"), "NIST AI RMF": ("MANAGE 3.2", "MANAGE 4.1"), "FUTURE-AI": ("Traceability 4",)},
)  # fmt: skip
_METHOD = "paired: 1.96 max(unit bootstrap SE, unit-permutation null SD) of the difference"
QUANTITIES = Need(
    there=lambda evidence: bool(evidence.asked.attributes or evidence.asked.task), code="no_column",
    reason="neither a task nor an attribute was named", remedy="name columns with audit.task=COLUMN and audit.attributes=[...]",
)  # fmt: skip


def other_encoder(kind: str, what: str) -> Need:
    """The need for another encoder's features of the same rows."""
    return Need(
        there=lambda evidence: kind in evidence.data.features, code=f"no_{kind}", reason=f"no {what} was given to compare with",
        remedy=f"name it with audit.{kind}=CHECKPOINT",
    )  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """One finding over all quantities."""
    return [draft(evidence, "previous", ABOUT)]


def draft(evidence: Evidence, other: str, about: About) -> Result:
    """Compares with the named kind of features; ``judge`` words the whole once the tests are corrected."""
    found = differences(evidence, other)
    compared = [item for item in found if not item.why_not]
    if not compared:
        reason = "; ".join(f"{item.name}: {item.why_not}" for item in found)
        told: dict[str, Any] = {"tables": (table(found, ["not comparable"] * len(found), other, evidence.lines.margin),)}
        return about.unknown("n_units", reason, "audit more units", answer="Nothing could be compared.", **told)
    return Draft(p=tuple(item.p for item in compared), judge=lambda p, _: judge(found, p, other, about, evidence.policy))


def judge(found: Sequence[Difference], p: Sequence[float], other: str, about: About, policy: Policy) -> Finding:
    """The finding from corrected p values of the comparable quantities."""
    words, told = measured(found, p, other, policy)
    return about.finding(**told, **_verdict(found, words, other, policy.thresholds.margin))


def measured(
    found: Sequence[Difference], p: Sequence[float], other: str, policy: Policy, ours: str = "audited"
) -> tuple[list[Word], dict[str, Any]]:  # fmt: skip
    """Each quantity in a word, and what a finding shows of all, from corrected p values of the comparable ones."""
    lines, values = policy.thresholds, iter(p)
    words: list[Word] = [item.word(1.0 if item.why_not else next(values), lines.alpha) for item in found]
    worst = max((item for item in found if not item.why_not), key=lambda item: item.harm.low)
    return words, {
        "tables": (table(found, words, other, lines.margin, ours),), "plots": (forest(found, other, lines.margin, ours),),
        "estimate": estimate_of(worst.change, f"{worst.name}: {ours} minus {other}", _METHOD), "n_units": worst.n_units,
    }  # fmt: skip


def _verdict(found: Sequence[Difference], words: Sequence[Word], other: str, margin: float) -> dict[str, Any]:
    worse = [item for item, word in zip(found, words) if word == "worse"]
    better = [item for item, word in zip(found, words) if word == "better"]
    if worse:
        traded = any(item.kind == "task" for item in worse) and any(item.kind != "task" for item in better)
        kind = "A trade-off, not a gain" if traded else "Yes"
        return {
            "verdict": "FLAG" if any(item.harm.low > margin for item in worse) else "WARN",
            "answer": f"{kind}: worse than the {other} encoder in {named(worse)}{_also(better)}.",
            "action": "Find out which change of data, plan or fine-tuning did it before this encoder replaces the other.",
            "repeat": f"Every quantity no worse than with the {other} encoder by {margin:g}.",
        }
    open_ = [item.name for item in found if not item.no_worse(margin)]
    if not open_:
        answer = f"Not by {margin:g} or more in any quantity{_also(better)}."
        return {"verdict": "CLEAR_WITHIN_LIMITS", "answer": answer}
    answer = f"Undecided: no difference for the worse was shown{_also(better)}."
    return {
        "verdict": "NOT_ASSESSABLE", "reason_code": "wide_interval", "answer": answer,
        "reason": f"worse by {margin:g} is not ruled out for {', '.join(open_)}", "remedy": "audit more units",
    }  # fmt: skip


def named(worse: Sequence[Difference]) -> str:
    """Quantities with their change."""
    return ", ".join(f"{item.name} {item.change.value:+.3f} [{item.change.low:+.3f}, {item.change.high:+.3f}]" for item in worse)


def _also(better: Sequence[Difference]) -> str:
    return f"; better in {', '.join(item.name for item in better)}" if better else ""


def made_up(*, worse: bool) -> Evidence:
    """Two encoders of the same units: the audited one leaks an attribute that the other does not, or both are alike."""
    generator = np.random.default_rng(31)
    attribute = generator.permutation(np.arange(200) % 2)
    base = generator.normal(size=(200, 12))
    leaking = base + 1.5 * attribute[:, None] * (np.arange(12) < 3) * worse
    alike = base + 0.01 * generator.normal(size=base.shape)
    data = AuditSet(
        features={"audited": leaking, "previous": alike}, units=np.arange(200).astype(str), content_hash=None, sources=np.arange(200),
        columns={"attribute": np.where(attribute, "a", "b")},
    )  # fmt: skip
    asked = Asked(attributes=("attribute",))
    return Evidence(data=data, probed=data, asked=asked, policy=Policy(), effort=Effort(permutations=99, bootstraps=200))


def self_test() -> SelfTest:
    """Finds a planted leak that only the audited encoder has; finds nothing between two that are alike."""
    return tested(*(differences(made_up(worse=worse), "previous")[0] for worse in (True, False)))


def tested(planted: Difference, clean: Difference) -> SelfTest:
    """Whether the planted difference was found, and nothing without it."""
    return SelfTest(
        positive="pass" if planted.p < 0.01 and planted.harm.value > 0 else "fail", negative="pass" if clean.p > 0.01 else "fail",
        detail=f"made-up encoders: planted difference p = {planted.p:.2g}, clean p = {clean.p:.2f}",
    )  # fmt: skip


CHECK = Check(
    about=ABOUT, run=run, self_test=self_test, needs=(other_encoder("previous", "previous encoder"), QUANTITIES, UNITS), count=count
)  # fmt: skip
