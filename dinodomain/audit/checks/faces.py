"""Faces in volumes of heads, which anybody can render: what headers claim, and whether the outline shows one. Part of the text check.

Looks at 100 volumes drawn at random, whatever number of images OCR reads. An outline cannot tell a blurred face from a face: that counts.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from dinodomain.audit.evidence import About
from dinodomain.audit.finding import Finding
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.trail.heads import REMOVED
from dinodomain.audit.trail.kept import Kept, fields_of

MOST = 100
"""Volumes that are looked at."""
LEAST = 60
"""Heads that a CLEAR needs where not all volumes were looked at: 3 / 60 of all heads have a face at most then (rule of three)."""
_HEAD = re.compile(r"head|brain|skull|face|orbit|sinus|neck|c-?spine", re.IGNORECASE)
_LIMITS = (
    "A volume that states no body part and holds no top of a head is taken for another part of the body.",
    "Faces are told by the outline of the head from above the brow to the mouth: blurred faces, phantoms and heads bent far back can pass "
    "for faces, heads of small children are not told.",
    "Ears, teeth and the shape of a skull tell people apart, too.",
)


def faces(about: About, kept: Kept, seed: int) -> Finding:
    """Whether faces can be made visible from volumes of heads.

    Args:
        about: The text check.
        kept: The store's side of the trail, of volumes of people.
        seed: Decides which volumes are looked at.
    """
    stated, claimed, possible = _candidates(kept)
    chosen = np.sort(np.random.default_rng([seed, 0xFACE]).permutation(np.flatnonzero(possible))[:MOST])
    found, whole = _states(kept, chosen, stated), len(chosen) == possible.sum()
    looked = found["stands"] + found["removed"] + found["undecided"]
    told: dict[str, Any] = {
        "title": "Can faces be made visible from volumes of heads?", "n_images": looked, "n_units": _units(kept, chosen),
        "limits": (*about.limits, *_LIMITS),
        "counts": {"volumes drawn": len(chosen), "that could not be read": printed(found["unread"]), "heads": printed(looked),
                   "heads with a face": printed(found["stands"]), "heads without one": printed(found["removed"]),
                   "volumes stated as recognisable": printed(int(claimed.sum()))},
    }  # fmt: skip
    shown = [f"heads whose outline stands as far forward at nose and mouth as at the brow: {printed(found['stands'])} of {printed(looked)}"]
    shown = shown * bool(found["stands"]) + ["headers state recognisable visual features (0028,0302)"] * bool(claimed.any())
    if shown:
        return about.finding(
            "faces", **told, verdict="FLAG", answer=f"Yes: {'; '.join(shown)}.",
            action="Remove faces before ingest (defacing or skull stripping), and train again.", repeat="No outline shows one.",
        )  # fmt: skip
    if open_ := [words for words, missing in _open(found, looked, whole=whole) if missing]:
        return about.unknown("no_outline", "; ".join(open_), "render some heads, and look at them", "faces", **told)
    if not looked:
        reason = f"none of the {len(chosen)} volumes looked at states a head or holds the top of one"
        return about.finding("faces", **told, verdict="NOT_APPLICABLE", answer="There are no heads.", reason_code="no_heads", reason=reason)
    drawn = "" if whole else f", so that by their outline at most {3 / looked:.0%} of all heads show one"
    answer = f"No: in all heads looked at ({printed(looked)}) the outline falls back by {REMOVED:g} mm or more below the brow{drawn}."
    return about.finding("faces", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _open(found: Counter[str], looked: int, *, whole: bool) -> tuple[tuple[str, bool], ...]:
    """What stands in the way of an answer, and whether it does."""
    return (
        (f"volumes that could not be read: {printed(found['unread'])}", found["unread"] > 0),
        (f"heads that do not show brow, nose and mouth: {printed(found['undecided'])} (cut off, touched, or of unknown place)",
         found["undecided"] > 0),
        (f"fewer than {LEAST} of the volumes drawn are heads", not whole and 0 < looked < LEAST),
    )  # fmt: skip


def _candidates(kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[S] which volumes state a head, which of them a recognisable one, and which may show one."""
    fields = fields_of(kept.index["fields"])
    part, claim = (fields.get(name, np.full(len(kept), "", dtype=object)) for name in ("body_part", "recognizable_visual_features"))
    stated = np.array([bool(_HEAD.search(str(one))) for one in part], np.bool_)
    possible = stated | np.array([not str(one) for one in part], np.bool_)
    return stated, possible & (claim == "YES"), possible


def _units(kept: Kept, chosen: np.ndarray) -> int:
    """Units of the volumes looked at."""
    drawn = np.zeros(len(kept), np.bool_)
    drawn[chosen] = True
    return len(kept.units_of(drawn))


def _states(kept: Kept, chosen: np.ndarray, stated: np.ndarray) -> Counter[str]:
    """How many of the volumes show what; a stated head of which no top is found is undecided."""
    assert kept.heads is not None, "volumes"
    found = kept.heads(chosen)
    states = ("unread" if row not in found else "undecided" if found[row].state == "no head" and stated[row] else found[row].state
              for row in chosen.tolist())  # fmt: skip
    return Counter(states)
