"""A patient of a store stays the same unit in every later ingest, or the ingest is refused: a split would leak otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dinodomain.errors import UserError
from dinodomain.ingest.join import few
from dinodomain.ingest.patients import ID, ISSUER, PLACE, Alias, read_patient_map, unit_of
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.sources import Found, Names
from dinodomain.store.read import Store


def refuse_moved_patients(plan: IngestPlan, found: Found, names: Names, old: Store | None) -> None:
    """Compares the units of an existing store with those its patients would get now.

    Raises:
        UserError: The store was made with a patient map and this ingest has none, or a patient's sources lie under another unit.
    """
    if old is None or not names.personal or plan.group is not None:
        return
    if plan.patient_map is None and old.manifest.get("patient_map"):
        problem = f"{str(old.path)!r} was made with a patient map, and this ingest has none"
        raise UserError(PLACE, problem, remedy="give the map again; rows may have been added to it")
    units = _stored_units(old)
    moved = sorted(alias for alias, unit in _wanted(plan, found) if _elsewhere(alias, unit, names, units))
    if moved:
        shown = list(dict.fromkeys(repr(unit_of(*alias)) for alias in moved))
        problem = f"sources of {few('', shown)} lie under another unit in {str(old.path)!r}"
        raise UserError(PLACE, problem, remedy="use the same ingest.patient_map and ingest.group as before, or make a new store")


def _wanted(plan: IngestPlan, found: Found) -> Iterable[tuple[Alias, str]]:
    """Every alias of this ingest and of its map, with the clear unit it belongs to now."""
    for ref in found.refs:
        if ref.unit is not None and ref.keys.get(ID):
            yield (ref.keys.get(ISSUER, ""), ref.keys[ID]), ref.unit
    if plan.patient_map is not None:
        yield from read_patient_map(plan.patient_map).persons.items()


def _stored_units(old: Store) -> dict[tuple[str, str], set[str]]:
    """Stored issuer and id to the units they lie under."""
    names = old.index.column_names
    if f"key_{ID}" not in names:
        return {}
    ids, units = old.index[f"key_{ID}"].to_pylist(), old.index["unit"].to_pylist()
    issuers = old.index[f"key_{ISSUER}"].to_pylist() if f"key_{ISSUER}" in names else [None] * len(ids)
    found: dict[tuple[str, str], set[str]] = {}
    for patient_id, issuer, unit in zip(ids, issuers, units):
        if patient_id:
            found.setdefault((issuer or "", patient_id), set()).add(unit)
    return found


def _elsewhere(alias: Alias, unit: str, names: Names, units: Mapping[tuple[str, str], set[str]]) -> bool:
    issuer, patient_id = alias
    there = units.get((names.stored(issuer) if issuer else "", names.stored(patient_id)), set())
    return bool(there - {names.stored(unit)})
