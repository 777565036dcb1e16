"""After fine-tuning: does a model made from this encoder leak more or serve some group worse than the encoder itself?

The fine-tuned encoder's features of the same rows are compared with the audited one's: task, leaks, gaps between groups, paired. The
card of DINOv3 says itself that fine-tuning may add bias (facebookresearch/dinov3, MODEL_CARD.md), so an audit of a backbone covers nothing
that is made from it.
"""

from __future__ import annotations

from dataclasses import replace

from dinodomain.audit.checks.difference import QUANTITIES, made_up, measured, named, other_encoder, tested
from dinodomain.audit.compare import Difference, count, differences
from dinodomain.audit.evidence import UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.finding import Finding, SelfTest

ABOUT = About(
    name="inherit", code="INHERIT", question="Q4", title="Does a fine-tuned model leak more, or serve a group worse, than the encoder?",
    limits=("Holds for this fine-tuned model; another one may differ.",),
    maps_to={"EU AI Act": ("Art. 25",), "NIST AI RMF": ("MANAGE 3.2",), "FUTURE-AI": ("General 7",)},
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """One finding over leaks and gaps."""
    found = [item for item in differences(evidence_of(evidence), "before") if item.kind != "task"]
    compared = [item for item in found if not item.why_not]
    if not compared:
        reason = "; ".join(f"{item.name}: {item.why_not}" for item in found) or "no attribute was named"
        return [ABOUT.unknown("n_units", reason, "audit more units", answer="Nothing could be compared.")]
    return [Draft(p=tuple(item.p for item in compared), judge=lambda p, _: _finding(found, p, evidence))]


def evidence_of(evidence: Evidence) -> Evidence:
    """The same evidence with the fine-tuned encoder in the place of the audited one, which becomes ``before``."""
    features = evidence.probed.features
    turned = replace(evidence.probed, features={"audited": features["finetuned"], "before": features["audited"]})
    return replace(evidence, probed=turned)


def _finding(found: list[Difference], p: tuple[float, ...], evidence: Evidence) -> Finding:
    lines = evidence.lines
    words, told = measured(found, p, "before", evidence.policy, "fine-tuned")
    worse = [item for item, word in zip(found, words) if word == "worse"]
    if worse:
        return ABOUT.finding(
            verdict="WARN", answer=f"Yes: fine-tuning made it worse in {named(worse)}.", **told,
            action="Audit the fine-tuned model by itself before use.", repeat="No leak and no gap above the encoder's own.",
        )  # fmt: skip
    open_ = [item.name for item in found if not item.no_worse(lines.margin)]
    if not open_:
        return ABOUT.finding(verdict="CLEAR_WITHIN_LIMITS", answer=f"Not by {lines.margin:g} or more.", **told)
    reason = f"worse by {lines.margin:g} is not ruled out for {', '.join(open_)}"
    return ABOUT.unknown("wide_interval", reason, "audit more units", answer="Undecided: nothing worse was shown.", **told)


def self_test() -> SelfTest:
    """Finds a leak that only the fine-tuned encoder has; finds nothing where both are alike."""
    results = []
    for worse in (True, False):
        made = made_up(worse=worse)
        features = {"audited": made.probed.features["previous"], "finetuned": made.probed.features["audited"]}
        results.append(differences(evidence_of(replace(made, probed=replace(made.probed, features=features))), "before")[0])
    return tested(*results)


CHECK = Check(
    about=ABOUT, run=run, self_test=self_test, needs=(other_encoder("finetuned", "fine-tuned encoder"), QUANTITIES, UNITS), count=count
)  # fmt: skip
