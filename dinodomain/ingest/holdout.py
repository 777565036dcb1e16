"""The audit holdout: units that nothing ever trains on, so that membership can be tested later.

Decided once, when a store is first finalised. A unit is held out if HMAC(secret, unit) falls under the share, so its flag
never changes, later ingests move nobody, and stores that share a secret agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dinodomain.lineage import Json, share_of

MIN_SHARE = 0.02
MIN_UNITS = 30
MAX_SHARE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """The rule of one store.

    Attributes:
        share: Units whose number under the secret lies below it are held out; 0 holds out none.
        reason: How the share came about, in words.
    """

    share: float
    reason: str

    def holds(self, secret: bytes, unit: str) -> bool:
        """Whether a unit is held out."""
        return self.share > 0 and share_of(secret, unit) < self.share

    def held(self, secret: bytes, units: Collection[str]) -> tuple[str, ...]:
        """The held-out ones among units, sorted."""
        return tuple(sorted(unit for unit in set(units) if self.holds(secret, unit)))

    def as_json(self, units: Collection[str], held: Sequence[str]) -> dict[str, Json]:
        """What the manifest keeps."""
        return {"share": self.share, "reason": self.reason, "num_units": len(set(units)), "units": list(held)}


def decide(num_units: int, wanted: float | None) -> Holdout:
    """The rule for a new store of ``num_units`` units.

    Args:
        num_units: Number of distinct units.
        wanted: Share set by the user; None takes max(2 %, 30 units) if that is at most 10 % of the units, else none.
    """
    if wanted is not None:
        return Holdout(share=wanted, reason="set by ingest.audit_holdout" if wanted else "switched off by ingest.audit_holdout=0")
    share = max(MIN_SHARE, MIN_UNITS / num_units) if num_units else 1.0
    if share <= MAX_SHARE:
        return Holdout(share=share, reason=f"max({MIN_SHARE:.0%}, {MIN_UNITS} units) of {num_units} units")
    least = round(MIN_UNITS / MAX_SHARE)
    return Holdout(
        share=0.0, reason=f"{num_units} units are too few: {MIN_UNITS} units may be at most {MAX_SHARE:.0%}, which takes {least} units"
    )


def kept(manifest: Mapping[str, Json]) -> Holdout:
    """The rule that an existing store keeps."""
    return Holdout(share=float(manifest["holdout"]["share"]), reason=str(manifest["holdout"]["reason"]))
