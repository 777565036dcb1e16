"""Provenance: which data shaped the model, by the lineage that ingest and training recorded? A declaration stands beside it, never for it.

Four findings: the trail from sources to samples, whether the pixels are those that were hashed (a sample is read and hashed again),
licences of data and base weights, and how the draws spread over units (exp of Shannon's entropy, Hill 1973).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from dinodomain.audit.checks.licences import base_of, output_licence
from dinodomain.audit.evidence import TRAIL, About, Check, Evidence, Private, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.policy import DECLARED
from dinodomain.audit.protocol.attribute import MISSING
from dinodomain.audit.trail.flow import flows, split_tables, store_tables
from dinodomain.audit.trail.kept import Kept
from dinodomain.audit.trail.licences import Licence, conflicts, doubts, read_licence
from dinodomain.audit.trail.record import Trail, concentration
from dinodomain.errors import MissingExtra
from dinodomain.probes.scores import wilson

ABOUT = About(
    name="provenance", code="PROV", question="Q1", core=True, title="What data shaped the model, from sources to samples drawn?",
    limits=(
        "Records tell what was read and drawn, not whether it was rightfully collected.",
        "What a network remembers of a unit is not told by how often it was drawn, nor undone by withdrawing it.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(b)", "Art. 11", "Annex IV 2(d)"), "NIST AI RMF": ("MAP 4.1", "MAP 4.2", "MANAGE 3.1"),
        "FUTURE-AI": ("Traceability 2",), "ISO 42001": ("A.7.5",),
    },
)  # fmt: skip
SHARE, LEAST = 0.01, 1000
"""Of the sources that are hashed again, and how many at least."""

LARGE = 0.1
"""Share of all samples from one unit that is warned of, where it is more than three times that of equal draws, too."""

PERSONAL = ("consent", "confidentiality", "privacy_measures", "geography")
"""What must not be blank where the data are about people."""


def run(evidence: Evidence) -> list[Result]:
    """The trail, the pixels, the licences and the draws."""
    trail = evidence.trail
    assert trail is not None, "needed"
    results: list[Result] = [_trail(evidence, trail)]
    if trail.kept is not None and trail.kept.rehash is not None and len(trail.kept):
        results += _pixels(trail.kept, evidence.effort.seed)
    results.append(_licences(evidence, trail))
    return [*results, *_draws(trail)]


def _trail(evidence: Evidence, trail: Trail) -> Finding:
    kept = trail.kept
    told: dict[str, Any] = {
        "n_units": 0 if kept is None else kept.num_units, "n_images": 0 if kept is None else len(kept),
        "plots": flows(trail),
        "tables": (*store_tables(trail), *split_tables(trail, evidence.asked.domains + evidence.asked.attributes), *_declared(evidence)),
        "counts": _counts(trail),
        "evidence": {
            "steps": trail.steps, "samples": trail.samples, "units_withdrawn": trail.withdrawn, "base": _base(trail),
            "trained_on_this_store": trail.trained,
        },
    }  # fmt: skip
    if not trail.stores or not trail.drawn:
        reason = f"no record says what the network was {'trained on' if not trail.stores else 'shown of its stores'}"
        return ABOUT.unknown("no_lineage", reason, "audit a checkpoint that was trained by this package", "trail", **told)
    lines, drawn = evidence.lines, f"{trail.samples} samples of {len(trail.drawn)} units in {trail.steps} steps"
    unknown = _unknown_sources(kept)
    flags = [
        *([f"{unknown:.1%} of the sources have no digest of what they were read from"] if unknown > lines.unknown_sources else []),
        *_too_many_withdrawn(evidence, trail),
    ]
    warnings = [
        *([] if trail.trained else ["the audited store is not one that the network was trained on, by its digest"]),
        *_elsewhere(trail),
        *_changes(trail),
        *_blanks(evidence, kept),
    ]
    action = "Read the trail with whoever supplied the data, and settle each of these points."
    repeat = "The next audit lists none of these points."
    if flags or warnings:
        answer = f"By its record: {drawn}. " + "; ".join([*flags, *warnings]) + "."
        return ABOUT.finding(
            "trail", **told, verdict="FLAG" if flags else "WARN", answer=answer.replace(". ", ". But ", 1), action=action, repeat=repeat
        )
    return ABOUT.finding("trail", **told, verdict="CLEAR_WITHIN_LIMITS", answer=f"By its record: {drawn}, all from the audited store.")


def _unknown_sources(kept: Kept | None) -> float:
    """Share of sources without a digest of their files or of their pixels."""
    if kept is None or not len(kept):
        return 0.0
    blank = [not (kept.index["source_digest"][row] and kept.index["content_hash"][row]) for row in range(len(kept))]
    return float(np.mean(blank))


def _too_many_withdrawn(evidence: Evidence, trail: Trail) -> list[str]:
    most, gone = evidence.policy.max_withdrawn, trail.withdrawn
    if most is None or not gone or gone <= most:
        return []
    return [f"{gone} units that were drawn have been withdrawn since, and the policy allows {most}"]


def _elsewhere(trail: Trail) -> list[str]:
    """What shaped the network and was not opened here: other stores of a mix, and whatever made the weights that it began with."""
    others = [one for one in trail.stores if one.until is None and trail.kept is not None and one.digest != trail.kept.digest]
    told = []
    if trail.trained and others:
        known = [one.samples for one in others if one.samples is not None]
        told.append(f"{sum(known) if len(known) == len(others) else 'some'} of these samples came from other stores ({len(others)})")
    if trail.bases:
        told.append(f"it began with {base_of(trail.bases[0])[0]}, and what made those is not among these samples")
    return told


def _changes(trail: Trail) -> list[str]:
    earlier = [store for store in trail.stores if store.until is not None]
    times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
    return [f"the run went on with other data {times} (resume=force)"] if earlier else []


def _blanks(evidence: Evidence, kept: Kept | None) -> list[str]:
    """What is not declared although it must be where people are concerned."""
    if kept is None or not kept.personal:
        return []
    blank = [name for name in PERSONAL if not evidence.policy.declared.get(name, "").strip()]
    return [f"the data are about people, and nothing is declared of {', '.join(blank)}"] if blank else []


def _base(trail: Trail) -> dict[str, Any] | None:
    return {name: trail.bases[0].get(name) for name in ("weights", "sha256", "licence", "family")} if trail.bases else None


def _counts(trail: Trail) -> dict[str, int | str]:
    counts: dict[str, int | str] = {"samples drawn": trail.samples, "units drawn": len(trail.drawn)}
    if trail.withdrawn is not None:
        counts["units withdrawn since training"] = trail.withdrawn
    return counts


def _declared(evidence: Evidence) -> tuple[Table, ...]:
    """What was declared, with blanks; nothing here was checked."""
    stated = evidence.policy.declared
    if not stated:
        return ()
    rows = tuple((name, words, stated.get(name) or "blank") for name, words in DECLARED.items())
    return (Table(title="Declared by the user", columns=("field", "what it is", "declared"), rows=rows, note="Declared, not checked."),)


def _pixels(kept: Kept, seed: int) -> list[Result]:
    """Hashes a sample of sources again."""
    assert kept.rehash is not None, "asked by the caller"
    count = min(len(kept), max(LEAST, math.ceil(SHARE * len(kept))))
    rows = np.sort(np.random.default_rng([seed, 0x4A54]).permutation(len(kept))[:count])
    same = kept.rehash(rows)
    return _hashed(kept, rows, same)


def _hashed(kept: Kept, rows: np.ndarray, same: np.ndarray) -> list[Result]:
    wrong, read = int((~same).sum()), np.isin(np.arange(len(kept)), rows)
    told: dict[str, Any] = {
        "title": "Are the pixels those that were hashed when the store was made?",
        "n_images": len(rows), "n_units": len(kept.units_of(read)),
        "estimate": estimate_of(wilson(wrong, len(rows)), "share of sources whose pixels differ", "wilson"),
        "counts": {"sources hashed again": len(rows), "of all": len(kept), "that differ": wrong},
    }  # fmt: skip
    if wrong:
        answer = f"No: {wrong} of {len(rows)} sources differ from their recorded content hash, or cannot be read."
        action = "Restore these sources (provenance.csv, kept beside the report) from the originals, and ask who could write to the store."
        listed = Private(
            name="provenance", columns={"row": rows[~same].tolist(), "source_id": kept.index["source_id"][rows[~same]].tolist()}
        )
        found = ABOUT.finding("pixels", **told, verdict="FLAG", answer=answer, action=action, repeat="All hashes of the sample agree.")
        return [found, listed]
    answer = f"Yes: {len(rows)} of {len(kept)} sources were read and hashed again, and all agree."
    return [ABOUT.finding("pixels", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)]


def _licences(evidence: Evidence, trail: Trail) -> Finding:
    told: dict[str, Any] = {"title": "Are licences of data and base weights known, and do they go together?"}
    try:
        named, output = _named(evidence, trail), read_licence(output_licence(evidence))
    except MissingExtra as error:
        return ABOUT.unknown("missing_extra", str(error), 'install it: pip install "dinodomain[audit]"', "licences", **told)
    told |= {
        "n_images": 0 if trail.kept is None else len(trail.kept),
        "tables": (Table(
            title="Licences", columns=("licence", "as recorded", "read as", "asks for"),
            rows=tuple((name, one.text or "not recorded", one.spdx or "no SPDX expression", str(one)) for name, _, one in named),
            note="By a small table of this package; it raises questions for people and decides none.",
        ),),
    }  # fmt: skip
    stated = {name: one for name, _, one in named if one.text}
    against, unknown = (judge(stated, output, released=evidence.asked.released) for judge in (conflicts, doubts))
    return _licence_verdict(evidence, trail, told, (against, unknown), named)


Named = list[tuple[str, int, Licence]]


def _named(evidence: Evidence, trail: Trail) -> Named:
    """(of what, sources, licence) of each licence of the store, and of all base weights (0 sources)."""
    found: Named = []
    if trail.kept is not None:
        texts = Counter("" if _blank(value) else str(value).strip() for value in trail.kept.index["licence"])
        stated = evidence.policy.declared.get("licence", "").strip()
        if stated and texts[""]:  # beside the evidence: it is shown as declared, and blanks stay blank
            found.append(("declared licence", 0, read_licence(stated)))
        found += [(f"{text or 'none'} ({count} sources)", count, read_licence(text)) for text, count in sorted(texts.items()) if count]
    found += [(name, 0, read_licence(text)) for name, text in dict.fromkeys(map(base_of, trail.bases))]
    return found


def _blank(value: object) -> bool:
    return value is None or str(value).strip().lower() in MISSING


def _licence_verdict(
    evidence: Evidence, trail: Trail, told: dict[str, Any], judged: tuple[list[str], list[str]], named: Named
) -> Finding:  # fmt: skip
    if not named:
        return ABOUT.unknown(
            "no_store", "no store was opened and no base weights are recorded", "audit with store=STORE", "licences", **told
        )
    blank = sum(count for _, count, one in named if not one.text) / max(1, sum(count for _, count, _ in named))
    against, unknown = judged
    flags = [*against, *([f"{blank:.1%} of the sources have no licence"] if blank > evidence.lines.unknown_sources else [])]
    flags += [f"the {name} have no recorded licence" for name, count, one in named if not count and not one.text]
    restricting = dict.fromkeys(f"{one.spdx} asks for {one}" for _, _, one in named if one.restricts)
    warnings = [*unknown, *restricting]
    action = (
        "Record licences at ingest (ingest.licence=SPDX) and take the conflicts to whoever answers for them before anything is released."
    )
    repeat = "Every source has a licence with a known id, and no two contradict each other."
    if flags or warnings:
        answer = "; ".join([*flags, *warnings]) + "."
        verdict = "FLAG" if flags else "WARN"
        return ABOUT.finding(
            "licences", **told, verdict=verdict, answer=answer[0].upper() + answer[1:], action=action, repeat=repeat
        )  # fmt: skip
    answer = "All sources of the audited store have a licence; " + (
        "the table of this package knows no conflict between them."
        if evidence.asked.released
        else "whether they go together counts once something is given away."
    )
    return ABOUT.finding("licences", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _draws(trail: Trail) -> list[Result]:
    title = "Do the draws rest on few units?"
    if not trail.drawn:
        return [ABOUT.unknown("no_lineage", "draws per unit are not recorded", "audit a run of this package", "draws", title=title)]
    effective, top = concentration(trail.drawn)
    counts = np.array(list(trail.drawn.values()))
    told: dict[str, Any] = {
        "title": title, "n_units": len(counts),
        "counts": {"units drawn": len(counts), "samples": int(counts.sum()), "most draws of a unit": int(counts.max()),
                   "median draws of a unit": int(np.median(counts))},
        "evidence": {"effective_units": effective, "share_of_top_1_percent": top},
    }  # fmt: skip
    words = f"the draws are spread as over {effective:.0f} equal units of {len(counts)}; the most drawn 1 % gave {top:.1%} of the samples"
    listed = Private(name="draws", columns={"unit": list(trail.drawn), "draws": list(trail.drawn.values())})
    most = counts.max() / counts.sum()
    if most > LARGE and most > 3 / len(counts):
        told |= {
            "action": "Take fewer tiles of that unit (loader.weights), if it should not shape the model so much.",
            "repeat": "With fewer draws of it the largest share falls.",
        }
        return [ABOUT.finding("draws", **told, verdict="WARN", answer=f"Yes: one unit gave {most:.1%} of the samples; {words}."), listed]
    if effective < len(counts) / 2:
        action = (
            "Weigh buckets (loader.weights), or take fewer tiles of the largest units, if these units should not shape the model so much."
        )
        told |= {"action": action, "repeat": "With fewer draws of these units the effective number rises."}
        return [ABOUT.finding("draws", **told, verdict="WARN", answer=f"Yes: {words}."), listed]
    return [ABOUT.finding("draws", **told, verdict="CLEAR_WITHIN_LIMITS", answer=f"No: {words}."), listed]


def self_test() -> SelfTest:
    """Plants three altered sources and draws that rest on one unit, and neither."""
    kept = _made_up(altered=3)
    found, clean = (_pixels(one, 0)[0] for one in (kept, _made_up(altered=0)))
    assert isinstance(found, Finding), "the finding comes first"
    assert isinstance(clean, Finding), "the finding comes first"
    hit = found.verdict == "FLAG" and found.counts["that differ"] == 3
    even, odd = concentration(dict.fromkeys("abcd", 5))[0], concentration({"a": 97, "b": 1, "c": 1, "d": 1})[0]
    quiet = clean.verdict == "CLEAR_WITHIN_LIMITS" and abs(even - 4) < 1e-9 and odd < 2
    return SelfTest(
        positive="pass" if hit else "fail", negative="pass" if quiet else "fail",
        detail=f"made-up store: {found.counts['that differ']} of 3 altered sources found, {clean.counts['that differ']} false",
    )  # fmt: skip


def _made_up(*, altered: int) -> Kept:
    size = 50
    names = np.array([f"s{row}" for row in range(size)], dtype=object)
    return Kept(
        digest="", domain="made up", ndim=2, personal=False, index={"source_id": names}, groups={}, unit_rows=np.arange(size),
        unit_names=names.astype(str), held_units=frozenset(), held_sources=np.zeros(size, bool), eligible_sources=np.ones(size, bool),
        eligible_units=frozenset(names), rehash=lambda rows: np.asarray(rows) >= altered,
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TRAIL,))
