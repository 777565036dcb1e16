"""Faces in volumes of heads, which anybody can render: what headers claim, and whether the profile shows one. Part of the text check.

A profile cannot tell a blurred face from a face, so that one which was blurred counts as standing. Looks at 100 volumes drawn at random.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from dinodomain.audit.checks.headers import fields_of
from dinodomain.audit.evidence import About
from dinodomain.audit.finding import Finding
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.trail.heads import REMOVED, Head
from dinodomain.audit.trail.kept import Kept

MOST = 100
"""Volumes that are looked at; where none of them shows a face, at most 3 / MOST of all do (rule of three)."""
_HEAD = re.compile(r"head|brain|skull|face|orbit|sinus|neck|c-?spine", re.IGNORECASE)
_LIMITS = (
    "A volume that states no body part and holds no top of a head is taken for another part of the body.",
    "Faces are told by their profile; ears, teeth and the shape of a skull tell people apart, too.",
)


def faces(about: About, kept: Kept, seed: int) -> Finding:
    """Whether faces can be made visible from volumes of heads.

    Args:
        about: The text check.
        kept: The store's side of the trail, of volumes of people.
        seed: Decides which volumes are looked at.
    """
    assert kept.heads is not None, "volumes"
    stated, claimed, possible = _candidates(kept)
    chosen = np.sort(np.random.default_rng([seed, 0xFACE]).permutation(np.flatnonzero(possible))[:MOST])
    found = Counter(_state(one, bool(stated[row])) for row, one in kept.heads(chosen).items())
    looked = sum(found.values()) - found["no head"]
    told: dict[str, Any] = {
        "title": "Can faces be made visible from volumes of heads?", "n_images": looked, "limits": (*about.limits, *_LIMITS),
        "counts": {"volumes looked at": sum(found.values()), "heads among them": printed(looked),
                   "in which a face stands": printed(found["stands"]), "of which it was removed": printed(found["removed"]),
                   "volumes stated as recognisable": printed(int(claimed.sum()))},
    }  # fmt: skip
    shown = [f"in {printed(found['stands'])} of {printed(looked)} heads nose and mouth stand as far forward as the forehead"]
    shown = shown * bool(found["stands"]) + ["headers state recognisable visual features (0028,0302)"] * bool(claimed.any())
    if shown:
        return about.finding(
            "faces", **told, verdict="FLAG", answer=f"Yes: {'; '.join(shown)}.",
            action="Remove faces before ingest (defacing or skull stripping), and train again.", repeat="No profile shows one.",
        )  # fmt: skip
    if not looked and not stated.any():
        reason = "no volume states a head or holds the top of one"
        return about.finding("faces", **told, verdict="NOT_APPLICABLE", answer="There are no heads.", reason_code="no_heads", reason=reason)
    if found["undecided"] or not looked:
        reason = f"of {printed(found['undecided'])} heads neither forehead, nose and mouth lie in the volume nor are they all gone"
        return about.unknown("no_profile", reason, "render these heads, and look at them", "faces", **told)
    drawn = "" if len(chosen) == possible.sum() else f", so at most {3 / looked:.0%} of all show one"
    answer = f"No: in all {printed(looked)} heads looked at the profile falls back by {REMOVED:g} mm or more{drawn}."
    return about.finding("faces", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _candidates(kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[S] which volumes state a head, which of them a recognisable one, and which may show one."""
    fields = fields_of(kept)
    part, claim = (fields.get(name, np.full(len(kept), "", dtype=object)) for name in ("body_part", "recognizable_visual_features"))
    stated = np.array([bool(_HEAD.search(str(one))) for one in part], np.bool_)
    possible = stated | np.array([not str(one) for one in part], np.bool_)
    return stated, possible & (claim == "YES"), possible


def _state(head: Head, stated: bool) -> str:
    return "undecided" if stated and head.state == "no head" else head.state
