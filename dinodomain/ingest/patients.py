r"""Which patient ids are one person: a CSV of aliases, applied before anything is hashed.

A unit of a personal domain is ``ISSUER\ID`` where the header states an issuer, else the id; a backslash cannot occur inside a DICOM
value. The map says the clear name of the person instead. Chains are followed (an old id leads to a newer one, and that to the newest),
circles are refused. Ids are compared without surrounding blanks and NULs; nothing is guessed about leading zeros or upper case.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dinodomain.errors import UserError
from dinodomain.ingest.join import few, read_table
from dinodomain.lineage import clean_id
from dinodomain.types import SourceRef

PLACE = "ingest.patient_map"
ID, PERSON, ISSUER = "PatientID", "Patient", "IssuerOfPatientID"
_SEPARATOR = "\\"
_log = logging.getLogger(__name__)

Alias = tuple[str, str]
"""Issuer ("" where none is stated) and id."""


def unit_of(issuer: str, patient_id: str) -> str | None:
    """The clear unit of a patient, or None without an id."""
    issuer, patient_id = clean_id(issuer), clean_id(patient_id)
    if not patient_id:
        return None
    return f"{issuer}{_SEPARATOR}{patient_id}" if issuer else patient_id


def alias_of(unit: str) -> Alias:
    """Issuer and id of a clear unit."""
    issuer, _, patient_id = unit.rpartition(_SEPARATOR)
    return clean_id(issuer), clean_id(patient_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientMap:
    """Aliases of people.

    Attributes:
        path: The CSV.
        persons: Alias to the person it leads to.
        lines: Alias to its line of the CSV.
    """

    path: str = ""
    persons: Mapping[Alias, str] = field(default_factory=dict)
    lines: Mapping[Alias, int] = field(default_factory=dict)

    def unit(self, unit: str) -> str:
        """The person that a clear unit belongs to; itself where the map does not know it."""
        found = self.find(alias_of(unit))
        return unit if found is None else self.persons[found]

    def find(self, alias: Alias) -> Alias | None:
        """The row that speaks of an alias: the one with its issuer, else the one of that id without an issuer."""
        return next((known for known in (alias, ("", alias[1])) if known in self.persons), None)


def read_patient_map(path: str | Path) -> PatientMap:
    """Reads ``ingest.patient_map``.

    Raises:
        UserError: A column is missing, a value is empty, an id leads to two persons, or ids lead in a circle; names the lines.
    """
    table = read_table(path, PLACE)
    for column in (ID, PERSON):
        table.require(column, PLACE)
    direct: dict[Alias, str] = {}
    lines: dict[Alias, int] = {}
    wrong = []
    for line, row in zip(table.lines, table.rows):
        alias, person = (clean_id(row.get(ISSUER, "")), clean_id(row[ID])), clean_id(row[PERSON])
        if not alias[1] or not person:
            wrong.append(f"line {line}: {ID if not alias[1] else PERSON} is empty")
        elif _SEPARATOR in f"{alias[0]}{alias[1]}{person}":
            wrong.append(f"line {line}: a backslash, which no DICOM value can hold")
        elif direct.setdefault(alias, person) != person:
            wrong.append(f"lines {lines[alias]} and {line}: {alias[1]!r} is mapped to {direct[alias]!r} and to {person!r}")
        lines.setdefault(alias, line)
    if wrong:
        raise UserError(PLACE, f"{table.path}: {few('', wrong)}", remedy="give each id one person")
    return PatientMap(path=table.path, persons={alias: _last(alias, direct, lines, table.path) for alias in direct}, lines=lines)


def _last(alias: Alias, direct: Mapping[Alias, str], lines: Mapping[Alias, int], path: str) -> str:
    """The end of a chain: a person that is itself an id of the map is followed, within the issuer first."""
    seen = [alias]
    while True:
        person = direct[seen[-1]]
        following = next((known for known in ((alias[0], person), ("", person)) if known in direct), None)
        if following is None and not alias[0] and any(person == known[1] for known in direct):
            remedy = f"state the {ISSUER} of {alias[1]!r}, so that the chain is clear"
            raise UserError(PLACE, f"{path}: line {lines[alias]}: {person!r} is an id of a stated issuer elsewhere", remedy=remedy)
        if following is None or following == seen[-1]:
            return person
        if following in seen:
            circle = ", ".join(f"{known[1]!r} (line {lines[known]})" for known in seen[seen.index(following) :])
            raise UserError(PLACE, f"{path}: ids lead in a circle: {circle}", remedy="let the newest id lead to itself, or to nothing")
        seen.append(following)


def apply(patients: PatientMap, refs: Sequence[SourceRef]) -> tuple[SourceRef, ...]:
    """Sources with the person in place of the alias. Ids of the map that no source has are fine, and so are sources it does not know.

    Raises:
        UserError: A row without an issuer speaks of ids of several issuers, or a source's id is the name of a person under an issuer.
    """
    _refuse_unclear(patients, refs)
    mapped = tuple(ref if ref.unit is None else replace(ref, unit=patients.unit(ref.unit)) for ref in refs)
    changed = sum(patients.find(alias_of(ref.unit)) is not None for ref in refs if ref.unit is not None)
    _log.info("%s: %d of %d sources belong to a person of the map", PLACE, changed, len(refs))
    return mapped


def _refuse_unclear(patients: PatientMap, refs: Iterable[SourceRef]) -> None:
    persons = set(patients.persons.values())
    issuers: dict[Alias, set[str]] = {}
    strays: set[Alias] = set()
    for alias in {alias_of(ref.unit) for ref in refs if ref.unit is not None}:
        known = patients.find(alias)
        if known is not None and not known[0]:
            issuers.setdefault(known, set()).add(alias[0])
        elif known is None and alias[0] and alias[1] in persons:
            strays.add(alias)
    several = [f"{alias[1]!r} (line {patients.lines[alias]}: {len(found)} issuers)" for alias, found in sorted(issuers.items())
               if len(found) > 1]  # fmt: skip
    if several:
        problem = f"{patients.path}: ids that stand for several people: {few('', several)}"
        raise UserError(PLACE, problem, remedy=f"add a column {ISSUER}")
    if strays:
        shown = [f"{patient_id!r} of issuer {issuer!r}" for issuer, patient_id in sorted(strays)]
        problem = f"{patients.path}: {few('', shown)} is the name of a person, but has no row of its own"
        raise UserError(PLACE, problem, remedy=f"add a row with {ISSUER} for it, or call the person otherwise")
