"""Sites: are the features ordered by where and by what images were made rather than by what they show?

Two measurements. The robustness index counts whose neighbours a row has (``protocol/neighbours.py``); a probe reads the domain. The index
leads: a site read with AUROC .96 goes together with an index of .80 in a published pathology encoder (UNI2-h in PathoROB). Where
class and domain cannot be told apart there is no index, and a readable domain is then a shortcut that nothing in the data can expose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dinodomain.audit.evidence import DOMAINS, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Curves, Forest, Plot, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of, null_of
from dinodomain.audit.protocol.attribute import Attribute, counted, printed, read_attribute
from dinodomain.audit.protocol.leak import Leak, read_leaks
from dinodomain.audit.protocol.neighbours import Index, Pair, index_interval, make_pair, measure_index
from dinodomain.audit.protocol.task import baselines, cramers_v, cross_table, pooled, read_column, unit_counts, units_in
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import MAX_GROUPS, text_of
from dinodomain.probes.folds import index_units

ABOUT = About(
    name="site", code="SITE", question="Q2", core=True, title="Are the features ordered by domain rather than by content?",
    limits=(
        "Neighbours by cosine and a ridge probe; another reader of the features may see more.",
        "Domains that differ in who was imaged differ for good reason too; this check cannot tell that from acquisition.",
        "Says nothing about domains that are not in these data.",
    ),
    maps_to={
        "EU AI Act": ("Art. 15", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.5", "MEASURE 2.6"),
        "FUTURE-AI": ("Universality 3", "Robustness 1"),
    },
)  # fmt: skip
_METHOD = "1.96 x SE of unit bootstrap, units drawn as queries and as neighbours"
_MAX_PAIRS = 30
CONFOUNDED = 0.5
"""Cramer's V from which a column of domains tells the class: Cohen 1988 calls .5 a strong association."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Where classes of the task and domains meet.

    Attributes:
        task: Name of the task.
        domains: Their names.
        classes: Their names.
        units: [domains, classes] units.
        association: Cramer's V.
        lonely: Class to the only domain that holds it.
    """

    task: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    units: np.ndarray
    association: float
    lonely: dict[str, str]


def run(evidence: Evidence) -> list[Result]:
    """A finding per column."""
    return [_result(evidence, name) for name in evidence.asked.domains]


def _result(evidence: Evidence, name: str) -> Result:
    data = evidence.probed
    domain = read_attribute(name, pooled(data.columns[name], data.label_units), data.label_units)
    told: dict[str, Any] = {
        "title": f"Are the features ordered by {name} rather than by content?", "n_units": domain.num_units, "n_minor": domain.num_minor,
        "n_images": len(domain.rows), "counts": counted(domain.units_per_class, "units of"),
    }  # fmt: skip
    if domain.kind != "classes" or len(domain.classes) < 2:
        reason = f"{name} does not hold 2 to {MAX_GROUPS} domains"
        return ABOUT.unknown("one_class", reason, "name a column of sites, scanners, sensors or seasons", name, **told)
    if domain.num_minor < MIN_UNITS or domain.num_units < evidence.effort.folds:
        reason = f"{domain.num_minor} units in the smallest domain; {MIN_UNITS} are the least"
        return ABOUT.unknown("n_units", reason, "audit more units of that domain", name, **told)
    leaks, _ = read_leaks({"audited": data.audited, **data.features}, domain, evidence.effort)
    crossing = None if evidence.asked.task is None else _crossing(evidence, domain)
    index = None if evidence.asked.task is None else measure(evidence, domain)
    judge = lambda p, family: _finding(domain, leaks, crossing, index, p, family, evidence.lines, told)  # noqa: E731
    return Draft(p=(leaks["audited"].p, *([] if index is None else [index.p])), judge=judge)


def _crossing(evidence: Evidence, domain: Attribute) -> Crossing:
    """Classes by domains over all rows that tell both; a number is no class."""
    data, task = evidence.probed, evidence.asked.task
    assert task is not None, "asked by the caller"
    labels = text_of(data.columns[task])[domain.rows]
    known = labels != "" if len(np.unique(labels)) <= MAX_GROUPS else np.zeros(len(labels), bool)
    places = np.array(domain.classes)[domain.values[known]]
    found, classes, table = cross_table(places, labels[known], domain.unit_index[known])
    association = cramers_v(places, labels[known], domain.unit_index[known]) if known.any() else float("nan")
    lonely = {str(one): str(found[table[:, at].argmax()]) for at, one in enumerate(classes) if (table[:, at] > 0).sum() == 1}
    return Crossing(
        task=task, domains=tuple(map(str, found)), classes=tuple(map(str, classes)), units=table, association=association, lonely=lonely
    )  # fmt: skip


def measure(evidence: Evidence, domain: Attribute) -> Index | None:
    """The robustness index over all pairs of domains that share two classes of the task, each with 30 units in both; or None."""
    data, task = evidence.probed, evidence.asked.task
    assert task is not None, "asked by the caller"
    target = read_column(data, task)
    if target.kind != "classes":
        return None
    rows = np.intersect1d(domain.rows, target.rows)
    place = domain.values[np.searchsorted(domain.rows, rows)]
    y = target.values[np.searchsorted(target.rows, rows)]
    units = index_units(data.label_units[rows])
    wanted = list(combinations(range(len(domain.classes)), 2))[:_MAX_PAIRS]
    pairs = [_pair(data.audited[rows], domain, two, place, y, units, evidence.effort.seed) for two in wanted]
    made = tuple(pair for pair in pairs if pair is not None)
    if not made:
        return None
    complete = len(made) == len(pairs) and all(pair.classes == len(target.classes) for pair in made)
    weights = unit_counts(int(units.max()) + 1, evidence.effort.bootstraps, evidence.effort.seed)
    return measure_index(made, complete, weights, evidence.effort.permutations, evidence.effort.seed)


def _pair(
    features: np.ndarray, domain: Attribute, two: tuple[int, int], place: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int
) -> Pair | None:  # fmt: skip
    cells = {one: min(units_in(units, (place == at) & (y == one)) for at in two) for one in np.unique(y)}
    shared = [one for one, count in cells.items() if count >= MIN_UNITS]
    if len(shared) < 2:
        return None
    keep = np.isin(place, two) & np.isin(y, shared)
    names = (domain.classes[two[0]], domain.classes[two[1]])
    codes = np.searchsorted(shared, y[keep])
    return make_pair(
        features[keep], names=names, y=codes, domain=(place[keep] == two[1]).astype(int), units=units[keep],
        cell=min(cells[one] for one in shared), seed=seed,
    )  # fmt: skip


def _finding(
    domain: Attribute, leaks: Mapping[str, Leak], crossing: Crossing | None, index: Index | None, p: tuple[float, ...], family: int,
    lines: Thresholds, told: dict[str, Any],
) -> Finding:  # fmt: skip
    leak = leaks["audited"]
    read = p[0] <= lines.alpha and leak.interval.low >= lines.tau_flag
    verdict, code, reason, remedy = _verdict(domain, crossing, index, read, read or p[-1] <= lines.alpha, lines)
    probe = {"score": leak.value, "low": leak.interval.low, "high": leak.interval.high, "p": leak.p, "p_adjusted": p[0]}
    measured = {"estimate": estimate_of(index.value, "robustness index", _METHOD)} if index else _probed(leak, p[0], family)
    told |= {
        **measured, "baselines": () if index else baselines(leaks), "encoded": True if read else None,
        "tables": _tables(domain, crossing, index), "plots": _plots(domain, leaks, index, lines),
        "evidence": {"probe": probe, "cramers_v": None if crossing is None else crossing.association, **_indexed(index, p[-1])},
    }  # fmt: skip
    return ABOUT.finding(
        domain.name, **told, verdict=verdict, reason_code=code, reason=reason, remedy=remedy,
        answer=_answer(domain, leak, index, verdict, near=p[-1] <= lines.alpha), **_advice(domain, crossing, index, verdict),
    )  # fmt: skip


def _indexed(index: Index | None, p_adjusted: float) -> dict[str, Any]:
    if index is None:
        return {}
    return {"k": index.k, "class_accuracy": index.accuracy, "index_without_order": float(index.null.mean()), "p_adjusted": p_adjusted}


def _probed(leak: Leak, p: float, family: int) -> dict[str, Any]:
    null = null_of("unit permutation", leak.null, leak.p, p, family)
    return {"estimate": estimate_of(leak.interval, "auroc of the domain", "1.96 x max(SE of unit bootstrap, SD of null)"), "null": null}


def _verdict(
    domain: Attribute, crossing: Crossing | None, index: Index | None, read: bool, ordered: bool, lines: Thresholds
) -> tuple[Verdict, str, str, str]:  # fmt: skip
    """Verdict, reason code, reason and remedy."""
    if index is not None:
        return _by_index(domain, index, ordered, lines)
    if crossing is None:
        reason = f"no task was named, so order by {domain.name} cannot be weighed against order by content"
        remedy = "name a column with audit.task=COLUMN"
        return ("FLAG", "no_task", reason, remedy) if read else ("NOT_ASSESSABLE", "no_task", reason, remedy)
    few = f"no two classes of {crossing.task} have {MIN_UNITS} units in each of two domains"
    if not crossing.lonely and not crossing.association >= CONFOUNDED:
        reason = f"{few}, so order by {domain.name} could not be weighed against order by content"
        return "WARN" if read else "NOT_ASSESSABLE", "n_units", reason, f"add units of the rarer class of {crossing.task}"
    alone = ", ".join(f"{one} occurs in {place} only" for one, place in crossing.lonely.items())
    reason = (
        f"{domain.name} and {crossing.task} are confounded{f': {alone}' if alone else ''}; {few}, so nothing in these data can tell "
        "content from acquisition"
    )
    remedy = f"add images of {', '.join(crossing.lonely) or crossing.task} from other domains"
    return ("FLAG" if read else "NOT_ASSESSABLE"), "confounded", reason, remedy


def _by_index(domain: Attribute, index: Index, ordered: bool, lines: Thresholds) -> tuple[Verdict, str, str, str]:
    partly = "" if index.complete else f"some domains of {domain.name} share too few classes of {MIN_UNITS} units and were not compared"
    if index.value.high < lines.robustness_flag:
        return "FLAG", "", partly, ""
    if index.value.low < lines.robustness_warn and ordered:
        return "WARN", "", partly, ""
    if index.value.low < lines.robustness_warn:
        reason = (
            f"order by {domain.name} was not shown, but neighbours tell the class too poorly for an index of {lines.robustness_warn:.2f}"
        )
        return "NOT_ASSESSABLE", "weak_content", reason, "name a task that the features tell better, or audit more units"
    if not index.complete:
        return "NOT_ASSESSABLE", "confounded", partly, "add images of the rare classes from those domains"
    return "CLEAR_WITHIN_LIMITS", "", "", ""


def _answer(domain: Attribute, leak: Leak, index: Index | None, verdict: Verdict, *, near: bool) -> str:
    probe = f"a linear probe reads {domain.name} with {leak.interval.value:.2f} [{leak.interval.low:.2f}, {leak.interval.high:.2f}]"
    if index is None:
        word = {"FLAG": "Yes", "WARN": "It can be read"}.get(verdict, "Undecided")
        return f"{word}: {probe}, chance {leak.null.mean():.2f}."
    at = index.value
    words = {"FLAG": "Yes", "WARN": "In part", "CLEAR_WITHIN_LIMITS": "No", "NOT_ASSESSABLE": "Undecided"}[verdict]
    if verdict == "WARN" and not near:
        score = f"robustness index {at.value:.2f} [{at.low:.2f}, {at.high:.2f}]"
        return f"It can be read: {probe}; that neighbours follow it was not shown, {score}."
    order = f"{index.null.mean():.2f} if {domain.name} gave no order"
    return f"{words}: robustness index {at.value:.2f} [{at.low:.2f}, {at.high:.2f}] at k = {index.k}, {order}; {probe}."


def _advice(domain: Attribute, crossing: Crossing | None, index: Index | None, verdict: Verdict) -> dict[str, str]:
    if verdict not in ("FLAG", "WARN"):
        return {}
    if index is None and crossing is not None:
        return {
            "action": f"Do not read a score for {crossing.task} on these data as skill; collect each class in at least two domains.",
            "repeat": "A robustness index, and a task score on domains that hold all classes.",
        }
    return {
        "action": f"Score the task on a {domain.name} left out of training, and balance classes over {domain.name} before fitting a head.",
        "repeat": "A higher robustness index, or a task score that holds on the domain left out.",
    }


def _tables(domain: Attribute, crossing: Crossing | None, index: Index | None) -> tuple[Table, ...]:
    out = []
    if crossing is not None and crossing.units.size:
        rows = tuple((place, *(printed(int(count)) for count in row)) for place, row in zip(crossing.domains, crossing.units))
        note = f"Cramer's V {crossing.association:.2f}: 0 unrelated, 1 one tells the other."
        out.append(
            Table(title=f"Units by {domain.name} and {crossing.task}", columns=(domain.name, *crossing.classes), rows=rows, note=note)
        )
    if index is not None:
        cells = {pair.names: (pair.classes, pair.cell) for pair in index.pairs}
        body = tuple((*names, at.value, at.low, at.high, *cells[names]) for names, at in index.by_pair.items())
        heads = ("domain", "other domain", "index", "low", "high", "classes", "units in the smallest cell")
        out.append(
            Table(title="Robustness index by pair of domains", columns=heads, rows=body, note="Pairs not listed cannot be compared.")
        )
    return tuple(out)


def _plots(domain: Attribute, leaks: Mapping[str, Leak], index: Index | None, lines: Thresholds) -> tuple[Plot, ...]:
    intervals = {name: leaks[name].interval for name in ("audited", "pixels", "untrained") if name in leaks}
    bars = tuple(Bar(label=name, value=at.value, low=at.low, high=at.high, n_units=domain.num_units) for name, at in intervals.items())
    low, high = np.percentile(leaks["audited"].null, [2.5, 97.5])
    read = Forest(
        title=f"{domain.name} read from features", axis="AUROC of a linear probe", rows=bars, lines={"flag": lines.tau_flag},
        band=(float(low), float(high)),
    )  # fmt: skip
    if index is None:
        return (read,)
    curve = Series(name="index", x=tuple(map(float, index.curve)), y=tuple(index.curve.values()))
    marks = {"flag": lines.robustness_flag, "warn": lines.robustness_warn}
    return (Curves(title="Robustness index", x_axis="neighbours k", y_axis="SO / (SO + OS)", series=(curve,), lines=marks), read)


def self_test() -> SelfTest:
    """Rows ordered by class alone, and the same rows moved apart by domain."""
    generator = np.random.default_rng(8)
    y, domain = np.repeat([0, 1], 80), np.tile([0, 1], 80)
    clean = generator.normal(size=(160, 8)) + 2.0 * y[:, None] * (np.arange(8) < 2)
    moved = clean + 8.0 * domain[:, None] * (np.arange(8) >= 6)
    weights = unit_counts(160, 100, 0)
    planted, silent = (index_interval((_made_up(rows, y, domain),), 10, weights) for rows in (moved, clean))
    return SelfTest(
        positive="pass" if planted.high < 0.5 else "fail", negative="pass" if silent.low > 0.5 else "fail",
        detail=f"made-up domains: index {planted.value:.2f} with a planted offset, {silent.value:.2f} without",
    )  # fmt: skip


def _made_up(rows: np.ndarray, y: np.ndarray, domain: np.ndarray) -> Pair:
    return make_pair(rows, names=("a", "b"), y=y, domain=domain, units=np.arange(len(y)), cell=40, seed=0)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(DOMAINS, UNITS), count=lambda evidence: 2 * len(evidence.asked.domains))
