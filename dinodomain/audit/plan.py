"""What an audit is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from dinodomain.audit.evidence import Asked
from dinodomain.audit.protocol.leak import Effort
from dinodomain.errors import Problems, UserError

WORDS = {
    "internal_use": "use within the house", "release_weights": "release of the weights", "publish_embeddings": "publication of embeddings",
}  # fmt: skip
FORMATS = ("datasheet", "croissant", "mlbom", "junit", "cells")
DECISIONS = ("internal_use", "release_weights", "publish_embeddings")


def decision_words(decision: str) -> str:
    """A decision as people read it."""
    kind, _, task = decision.partition(":")
    return f"deployment for {task}" if task else WORDS.get(kind, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Audits a checkpoint on a store, or any encoder's features on their own, or judges a report that exists.

    Attributes:
        checkpoint: Run folder, checkpoint or exported backbone to audit; needs ``store``.
        store: Store whose images are looked at.
        features: Features of any encoder: a Parquet file with a list column ``features`` and any metadata columns.
        labels: CSV with attributes, splits and labels, joined to the store.
        metadata: The same as ``labels``; with ``features`` the CSV that belongs to them.
        join: Column of the CSV that names the image.
        group: Column that names the unit (patient, place); none means the store's own units, or the column ``unit``.
        target: Column of a task with two classes; its scores are compared between the groups of each attribute.
        task: The same as ``target``.
        attributes: Sensitive columns to read from the features (sex, age, ethnicity); of the store's index or of the CSV.
        domains: Columns that say where and by what images were made (site, scanner, sensor, season).
        strata: Columns that may rightly explain an attribute (age, view, finding): a leak must go beyond them.
        study: Column that tells the visits of one unit apart; none takes each source for a visit.
        decision: What the report is to decide: ``internal_use``, ``release_weights``, ``publish_embeddings`` or ``deploy:TASK``. Where a
            policy names no ``required``, these need the core checks of Q1 and Q4, of all four questions, of Q1, Q3 and Q4, of all four.
        checks: Checks to run; empty runs all.
        split: Column that says train, val or test; none means ``split``, where there is one.
        out: Folder for the report.
        overwrite: Whether a finished report in that folder may be replaced.
        gate: Policy in YAML: thresholds, expectations, and what must be assessed and not flagged; none means the defaults. ``new`` writes
            an empty one into ``out``, each key with its meaning, and audits nothing.
        report: With ``gate``: an ``audit.json``, or the folder of one, to judge without auditing anew.
        verify: Folder of a report to check instead of auditing: sums, schema, chain, signature; with ``checks`` these are computed anew,
            from the inputs that the report names or from those given beside it (``features``, ``metadata``, ``checkpoint``, ``store``).
        against: With ``gate``: an earlier ``audit.json``; findings flagged now and not then count against ``max_new_flags``.
        previous: Checkpoint of the release before, which the audited one is compared with on the same rows.
        finetuned: Checkpoint or export of a model fine-tuned from the audited one; its leaks and gaps are compared with the encoder's.
        generic: Checkpoint that stands for what anybody can get; none takes the weights that the run began with, where it kept them.
        declaration: What people declare about uses and risks, a YAML file; ``new`` writes an empty form into ``out`` and audits nothing.
        supplied_by: Who supplied audit set and metadata, printed on the first page.
        independent: Whether the auditor had no part in building the model, printed on the first page.
        formats: More files of the bundle: ``datasheet``, ``croissant``, ``mlbom``, ``junit``, ``cells``.
        sign: Private Ed25519 key (PEM) that signs the sums of the bundle.
        key: With ``verify``: public key (PEM) that the signature must be of; none takes the one beside it.
        unit: Stored id or clear name of a unit: lists, instead of auditing, everything below ``runs`` that drew it. ``store`` and
            ``secret`` tell how clear names are stored, and whether the unit was withdrawn.
        runs: Folders with runs, features and exports, for ``unit``.
        notice: Printed in every section of the report, for example that the data are made up.
        secret: File with the store's secret, where ids in the CSV are clear names; none means the one beside the store.
        permutations: Permutations of whole units for each null.
        joint_permutations: The same where all places (``dense``) or regions (``shortcut``) of an attribute are one test.
        bootstraps: Resamples of units for each interval.
        folds: Folds by unit.
        max_rows: Most rows the probes use; every unit stays, rows are thinned within units.
        copies: Images of which altered copies are embedded, to measure what the duplicate check would find; 0 for none.
        images: Most images that the encoder is shown again, altered or in parts.
        tokens: Most images whose patch tokens are looked at.
        ocr_images: Images in which text is looked for by OCR, 0 looks in none; none takes 3,500 in domains of people and 100 elsewhere.
        attackers: Whether stronger attackers than the linear probe are tried; they take most of the time and can only worsen a verdict.
        batch: Images embedded at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Decides folds, permutations and draws.
    """

    checkpoint: str | None = None
    store: str | None = None
    features: str | None = None
    labels: str | None = None
    metadata: str | None = None
    join: str = "id"
    group: str | None = None
    target: str | None = None
    task: str | None = None
    attributes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    study: str | None = None
    decision: str = "internal_use"
    checks: tuple[str, ...] = ()
    split: str | None = None
    out: str | None = None
    overwrite: bool = False
    gate: str | None = None
    report: str | None = None
    verify: str | None = None
    against: str | None = None
    previous: str | None = None
    finetuned: str | None = None
    generic: str | None = None
    declaration: str | None = None
    supplied_by: str = ""
    independent: bool | None = None
    formats: tuple[str, ...] = ()
    sign: str | None = None
    key: str | None = None
    unit: str | None = None
    runs: tuple[str, ...] = ()
    notice: str = ""
    secret: str | None = None
    permutations: int = 1000
    joint_permutations: int = 200
    bootstraps: int = 2000
    folds: int = 5
    max_rows: int = 20_000
    copies: int = 100
    images: int = 2000
    tokens: int = 5000
    ocr_images: int | None = None
    attackers: bool = True
    batch: int = 64
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises one error for all that cannot work."""
        found = [*self._ranges(), *self._asked_for()]
        if found:
            raise Problems(found)

    @property
    def forms(self) -> bool:
        """Whether empty forms are asked for, and no audit."""
        return "new" in (self.gate, self.declaration)

    @property
    def csv(self) -> str | None:
        """The CSV, whichever name it came under."""
        return self.labels or self.metadata

    @property
    def task_column(self) -> str | None:
        """The task, whichever name it came under."""
        return self.task or self.target

    @property
    def asked(self) -> Asked:
        """Which columns mean what."""
        return Asked(
            attributes=self.attributes, task=self.task_column, domains=self.domains, strata=self.strata, study=self.study,
            decision=self.decision, ocr_images=self.ocr_images,
        )  # fmt: skip

    @property
    def effort(self) -> Effort:
        """How hard to look."""
        return Effort(
            folds=self.folds, permutations=self.permutations, joint_permutations=self.joint_permutations, bootstraps=self.bootstraps,
            seed=self.seed, attackers=self.attackers,
        )  # fmt: skip

    def _asked_for(self) -> list[UserError]:
        if self.forms:
            return [] if self.out else [UserError("out", "missing", remedy="name the folder for the empty form")]
        if self.verify:
            return []
        if self.unit:
            return [] if self.runs else [UserError("runs", "missing", remedy="name the folders to search: audit.runs=[DIR,...]")]
        return self._judging() if self.report else self._auditing()

    def _ranges(self) -> list[UserError]:
        least = {
            "permutations": 99,
            "joint_permutations": 99,
            "bootstraps": 100,
            "folds": 2,
            "max_rows": 100,
            "copies": 0,
            "images": 1,
            "tokens": 1,
            "batch": 1,
        }
        if self.ocr_images is not None:
            least["ocr_images"] = 0
        return [
            UserError(name, str(getattr(self, name)), allowed=f"{low} or more") for name, low in least.items() if getattr(self, name) < low
        ]

    def _judging(self) -> list[UserError]:
        found = [] if self.gate else [UserError("report", "without a policy to judge it by", remedy="add gate=POLICY.yaml")]
        if self.out:
            found.append(UserError("out", "report= judges what exists and writes nothing", remedy="leave it out; --json prints all"))
        return found

    def _auditing(self) -> list[UserError]:
        usage = "checkpoint=RUN store=STORE, or features=FILE"
        found = []
        if bool(self.features) == bool(self.checkpoint):
            found.append(UserError("checkpoint", "give either a checkpoint or features", allowed=usage))
        if self.checkpoint and not self.store:
            found.append(UserError("store", "missing", remedy="name the store to audit the checkpoint on"))
        if not self.out:
            found.append(UserError("out", "missing", remedy="name the folder for the report"))
        for one, other in (("labels", "metadata"), ("target", "task")):
            if getattr(self, one) and getattr(self, other) and getattr(self, one) != getattr(self, other):
                found.append(UserError(other, f"differs from {one}, which means the same", remedy=f"give {one} or {other}"))
        for key in ("attributes", "domains", "strata"):
            names = getattr(self, key)
            found += [
                UserError(key, f"names {name!r} twice", allowed="each column once") for name in sorted(set(names)) if names.count(name) > 1
            ]
        unknown = [name for name in self.formats if name not in FORMATS]
        found += [UserError("formats", f"no format {name!r}", allowed=", ".join(FORMATS)) for name in unknown]
        if self.features:
            others = [key for key in ("previous", "finetuned", "generic") if getattr(self, key)]
            found += [UserError(key, "needs a checkpoint and its store to be embedded alike", remedy="leave it out") for key in others]
        if self.decision not in DECISIONS and not (self.decision.startswith("deploy:") and len(self.decision) > len("deploy:")):
            found.append(UserError("decision", f"is {self.decision!r}", allowed=f"{', '.join(DECISIONS)} or deploy:TASK"))
        return found
