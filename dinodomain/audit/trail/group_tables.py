"""Units per group, missing values and joint cells as tables and figures; cells below ten units are not printed. Judges nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from dinodomain.audit.figures import Cell, Heat, Table
from dinodomain.audit.protocol.attribute import SMALL_CELL, printed
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
        hidden = withheld(groups.counts())
        for label, count, part, hide in zip(groups.names, groups.counts().tolist(), share.tolist(), hidden.tolist()):
            rows.append((name, label, _shown(count, hide), None if hide else round(part, 3)))
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


def withheld(counts: np.ndarray) -> np.ndarray:
    """[...] bool, which of the counts [G] or [G, H] are not printed: those below ten, and so many more that no sum tells them.

    One hidden cell of a line follows from the line's sum and the others; so the smallest other one is hidden with it.
    """
    table = np.atleast_2d(counts)
    hidden, before = (table > 0) & (table < SMALL_CELL), -1
    while hidden.sum() != before:
        before = hidden.sum()
        for line, hide in (*zip(table, hidden), *zip(table.T, hidden.T)):
            others = ~hide & (line > 0)
            if hide.sum() == 1 and others.any():
                hide[np.where(others, line, np.inf).argmin()] = True
    return hidden.reshape(counts.shape)


def _shown(count: int, hide: bool) -> int | str:
    return printed(count) if not hide or 0 < count < SMALL_CELL else "not told"


def joint_tables(found: Mapping[str, UnitGroups]) -> list[Table]:
    """Units in every combination of the first columns, two by two, where they are few enough to read."""
    pairs = [pair for pair in itertools.combinations(found, 2) if set(pair) != {"month", "season"}]
    usable = [(a, b) for a, b in pairs if 2 <= len(found[a].names) <= 10 and 2 <= len(found[b].names) <= 10]
    return [_joint(a, found[a], b, found[b]) for a, b in usable[:6]]


def _joint(name: str, one: UnitGroups, other_name: str, other: UnitGroups) -> Table:
    counts = (one.shares > 0).T.astype(int) @ (other.shares > 0).astype(int)
    hidden = withheld(counts)
    rows = tuple((label, *map(_shown, line, hide)) for label, line, hide in zip(one.names, counts.tolist(), hidden.tolist()))
    note = "Not told: with a sum it would tell a number below ten." if (hidden & (counts >= SMALL_CELL)).any() else ""
    return Table(title=f"Units by {name} and {other_name}", columns=(name, *other.names), rows=rows, note=note)


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
