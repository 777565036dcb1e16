"""Units per group, missing values and joint cells as tables and figures; cells below ten units are not printed. Judges nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from dinodomain.audit.figures import Cell, Heat, Table
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.audit.trail.groups import UnitGroups


def effective(groups: UnitGroups) -> float:
    """Exp of the entropy of the groups' shares: as many equal groups would be as diverse; 0 where nothing is known."""
    share = groups.shares[groups.known].mean(axis=0) if groups.known.any() else np.zeros(0)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def group_table(found: Mapping[str, UnitGroups]) -> Table:
    """Units and share of every group of every column."""
    rows: list[tuple[Cell, ...]] = []
    for name, groups in found.items():
        share = groups.shares[groups.known].mean(axis=0) if groups.known.any() else np.zeros(len(groups.names))
        for label, count, part in zip(groups.names, groups.counts().tolist(), share.tolist()):
            small = isinstance(printed(count), str)
            rows.append((name, label, printed(count), None if small else round(part, 3)))
    note = "A unit with several values counts in each; shares give every unit the weight 1."
    return Table(title="Units per group", columns=("column", "group", "units", "share"), rows=tuple(rows), note=note)


def missing_table(found: Mapping[str, UnitGroups], blank: Mapping[str, float]) -> Table:
    """Units without a value and effective number of groups, by column."""
    rows = tuple(
        (name, printed((~groups.known).sum()), round(blank[name], 3), round(effective(groups), 2)) for name, groups in found.items()
    )
    return Table(
        title="Missing values and effective number of groups",
        columns=("column", "units without", "share without", "effective groups"),
        rows=rows,
    )


def joint_tables(found: Mapping[str, UnitGroups]) -> list[Table]:
    """Units in every combination of the first columns, two by two, where they are few enough to read."""
    pairs = [pair for pair in itertools.combinations(found, 2) if set(pair) != {"month", "season"}]
    usable = [(a, b) for a, b in pairs if 2 <= len(found[a].names) <= 10 and 2 <= len(found[b].names) <= 10]
    return [_joint(a, found[a], b, found[b]) for a, b in usable[:6]]


def _joint(name: str, one: UnitGroups, other_name: str, other: UnitGroups) -> Table:
    counts = (one.shares > 0).T.astype(int) @ (other.shares > 0).astype(int)
    rows = tuple((label, *(printed(count) for count in line)) for label, line in zip(one.names, counts.tolist()))
    return Table(title=f"Units by {name} and {other_name}", columns=(name, *other.names), rows=rows)


def missing_plots(found: Mapping[str, UnitGroups]) -> tuple[Heat, ...]:
    """Shares without a value, column by group; None where a group is too small to print."""
    panels = {}
    for by, others in found.items():
        if not 2 <= len(others.names) <= 10:
            continue
        inside = [others.shares[:, column] > 0 for column in range(len(others.names))]
        panels[f"rows: {', '.join(found)}; columns: {by} = {', '.join(others.names)}"] = tuple(
            tuple(float((~groups.known[rows]).mean()) if rows.sum() >= MIN_UNITS else None for rows in inside) for groups in found.values()
        )
    if not panels or all(not value for panel in panels.values() for line in panel for value in line):
        return ()
    return (Heat(title="Where values are missing", axis="share of units without a value", panels=panels, low=0.0, high=1.0),)
