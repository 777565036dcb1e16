"""What an audit is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksPlan:
    """What to look for, and how hard.

    Attributes:
        attributes: Columns to read from the features (sex, site, scanner); of the store's index or of the CSV.
        split: Column that says train, val or test; empty means the store's own split, if it has one.
        permutations: Permutations of whole units for each null.
        bootstraps: Resamples of units for each interval.
        folds: Folds by unit.
        max_rows: Most rows the probes use; every unit stays, rows are thinned within units.
    """

    attributes: tuple[str, ...] = ()
    split: str = ""
    permutations: int = 1000
    bootstraps: int = 2000
    folds: int = 5
    max_rows: int = 20_000

    def __post_init__(self) -> None:
        """Raises one error for all values that cannot work."""
        least = {"permutations": 99, "bootstraps": 100, "folds": 2, "max_rows": 100}
        found = [
            UserError(f"audit.{name}", str(getattr(self, name)), allowed=f"{low} or more") for name, low in least.items() if getattr(self, name) < low
        ]
        doubled = {name for name in self.attributes if self.attributes.count(name) > 1}
        found += [UserError("audit.attributes", f"names {name!r} twice", allowed="each column once") for name in sorted(doubled)]
        if found:
            raise Problems(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Audits a checkpoint on a store, or any encoder's features on their own.

    Attributes:
        checkpoint: Run folder or checkpoint to audit; needs ``store``.
        store: Store whose images are looked at.
        features: Features of any encoder: a Parquet file with columns ``id``, ``features`` (list of numbers) and any metadata.
        labels: CSV with attributes, splits and labels, joined to the store.
        metadata: CSV that belongs to ``features``, joined on its column ``join``.
        join: Column of the CSV that names the image.
        group: Column that names the unit (patient, place); empty means the store's own units, or the column ``unit``.
        out: Folder for the report.
        gate: Policy in YAML: thresholds, expectations, and what must be assessed and not flagged; empty means the defaults.
        report: With ``gate``: an ``audit.json`` to judge without auditing anew.
        notice: Printed in every section of the report, for example that the data are made up.
        secret: File with the store's secret, where ids in the CSV are clear names; empty means the one beside the store.
        batch: Images embedded at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Decides folds, permutations and draws.
        audit: What to look for, and how hard.
    """

    checkpoint: str = ""
    store: str = ""
    features: str = ""
    labels: str = ""
    metadata: str = ""
    join: str = "id"
    group: str = ""
    out: str = ""
    gate: str = ""
    report: str = ""
    notice: str = ""
    secret: str = ""
    batch: int = 64
    device: str = "auto"
    seed: int = 0
    audit: ChecksPlan = field(default_factory=ChecksPlan)

    def __post_init__(self) -> None:
        """Raises where the sources do not say what to audit."""
        if self.report:
            if not self.gate:
                raise UserError("report", "without a policy to judge it by", remedy="add gate=POLICY.yaml")
            return
        if bool(self.features) == bool(self.checkpoint):
            raise UserError("checkpoint", "give either checkpoint and store, or features", allowed="checkpoint=... store=... | features=FILE metadata=CSV")
        if self.checkpoint and not self.store:
            raise UserError("store", "missing", remedy="name the store to audit the checkpoint on: store=PATH")
        if not self.out:
            raise UserError("out", "missing", remedy="name the folder for the report: out=DIR")
