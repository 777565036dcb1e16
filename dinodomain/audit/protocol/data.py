"""What an audit looks at: arrays and metadata, no encoder and no store. N rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dinodomain.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Features of deliberately altered copies (exposure, noise, shift) of some audited images, to measure what the duplicate check finds.

    Attributes:
        rows: [c] row of the original in the audited set.
        features: Kind to [c, width], the kinds of ``AuditSet.features``.
    """

    rows: np.ndarray
    features: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSet:
    """The audited rows.

    Attributes:
        features: Kind to [N, width]; ``audited`` always, ``pixels`` and ``untrained`` where they could be made.
        units: [N] unit ids; "" where unknown.
        content_hash: [N] digests of the pixels, or None where pixels were never seen.
        sources: [N] number of the image each row was cut from; tiles of one image share it.
        columns: Metadata by name, N values each.
        split: Name of the column that says train, val, test ...; None if there is none.
        holdout: [N] True where a unit was reserved before training; None where nothing is known about reservation.
        members_known: Whether the audited encoder is known to have been trained on these rows (held-out ones excepted).
        copies: Altered copies, or None.
        linked: [N] units of values that whole sources share: where tiles of one source lie in several units (ground cells), these are
            one here, or a fold would train on the very label that it scores. None takes ``units``.
        numbers: [N] row of each in the whole audited set, by which the encoder can be shown it again; None where these are all rows.
    """

    features: Mapping[str, np.ndarray]
    units: np.ndarray
    content_hash: np.ndarray | None
    sources: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    split: str | None = None
    holdout: np.ndarray | None = None
    members_known: bool = False
    copies: Copies | None = None
    linked: np.ndarray | None = None
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.units)
        for name, rows in self.features.items():
            _expect(f"features.{name}", rows, count)
            if not np.isfinite(rows).all():
                bad = int((~np.isfinite(rows).all(axis=1)).sum())
                raise UserError(
                    f"features.{name}", f"{bad} of {count} rows hold NaN or infinity", remedy="embed again with fp32, or leave them out"
                )
        for name, values in self.columns.items():
            _expect(f"column {name}", values, count)

    @property
    def audited(self) -> np.ndarray:
        """[N, E] features of the audited encoder."""
        return self.features["audited"]

    @property
    def units_known(self) -> bool:
        """Whether every row has a unit."""
        return bool((self.units != "").all())

    @property
    def label_units(self) -> np.ndarray:
        """[N] unit of each row for columns, which hold one value per source."""
        return self.units if self.linked is None else self.linked

    @property
    def whole_rows(self) -> np.ndarray:
        """[N] row of each in the whole audited set."""
        return np.arange(len(self.units)) if self.numbers is None else self.numbers

    @property
    def num_units(self) -> int:
        """Distinct known units."""
        return len(np.unique(self.units[self.units != ""]))

    def splits(self) -> np.ndarray | None:
        """[N] split of each row as text, or None without a split column or with one value only."""
        if self.split is None:
            return None
        values = np.array([str(value) for value in self.columns[self.split]])
        return values if len(np.unique(values[values != ""])) > 1 else None


def take(data: AuditSet, rows: np.ndarray) -> AuditSet:
    """The given rows; altered copies, which refer to rows, are left behind."""
    return replace(
        data,
        features={name: values[rows] for name, values in data.features.items()},
        units=data.units[rows],
        content_hash=None if data.content_hash is None else data.content_hash[rows],
        sources=data.sources[rows],
        columns={name: np.asarray(values)[rows] for name, values in data.columns.items()},
        holdout=None if data.holdout is None else data.holdout[rows],
        copies=None,
        linked=None if data.linked is None else data.linked[rows],
        numbers=data.whole_rows[rows],
    )


def _expect(place: str, values: np.ndarray, count: int) -> None:
    if len(values) != count:
        raise UserError(place, f"{len(values)} rows for {count} units", allowed="one value per row")
    if not count:
        raise UserError(place, "no rows to audit", remedy="check the join of metadata and features")
