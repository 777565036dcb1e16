"""What licences of data and base weights ask of those who pass on what is made with them, and what the output's licence drops of it.

Text is read as an SPDX expression (license-expression), free text only where it is none. In ``A OR B`` the choice is the user's, and a
conflict is one that every choice has; ``A AND B`` asks for both. A small table that raises questions for people and decides none; what is
not in it is unknown, never fine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

from dinodomain.errors import require

Condition = Literal["share alike", "no commercial use", "no derivatives passed on", "its own terms passed on"]
Terms = frozenset[tuple[Condition, str]]
"""What one choice asks for: each condition, and the SPDX id that asks for it."""

_ASKS: Sequence[tuple[str, tuple[Condition, ...]]] = (
    (r"CC-BY-NC-ND-", ("no commercial use", "no derivatives passed on")),
    (r"CC-BY-ND-", ("no derivatives passed on",)),
    (r"CC-BY-NC-SA-", ("no commercial use", "share alike")),
    (r"CC-BY-NC-|PolyForm-Noncommercial", ("no commercial use",)),
    (r"CC-BY-SA-|ODbL-|[AL]?GPL-|CDLA-Sharing-|EUPL-|MPL-", ("share alike",)),
    (r"CC0-|CC-PDDC$|PDDL-|CC-BY-\d|CDLA-Permissive-|ODC-By-|Apache-|OGL-|etalab-|Unlicense$|ISC$|0BSD$|LicenseRef-Copernicus$", ()),
    (r"MIT(-0)?$|BSD-[23]-Clause$", ()),
    (r"LicenseRef-|BUSL-", ("its own terms passed on",)),
)
"""SPDX id, by its beginning, to what it asks for beside attribution. A LicenseRef has terms of its own, whatever they are."""

_TEXTS: Sequence[tuple[str, str]] = (
    (r".*\bdinov3 licen[sc]e\b.*", "LicenseRef-DINOv3"), (r".*\bdino(v2)? under apache-2\.0\W*", "Apache-2.0"),
    (r".*\bopenrail\b.*", "LicenseRef-OpenRAIL"), (r".*\bcopernicus sentinel (data|information)\b.*", "LicenseRef-Copernicus"),
    (r"((us|usgs) )?public domain|pd", "CC-PDDC"),
)  # fmt: skip
"""Texts that are no SPDX expression, in lower case, to what they stand for. Copernicus: free with attribution, (EU) 1159/2013."""

_SPELLED = re.compile(r"\s+(?=\d+\.\d)|(?<=\bCC)\s+|(?<=BY)\s+(?=(SA|NC|ND)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """A licence as it was recorded, and as it is read.

    Attributes:
        text: As recorded; "" where none is.
        spdx: The expression in it; "" where it holds none.
        choices: What each choice asks for; empty where that is not known.
    """

    text: str
    spdx: str = ""
    choices: frozenset[Terms] = frozenset()

    @property
    def known(self) -> bool:
        """Whether the table knows what it asks for."""
        return bool(self.choices)

    @property
    def asks(self) -> frozenset[Condition]:
        """Conditions that every choice has."""
        return frozenset.intersection(*(frozenset(one for one, _ in terms) for terms in self.choices)) if self.choices else frozenset()

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
    parsed = _parse(_SPELLED.sub("-", plain)) if plain else None
    stands = next((spdx for pattern, spdx in _TEXTS if re.fullmatch(pattern, plain.lower())), "")
    parsed = _parse(stands) if parsed is None and stands else parsed
    return Licence(text=plain) if parsed is None else Licence(text=plain, spdx=str(parsed), choices=frozenset(_choices(parsed)))


def _parse(words: str) -> Any:
    """The tree of an expression whose ids SPDX knows or leaves to anyone (LicenseRef-); None for what is none."""
    package = require("license_expression", extra="audit", wanted_by="licences in an audit")
    try:
        parsed = _licensing(package).parse(words)
    except (package.ExpressionError, package.ExpressionParseError, IndexError):  # it fails on empty brackets with the last
        return None
    strange = _licensing(package).unknown_license_symbols(parsed)
    return parsed if all(str(symbol.key).lower().startswith("licenseref-") for symbol in strange) else None


@cache
def _licensing(package: Any) -> Any:
    return package.get_spdx_licensing()


def _choices(node: Any) -> Iterator[Terms]:
    """Of the choices that are known: an unknown one need not be taken."""
    if not getattr(node, "args", ()):
        name = str(node)
        asked = next((conditions for pattern, conditions in _ASKS if re.match(pattern, name, re.IGNORECASE)), None)
        if asked is not None:
            yield frozenset((condition, name) for condition in asked)
    elif type(node).__name__ == "OR":
        for part in node.args:
            yield from _choices(part)
    else:
        yield from (frozenset().union(*together) for together in product(*(list(_choices(part)) for part in node.args)))


def conflicts(found: Mapping[str, Licence], output: Licence, *, released: bool) -> list[str]:
    """Conditions that cannot all be kept, in words. Use within the house asks nothing: nothing is passed on.

    Args:
        found: Data and base weights, in words, to their licence.
        output: Licence of what is given away.
        released: Whether weights, features or a service leave the house.
    """
    if not released:
        return []
    told = [f"{name} asks for no derivatives passed on" for name, one in found.items() if "no derivatives passed on" in one.asks]
    told += _contradicting(found)
    if not output.known:
        return told
    for name, one in found.items():
        dropped = min((_dropped(terms, output) for terms in one.choices), key=len, default=[])
        told += [f"{name} asks for {condition}, {output.spdx} does not keep it" for condition in dropped]
    return told


def doubts(found: Mapping[str, Licence], output: Licence, *, released: bool) -> list[str]:
    """What cannot be told by the table, in words: licences that it does not know, and what an output's own terms may keep."""
    told = [f"the licence of {name}" for name, one in found.items() if not one.known]
    if released and not output.known and any(one.asks for one in found.values()):
        told.append(f"the licence of the output ({output.text or 'not declared'})")
    if released and "its own terms passed on" in output.asks and "no commercial use" not in output.asks:
        told += [
            f"whether {output.spdx} keeps 'no commercial use' of {name}" for name, one in found.items() if "no commercial use" in one.asks
        ]
    return told


def _contradicting(found: Mapping[str, Licence]) -> list[str]:
    """Whether, whatever is chosen, two of them ask that the result carries their own terms."""
    reached: dict[frozenset[str], tuple[str, ...]] = {frozenset(): ()}
    for name, one in found.items():
        shared = [frozenset(asker for condition, asker in terms if condition == "share alike") for terms in one.choices]
        reached = {
            ids | more: (*names, name) if more - ids else names for ids, names in reached.items() for more in shared or [frozenset[str]()]
        }
    least = min(reached, key=len)
    return [f"{' and '.join(reached[least])} each ask that what is made from them carries their own terms"] if len(least) > 1 else []


def _dropped(terms: Terms, output: Licence) -> list[Condition]:
    """What some choice of the output's licence does not keep. Whether an output's own terms forbid commerce is a doubt, no conflict."""
    return sorted({
        condition
        for condition, asker in terms
        if condition != "no derivatives passed on" and not all(_kept(condition, asker, given) for given in output.choices)
    })  # fmt: skip


def _kept(condition: Condition, asker: str, given: Terms) -> bool:
    names = {name for name, _ in given}
    if condition == "no commercial use":
        return condition in names or "its own terms passed on" in names
    return (condition, asker) in given
