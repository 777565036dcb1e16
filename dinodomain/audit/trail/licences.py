"""Which licences of data and base weights cannot go together in one model. A table that raises questions for people; no legal advice.

Text is read as an SPDX expression (license-expression); each licence belongs to a class by its id. What is no SPDX id is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from dinodomain.errors import require

Class = Literal["open", "share_alike", "non_commercial", "no_derivatives", "restricted", "unknown"]

_CLASSES: Sequence[tuple[str, Class]] = (
    (r"CC-BY(-NC)?-ND-|CC-BY-NC-ND-", "no_derivatives"),
    (r"CC-BY-NC-SA-", "non_commercial"),
    (r"CC-BY-NC-|PolyForm-Noncommercial|CC-NC", "non_commercial"),
    (r"CC-BY-SA-|ODbL-|AGPL-|GPL-|CDLA-Sharing-|EUPL-", "share_alike"),
    (
        r"CC0-|CC-PDDC|PDDL-|CC-BY-\d|CDLA-Permissive-|ODC-By-|MIT|Apache-|BSD-|ISC|Unlicense|0BSD|OGL-|etalab-",
        "open",
    ),
    (r"LicenseRef-|BUSL-|RAIL|OpenRAIL", "restricted"),
)
PUBLIC = frozenset({"public domain", "us public domain", "usgs public domain", "pd"})


@cache
def read_licence(text: str) -> tuple[str, Class]:
    """The SPDX expression in a text ("" where it holds none) and the most restrictive class in it.

    Raises:
        MissingExtra: license-expression is not installed.
    """
    plain = text.strip()
    if not plain:
        return "", "unknown"
    if plain.lower() in PUBLIC:
        return "CC-PDDC", "open"
    package = require("license_expression", extra="audit", wanted_by="check provenance")
    try:
        parsed = _licensing(package).parse(re.sub(r"\s+(?=[\d.]+)|(?<=CC)\s+|(?<=BY)\s+(?=(SA|NC|ND)\b)", "-", plain), validate=True)
    except package.ExpressionError:
        return "", "unknown"
    keys = [str(symbol.key) for symbol in parsed.symbols]
    return str(parsed), max((_class_of(key) for key in keys), key=ORDER.index)


ORDER: tuple[Class, ...] = ("open", "share_alike", "non_commercial", "no_derivatives", "restricted", "unknown")


@cache
def _licensing(package: Any) -> Any:
    return package.get_spdx_licensing()


def _class_of(key: str) -> Class:
    return next((kind for pattern, kind in _CLASSES if re.match(pattern, key)), "unknown")


def conflicts(found: Mapping[str, Class], output: tuple[str, Class] | None, *, released: bool) -> list[str]:
    """Why licences cannot go together, in words.

    Args:
        found: SPDX expression to class, of all data and base weights.
        output: Expression and class of the licence that is declared for the weights; None where none is.
        released: Whether weights, features or a service leave the house.
    """
    told = []
    sharing = sorted(name for name, kind in found.items() if kind == "share_alike" or "-NC-SA-" in name)
    if len(sharing) > 1:
        told.append(f"{' and '.join(sharing)} each ask that what is made from them carries their own terms")
    if not released:
        return told
    told += [f"{name} does not allow that works made from it are passed on" for name, kind in found.items() if kind == "no_derivatives"]
    if output is not None:
        told += _against_output(found, *output)
    return told


def _against_output(found: Mapping[str, Class], name: str, kind: Class) -> list[str]:
    told = [
        f"{other} allows no commercial use, and {name} for the weights does"
        for other, own in found.items()
        if own == "non_commercial" and kind in ("open", "share_alike")
    ]
    return told + [
        f"{other} asks for its own terms, and the weights are to carry {name}"
        for other, own in found.items()
        if own == "share_alike" and other != name
    ]
