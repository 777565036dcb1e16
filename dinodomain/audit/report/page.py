"""What the page and the card show, gathered from ``audit.json`` alone. Measures nothing and draws nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from dinodomain.audit.declared import RISKS
from dinodomain.audit.finding import QUESTIONS, History, Risk
from dinodomain.audit.plan import decision_words
from dinodomain.audit.protocol.verdict import VERDICTS
from dinodomain.audit.report.text import CANNOT, FRAMEWORKS, GLOSSARY, MEANING
from dinodomain.show.audit import leak_forest

Body = Mapping[str, Any]
COMPARISONS = ("difference", "inherit")


def context(body: Body, json_digest: str) -> dict[str, Any]:
    """Everything the templates name.

    Args:
        body: ``audit.json`` as plain values.
        json_digest: sha256 of the file.
    """
    by_question = {question: [item for item in body["findings"] if item["question"] == question] for question in QUESTIONS}
    counts = {question: Counter(item["verdict"] for item in found) for question, found in by_question.items()}
    for question in body["unanswered"]:
        counts[question]["NOT_ASSESSABLE"] = max(1, counts[question]["NOT_ASSESSABLE"])
    return {
        "report": body, "questions": QUESTIONS, "by_question": by_question, "counts": counts, "verdicts": VERDICTS, "meaning": MEANING,
        "cannot": CANNOT, "glossary": GLOSSARY, "json_digest": json_digest, "headline": headline(body), "forest": _forest(body),
        "decision": decision_words(body["decision"]), "history": history_line(body), "supplied": supplied(body), "model": model_of(body),
        "alarms": [item for item in body["findings"] if item["verdict"] in ("FLAG", "ERROR")],
        "warnings": [item for item in body["findings"] if item["verdict"] == "WARN"], "open": list(_open(body)),
        "register": list(_register(body)), "comparisons": [item for item in body["findings"] if item["check"] in COMPARISONS],
        "tests": list(_tests(body)), "mapping": list(_mapping(body)), "waivers": list(_waivers(body)), "origins": _origins(body),
    }  # fmt: skip


def headline(body: Body) -> str:
    """The report in one sentence; what was not assessed stands beside what was found."""
    counts = Counter(item["verdict"] for item in body["findings"])
    told = [f"{counts[verdict]} {verdict.replace('_', ' ')}" for verdict in VERDICTS if counts[verdict]]
    silent = list(body["unanswered"])
    tail = f" {', '.join(silent)} {'is' if len(silent) == 1 else 'are'} not or only partly answered." if silent else ""
    return f"{len(body['findings'])} findings: {', '.join(told)}.{tail}"


def model_of(body: Body) -> dict[str, str]:
    """What was audited, as it was called on the command line, in a word and in a line."""
    inputs, subject = body["plan"].get("inputs", {}), body["subject"]
    given = next((str(inputs[key]) for key in ("checkpoint", "features") if inputs.get(key)), "")
    name, digest = given.rstrip("/").rsplit("/", 1)[-1] or "a frozen encoder", subject.get("weights") or subject.get("features") or ""
    built = subject.get("architecture") or {}
    size = f"frozen encoder of {built['depth']} blocks, {built['dim']} wide" if {"depth", "dim"} <= built.keys() else ""
    words = (size or "a frozen encoder's features", given, digest and f"sha256 {digest[:16]}")
    return {"name": name, "words": "; ".join(filter(None, words))}


def history_line(body: Body) -> str:
    """Where this audit stands among the audits of the same checkpoint, or of the same features."""
    if body["history"] is None:
        return "not recorded: no chain of audits was kept"
    of = "this checkpoint" if body["subject"].get("weights") else "these features"
    return History(**body["history"]).words(of, policy=body["gate"] is not None and body["gate"]["asked"])


def supplied(body: Body) -> dict[str, str]:
    """Who supplied what, as stated; what was not stated is said to be so."""
    part = {None: "not stated", True: "no part in building the model, as stated", False: "took part in building the model"}
    return {"Audit set and metadata": body["supplied_by"] or "not stated who supplied them", "Auditor": part[body["independent"]]}


def _open(body: Body) -> Iterator[dict[str, Any]]:
    """What could not be assessed, gathered by what would make it assessable."""
    by_remedy: dict[str, list[Any]] = defaultdict(list)
    for item in body["findings"]:
        if item["verdict"] == "NOT_ASSESSABLE":
            by_remedy[item["remedy"] or "no remedy known"].append(item)
    yield from ({"remedy": remedy, "findings": found} for remedy, found in by_remedy.items())


def _register(body: Body) -> Iterator[dict[str, Any]]:
    """Rows of the risk register with the findings that bear on each."""
    for name, told in RISKS.items():
        row = body["risk_register"].get(name) or Risk().model_dump(mode="json")
        bearing = [item["id"] for item in body["findings"] if item["evidence"].get("risk") == name or item["id"] == f"capability/{name}"]
        yield {"id": name, "words": told, "row": row, "findings": sorted({*bearing, *row["evidence"]})}


def _tests(body: Body) -> Iterator[dict[str, Any]]:
    """Controls, once per check."""
    seen: set[str] = set()
    for item in body["findings"]:
        if item["check"] not in seen:
            seen.add(item["check"])
            yield {"check": item["check"], "code": item["code"], **item["self_test"]}


def _mapping(body: Body) -> Iterator[dict[str, Any]]:
    """Clause by clause, the findings that bear on it."""
    clauses: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for item in body["findings"]:
        for framework, named in item["maps_to"].items():
            for clause in named:
                clauses[framework, clause].append(item)
    order = {name: place for place, name in enumerate(FRAMEWORKS)}
    for framework, clause in sorted(clauses, key=lambda key: (order.get(key[0], len(order)), key)):
        yield {"framework": framework, "clause": clause, "findings": clauses[framework, clause]}


def _waivers(body: Body) -> Iterator[dict[str, Any]]:
    made = date.fromisoformat(body["created"][:10])
    for waiver in body["policy"].get("waivers", ()):
        past = date.fromisoformat(str(waiver["expires"])) < made
        yield {**waiver, "state": "expired: decides nothing" if past else "in force when the report was made"}


def _origins(body: Body) -> dict[str, str]:
    """Where the values of each used column come from, as the policy says."""
    stated = body["policy"].get("origins") or {}
    return {column["name"]: str(stated.get(column["name"], "not stated")) for column in body["data"]["columns"]}


def _forest(body: Body) -> str:
    """The figure of all findings on the leak scale; empty where there is none."""
    drawn = [item for item in body["findings"] if item["estimate"] and item["null"] and item["estimate"]["value"] is not None]
    if not drawn:
        return ""
    label = "; ".join(
        f"{item['id']}: {item['estimate']['value']:.2f} from {item['estimate']['low']:.2f} to {item['estimate']['high']:.2f}"
        for item in drawn
    )
    return leak_forest(drawn, body["policy"]["thresholds"], f"Scores with intervals. {label}")
