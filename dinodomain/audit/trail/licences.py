"""What licences of data and base weights ask of those who pass on what is made with them, and what the output's licence drops of it.

Text is read as an SPDX expression (license-expression); in ``A OR B`` the choice is the user's, so only what both ask for is asked, in
``A AND B`` what either asks. A small table that raises questions for people and decides none; what is not in it is unknown, never fine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dinodomain.errors import require

Condition = Literal["share alike", "no commercial use", "no derivatives passed on", "its own terms passed on"]
Asks = frozenset[Condition]

_ASKS: Sequence[tuple[str, tuple[Condition, ...]]] = (
    (r"CC-BY-NC-ND-", ("no commercial use", "no derivatives passed on")),
    (r"CC-BY-ND-", ("no derivatives passed on",)),
    (r"CC-BY-NC-SA-", ("no commercial use", "share alike")),
    (r"CC-BY-NC-|PolyForm-Noncommercial", ("no commercial use",)),
    (r"CC-BY-SA-|ODbL-|AGPL-|GPL-|CDLA-Sharing-|EUPL-", ("share alike",)),
    (r"CC0-|CC-PDDC|PDDL-|CC-BY-\d|CDLA-Permissive-|ODC-By-|MIT$|Apache-|BSD-|ISC$|Unlicense|0BSD|OGL-|etalab-|LicenseRef-Copernicus$", ()),
    (r"LicenseRef-|BUSL-", ("its own terms passed on",)),
)
"""SPDX id, by its beginning, to what it asks for beside attribution. A LicenseRef has terms of its own, whatever they are."""

_TEXTS: Sequence[tuple[str, str]] = (
    (r".*\bdinov3\b.*", "LicenseRef-DINOv3"), (r".*\bdino(v2)? under apache-2\.0", "Apache-2.0"),
    (r".*\bopenrail\b.*", "LicenseRef-OpenRAIL"), (r".*\bcopernicus\b.*", "LicenseRef-Copernicus"),
    (r"((us|usgs) )?public domain|pd", "CC-PDDC"),
)  # fmt: skip
"""Texts that are no SPDX expression, in lower case, to what they stand for. Copernicus: free with attribution, (EU) 1159/2013."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """A licence as it was recorded, and as it is read.

    Attributes:
        text: As recorded; "" where none is.
        spdx: The expression in it; "" where it holds none.
        asks: What it asks for; None where that is not known.
    """

    text: str
    spdx: str = ""
    asks: Asks | None = None

    def __str__(self) -> str:
        """What it asks for, in words."""
        return "not known" if self.asks is None else ", ".join(sorted(self.asks)) or "attribution at most"


@cache
def read_licence(text: str) -> Licence:
    """Reads a text.

    Raises:
        MissingExtra: license-expression is not installed.
    """
    plain = text.strip()
    stands = next((spdx for pattern, spdx in _TEXTS if re.fullmatch(pattern, plain.lower())), plain)
    parsed = _parse(re.sub(r"\s+(?=[\d.]+)|(?<=CC)\s+|(?<=BY)\s+(?=(SA|NC|ND)\b)", "-", stands)) if plain else None
    return Licence(text=plain) if parsed is None else Licence(text=plain, spdx=str(parsed), asks=_asks(parsed))


def _parse(words: str) -> Any:
    """The tree of an expression whose ids SPDX knows or leaves to anyone (LicenseRef-); None for what is none."""
    package = require("license_expression", extra="audit", wanted_by="licences in an audit")
    try:
        parsed = _licensing(package).parse(words)
    except package.ExpressionError:
        return None
    strange = _licensing(package).unknown_license_symbols(parsed)
    return parsed if all(str(symbol.key).startswith("LicenseRef-") for symbol in strange) else None


@cache
def _licensing(package: Any) -> Any:
    return package.get_spdx_licensing()


def _asks(node: Any) -> Asks | None:
    if not getattr(node, "args", ()):
        return next((frozenset(asked) for pattern, asked in _ASKS if re.match(pattern, str(node))), None)
    inner = [_asks(part) for part in node.args]
    known = [found for found in inner if found is not None]
    if len(known) < len(inner):
        return None
    return frozenset.intersection(*known) if type(node).__name__ == "OR" else frozenset.union(*known)


def conflicts(found: Mapping[str, Licence], output: Licence | None, *, released: bool) -> list[str]:
    """Conditions that cannot all be kept, in words. Use within the house asks nothing: nothing is passed on.

    Args:
        found: Data and base weights, in words, to their licence.
        output: Licence of what is given away; None where none is declared or known.
        released: Whether weights, features or a service leave the house.
    """
    if not released:
        return []
    told = [f"{name} asks for no derivatives passed on" for name, one in found.items() if "no derivatives passed on" in (one.asks or ())]
    sharing = {one.spdx: name for name, one in found.items() if "share alike" in (one.asks or ())}
    if len(sharing) > 1:
        told.append(f"{' and '.join(sharing.values())} each ask that what is made from them carries their own terms")
    if output is None or output.asks is None:
        return told
    return told + [
        f"{name} asks for {condition}, {output.spdx} does not keep it"
        for name, one in found.items()
        for condition in sorted(one.asks or ())
        if condition != "no derivatives passed on" and not _kept(condition, one, output)
    ]


def _kept(condition: Condition, one: Licence, output: Licence) -> bool:
    return condition in (output.asks or ()) and (condition == "no commercial use" or one.spdx == output.spdx)
