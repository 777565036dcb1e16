"""What checks look at, and what a check is. Holds no statistics; a check is pure: the same evidence gives the same findings.

A check measures first and judges later: its tests of chance are corrected together with all others of the same question, so what has
p values comes back as a ``Draft`` that becomes a finding once the corrected value is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dinodomain.audit.finding import Finding, Question, SelfTest
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import Attribute, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.verdict import Thresholds

if TYPE_CHECKING:
    from dinodomain.audit.observe import Observer
    from dinodomain.audit.trail import Trail

Maps = Mapping[str, tuple[str, ...]]

_RESOLUTION = 2
"""Permutations over (tests / level): at 1 not one permutation may reach the estimate, at 2 one may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which columns mean what.

    Attributes:
        attributes: Sensitive ones, looked for in the features; groups whose errors are compared.
        task: A downstream task, or None.
        domains: Where and by what images were made: site, scanner, sensor, season.
        strata: Legitimate covariates: a leak must go beyond them, impostors are matched by them.
        study: Tells the visits of one unit apart; None takes each source for a visit.
        decision: What the report is to decide: ``internal_use``, ``release_weights``, ``publish_embeddings`` or ``deploy:TASK``.
        ocr_images: Images in which text is looked for; None takes 3,500 where they are of people and 100 elsewhere.
        declaration: What people declare about the model (``declared.Declaration`` as plain values), or None.
    """

    attributes: tuple[str, ...] = ()
    task: str | None = None
    domains: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    study: str | None = None
    decision: str = "internal_use"
    ocr_images: int | None = None
    declaration: Mapping[str, Any] | None = None

    @property
    def released(self) -> bool:
        """Whether the decision is about anything but use within the house, so that conditions of licences count."""
        return self.decision != "internal_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that an audit may look at. What is None is not there, and a check that needs it says so.

    Attributes:
        data: All audited rows.
        probed: The rows that probes use: every unit, thinned within units.
        asked: Columns and their meaning.
        policy: Thresholds and expectations.
        effort: Permutations (enough for the corrections of this audit), resamples, folds, seed.
        family: By question, how many tests of chance are corrected together.
        record: Lineage record of the audited checkpoint.
        observer: Looks at the images through the encoder again.
        trail: What ingest and training recorded, as tables.
    """

    data: AuditSet
    probed: AuditSet
    asked: Asked
    policy: Policy
    effort: Effort
    family: Mapping[Question, int] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    observer: Observer | None = None
    trail: Trail | None = None

    @property
    def lines(self) -> Thresholds:
        """Where the lines are drawn."""
        return self.policy.thresholds

    def column_at(self, name: str, numbers: np.ndarray) -> Attribute:
        """A column as a probe sees it on some rows [n] of the whole set."""
        return read_attribute(name, self.data.columns[name][numbers], self.data.label_units[numbers])

    def least_permutations(self, question: Question) -> int:
        """Permutations that the correction of a question needs: with fewer the smallest p value would not survive it."""
        return math.ceil(_RESOLUTION * max(1, self.family.get(question, 1)) / self.lines.alpha)

    def alpha(self, question: Question) -> float:
        """Level of a single test so that all of its question together keep the stated one; what planted leaks are sought at."""
        return self.lines.alpha / max(1, self.family.get(question, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What was measured and waits for the correction of its tests over all those of its question.

    Attributes:
        p: Of each test, before correction.
        judge: Takes the corrected values in the same order and how many tests were corrected together; gives the finding.
    """

    p: tuple[float, ...]
    judge: Callable[[tuple[float, ...], int], Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """A table that goes to ``private/`` beside the report and never into it: rows, ids, scores of single images.

    Attributes:
        name: Of the file, without ending.
        columns: Name to values, all of one length.
        files: Further files, by name.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    files: Mapping[str, bytes] = field(default_factory=dict)


Result = Finding | Draft | Private


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that a check cannot do without.

    Attributes:
        there: Whether the evidence has it.
        code: Reason code where it has not.
        reason: In words.
        remedy: What would make the check possible.
    """

    there: Callable[[Evidence], bool]
    code: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a check is, apart from what it finds.

    Attributes:
        name: In ids, policies and ``audit.checks``.
        code: In tables.
        question: Which of the four it helps to answer.
        core: Whether an audit without it is incomplete.
        title: The question in words, where one finding stands for the whole check.
        limits: What its findings never say.
        maps_to: Law or guidance to clauses.
    """

    name: str
    code: str
    question: Question
    title: str
    core: bool = False
    limits: tuple[str, ...] = ()
    maps_to: Maps = field(default_factory=dict)

    def finding(self, of: str = "", **fields: Any) -> Finding:
        """A finding of this check.

        Args:
            of: What it was run on, where there are several.
            **fields: Of ``Finding``.
        """
        own: dict[str, Any] = {
            "id": f"{self.name}/{of}" if of else self.name, "check": self.name, "code": self.code, "core": self.core,
            "question": self.question, "title": self.title, "limits": self.limits, "maps_to": dict(self.maps_to),
        }  # fmt: skip
        return Finding(**own | fields)

    def unknown(self, code: str, reason: str, remedy: str, of: str = "", **fields: Any) -> Finding:
        """A finding that nothing can be said, and why."""
        told = {"answer": "Nothing can be said.", **fields}
        return self.finding(of, verdict="NOT_ASSESSABLE", reason_code=code, reason=reason, remedy=remedy, **told)


def _nothing(_: Evidence) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check as the runner takes it.

    Attributes:
        about: What it is.
        run: Looks at evidence that has all needs.
        self_test: Finds what it plants and stays silent where it plants nothing, on made-up data.
        needs: What must be there, in the order in which to say so.
        count: How many tests of chance it will do at most.
    """

    about: About
    run: Callable[[Evidence], Sequence[Result]]
    self_test: Callable[[], SelfTest]
    needs: tuple[Need, ...] = ()
    count: Callable[[Evidence], int] = _nothing

    @property
    def corrected(self) -> bool:
        """Whether it tests for chance, so that its p values depend on which other tests are made."""
        return self.count is not _nothing


UNITS = Need(
    there=lambda evidence: evidence.data.units_known, code="no_unit_key", reason="some images, or all, have no unit id",
    remedy="give the column that names the patient or place (group=COLUMN)",
)  # fmt: skip
ATTRIBUTES = Need(
    there=lambda evidence: bool(evidence.asked.attributes), code="no_attribute", reason="no attribute was named",
    remedy="name columns with audit.attributes=[...]",
)  # fmt: skip
TASK = Need(
    there=lambda evidence: evidence.asked.task is not None, code="no_task", reason="no task was named, so no errors were looked at",
    remedy="name a column with audit.task=COLUMN",
)  # fmt: skip
DOMAINS = Need(
    there=lambda evidence: bool(evidence.asked.domains), code="no_domain",
    reason="no column says where or by what the images were made", remedy="name columns with audit.domains=[site, scanner, ...]",
)  # fmt: skip
ENCODER = Need(
    there=lambda evidence: evidence.observer is not None, code="needs_encoder",
    reason="only features were audited; this check has to show the encoder altered images", remedy="audit a checkpoint with its store",
)  # fmt: skip
TRAIL = Need(
    there=lambda evidence: evidence.trail is not None, code="no_lineage",
    reason="only features were audited; what data they came from is not recorded in them", remedy="audit a checkpoint with its store",
)  # fmt: skip
RECORD = Need(
    there=lambda evidence: evidence.record is not None, code="no_lineage", reason="nothing is recorded about how the encoder was made",
    remedy="audit a checkpoint of this package together with its store",
)  # fmt: skip
DECLARED = Need(
    there=lambda evidence: evidence.asked.declaration is not None, code="no_declaration",
    reason="nobody has declared anything about the model",
    remedy="write an empty form with audit.declaration=new, fill it in, and give it with audit.declaration=FILE",
)  # fmt: skip
