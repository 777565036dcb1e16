"""What licences of data and base weights ask of those who pass on what is made with them, and what the output's licence drops of it.

Text is read as an SPDX expression (license-expression), free text only where it is none. In ``A OR B`` the choice is the user's, and a
conflict is one that every way to choose has; ``A AND B`` asks for both. A small table that raises questions for people and decides
none; what is not in it is unknown, never fine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal, get_args

from dinodomain.errors import require

Condition = Literal["share alike", "no commercial use", "no derivatives passed on", "its own terms passed on"]
SHARE_ALIKE, NO_COMMERCE, NOTHING_MADE, OWN_TERMS = get_args(Condition)
Terms = frozenset[tuple[Condition, str]]
"""What one choice asks for: each condition, and the SPDX id that asks for it."""

_ASKS: Sequence[tuple[str, tuple[Condition, ...]]] = (
    (r"CC-BY-NC-ND-", (NO_COMMERCE, NOTHING_MADE)),
    (r"CC-BY-ND-", (NOTHING_MADE,)),
    (r"CC-BY-NC-SA-", (NO_COMMERCE, SHARE_ALIKE)),
    (r"CC-BY-NC-|PolyForm-Noncommercial", (NO_COMMERCE,)),
    (r"CC-BY-SA-|ODbL-|[AL]?GPL-|CDLA-Sharing-|EUPL-|MPL-", (SHARE_ALIKE,)),
    (r"CC0-|CC-PDDC$|PDDL-|CC-BY-\d|CDLA-Permissive-|ODC-By-|Apache-|OGL-|etalab-|Unlicense$|ISC$|0BSD$|LicenseRef-Copernicus$", ()),
    (r"MIT(-0)?$|BSD-[23]-Clause$", ()),
    (r"LicenseRef-|BUSL-", (OWN_TERMS,)),
)
"""SPDX id, by its beginning, to what it asks for beside attribution. A LicenseRef has terms of its own, whatever they are."""

_TEXTS: Sequence[tuple[str, str]] = (
    (r"(meta )?dinov3 licen[sc]e( agreement)?", "LicenseRef-DINOv3"),
    (r"not stated beside the weights \(meta releases dinov3 under its own dinov3 license\b[^()]*\)", "LicenseRef-DINOv3"),
    (r"not stated beside the weights \(meta releases dino(v2)? under apache-2\.0\)", "Apache-2.0"),
    (r"((creativeml|bigscience|bigcode) )?open ?rail([+]{2})?(-m)?( licen[sc]e)?", "LicenseRef-OpenRAIL"),
    (r"((contains|modified) )*copernicus sentinel (data|information)( \[?\d{4}(-\d{4})?\]?)?", "LicenseRef-Copernicus"),
    (r"((us|usgs) )?public domain|pd", "CC-PDDC"), (r"(the )?mit licen[sc]e( \(mit\))?", "MIT"),
    (r"apache licen[sc]e(,? version 2\.0)?", "Apache-2.0"),
)  # fmt: skip
"""Whole texts that are no SPDX expression, in lower case, to what they stand for: part of a longer one may be all that is denied in it.
Copernicus: free with attribution, (EU) 1159/2013. The first line of Apache 2.0 is its name alone."""

_CREATIVE = re.compile(
    r"(?:creative commons )?(attribution(?:-(?:noncommercial|sharealike|noderivatives))*) (\d\.\d)"
    r"(?: international)?(?: public licen[sc]e)?"
)
_SHORT = {"attribution": "BY", "noncommercial": "NC", "sharealike": "SA", "noderivatives": "ND"}
_SEEN_IN = re.compile(r" \((model card|\S+ beside the weights)\)$")
"""Where a warm start found a licence, which it writes behind it."""

_SPELLED = re.compile(r"\s+(?=\d+\.\d)|(?<=\bCC)\s+|(?<=BY)\s+(?=(SA|NC|ND)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """A licence as it was recorded, and as it is read.

    Attributes:
        text: As recorded; "" where none is.
        spdx: The expression in it; "" where it holds none.
        choices: What each choice that the table knows asks for; empty where it knows none.
        open: Whether there are choices that it does not know: nobody need take them, but who is given them may.
    """

    text: str
    spdx: str = ""
    choices: frozenset[Terms] = frozenset()
    open: bool = False

    @property
    def known(self) -> bool:
        """Whether the table knows what some choice asks for."""
        return bool(self.choices)

    @property
    def restricts(self) -> bool:
        """Whether every choice says what may be done with it: no commerce, or terms of its own."""
        return self.known and all({NO_COMMERCE, OWN_TERMS} & _asked(terms) for terms in self.choices)

    def __str__(self) -> str:
        """What it asks for, in words."""
        told = {", ".join(sorted({one for one, _ in terms})) or "attribution at most" for terms in self.choices}
        return " or ".join(sorted(told)) or "not known"


@cache
def read_licence(text: str) -> Licence:
    """Reads a text.

    Raises:
        MissingExtra: license-expression is not installed.
    """
    plain = text.strip()
    words = _SEEN_IN.sub("", plain)
    found = (_parse(one) for one in (_SPELLED.sub("-", words), _meant(words)))
    parsed = next((one for one in found if one is not None), None)
    if parsed is None:
        return Licence(text=plain)
    choices = list(_choices(parsed))
    known = frozenset(terms for terms in choices if terms is not None)
    return Licence(text=plain, spdx=str(parsed), choices=known, open=None in choices)


def _meant(words: str) -> str:
    """The SPDX id that a text stands for; "" where it stands for none."""
    plain = words.lower().strip(" .#")
    if named := _CREATIVE.fullmatch(plain):
        return "-".join(["CC", *(_SHORT[part] for part in named[1].split("-")), named[2]])
    return next((spdx for pattern, spdx in _TEXTS if re.fullmatch(pattern, plain)), "")


def _parse(words: str) -> Any:
    """The tree of an expression whose ids SPDX knows or leaves to anyone (LicenseRef-); None for what is none."""
    package = require("license_expression", extra="audit", wanted_by="licences in an audit")
    try:
        parsed = _licensing(package).parse(words)
    except (package.ExpressionError, package.ExpressionParseError, IndexError):  # it fails on empty brackets with the last
        return None
    strange = [] if parsed is None else _licensing(package).unknown_license_symbols(parsed)
    return parsed if all(str(symbol.key).lower().startswith("licenseref-") for symbol in strange) else None


@cache
def _licensing(package: Any) -> Any:
    return package.get_spdx_licensing()


def _choices(node: Any) -> Iterator[Terms | None]:
    """What each choice asks for; None for one that is not known."""
    if not getattr(node, "args", ()):
        name = str(node)
        asked = next((conditions for pattern, conditions in _ASKS if re.match(pattern, name, re.IGNORECASE)), None)
        yield None if asked is None else frozenset((condition, name) for condition in asked)
    elif type(node).__name__ == "OR":
        for part in node.args:
            yield from _choices(part)
    else:
        for together in product(*(list(_choices(part)) for part in node.args)):
            yield None if None in together else frozenset().union(*(terms for terms in together if terms is not None))


def conflicts(found: Mapping[str, Licence], output: Licence, *, released: bool) -> list[str]:
    """Conditions that cannot all be kept, in words: of all ways to choose among what the licences offer, the one with fewest.

    Use within the house passes nothing on, so that nothing of the table conflicts with it.

    Args:
        found: Data and base weights, in words, to their licence.
        output: Licence of what is given away.
        released: Whether weights, features or a service leave the house.
    """
    if not released:
        return []
    ways = [[*_refused(taken), *_contradicting(taken), *_not_kept(taken, output)] for taken in _taken(found)]
    return min(ways, key=len)


def doubts(found: Mapping[str, Licence], output: Licence, *, released: bool) -> list[str]:
    """What cannot be told by the table, in words: licences that it does not know, and what only people can say."""
    told = [f"the licence of {name} is not known" for name, one in found.items() if not one.known]
    unpaid = [name for name, one in found.items() if one.choices and all(NO_COMMERCE in _asked(terms) for terms in one.choices)]
    if not released:
        return [*told, *(f"whether this use is commercial, which the licence of {name} forbids, is for people to say" for name in unpaid)]
    if not output.known:
        told.append(f"the licence of the output is not known ({output.text or 'not declared'})")
    elif output.open:
        told.append(f"one choice of the output's licence is not known ({output.text})")
    if any(OWN_TERMS in _asked(terms) and NO_COMMERCE not in _asked(terms) for terms in output.choices):
        told += [f"whether {output.spdx} keeps '{NO_COMMERCE}' of {name} is for people to say" for name in unpaid]
    return told


Taken = Mapping[str, Terms]
"""One way to choose: what each licence that is known asks for then."""


def _taken(found: Mapping[str, Licence]) -> list[Taken]:
    """All ways to choose that differ in what they ask for in sum."""
    ways: dict[Terms, dict[str, Terms]] = {frozenset(): {}}
    for name, one in found.items():
        if one.known:
            ways = {terms | more: {**taken, name: more} for terms, taken in ways.items() for more in one.choices}
    return list(ways.values())


def _asked(terms: Terms) -> set[Condition]:
    return {condition for condition, _ in terms}


def _refused(taken: Taken) -> list[str]:
    return [f"{name} asks for {NOTHING_MADE}" for name, terms in taken.items() if NOTHING_MADE in _asked(terms)]


def _contradicting(taken: Taken) -> list[str]:
    """Whether several ask that the result carries their own terms, and no terms are those of all."""
    shared = {name: ids for name, terms in taken.items() if (ids := {asker for condition, asker in terms if condition == SHARE_ALIKE})}
    every = set().union(*shared.values())
    if len(every) < 2 or any(all(_same_terms(asker, one) for asker in every) for one in every):
        return []
    whose = f"{' and '.join(shared)} each ask" if len(shared) > 1 else f"the parts of {next(iter(shared))} each ask"
    return [f"{whose} that what is made from them carries their own terms"]


def _not_kept(taken: Taken, output: Licence) -> list[str]:
    """What some choice of the output's licence does not keep. Whether an output's own terms forbid commerce is a doubt, no conflict."""
    return [
        f"{name} asks for {condition}, {output.spdx} does not keep it"
        for name, terms in taken.items()
        for condition in sorted({
            condition for condition, asker in terms
            if condition != NOTHING_MADE and not all(_kept(condition, asker, given) for given in output.choices)
        })
    ]  # fmt: skip


def _kept(condition: Condition, asker: str, given: Terms) -> bool:
    if condition == NO_COMMERCE:
        return bool({NO_COMMERCE, OWN_TERMS} & _asked(given))
    return any(condition == kept and _same_terms(asker, name) for kept, name in given)


def _same_terms(asker: str, given: str) -> bool:
    """Whether an id is what another asks for: itself, or a later version where that one says so itself (CC ShareAlike, or-later)."""
    (kind, since, later), (other, version, _) = _version(asker), _version(given)
    return kind == other and (version == since or (later and version > since))


def _version(name: str) -> tuple[str, tuple[int, ...], bool]:
    """An id without its version, in lower case; the version; and whether later ones are as good."""
    found = re.fullmatch(r"(.+?)-(\d+(?:\.\d+)*)(-only|-or-later|\+)?", name.lower())
    if found is None:
        return name.lower(), (), False
    later = found[3] in ("-or-later", "+") or (found[1].startswith("cc-by-") and found[1].endswith("-sa"))
    return found[1], tuple(map(int, found[2].split("."))), later
