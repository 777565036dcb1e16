"""One store holds numbers of one kind (Level 2A reflectance, sigma0 in dB, images for presentation) unless the user says otherwise.

A network learns the kind instead of the content where two are mixed unseen. Sources that state no quantity never conflict. A store keeps
the quantity of each source among its fields, and the counts in its manifest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dinodomain.errors import UserError
from dinodomain.lineage import Json
from dinodomain.types import SourceRef

FIELD = "quantity"
"""Name in the index's ``fields``."""


def quantities_of(fields: Iterable[str]) -> dict[str, int]:
    """Number of sources by quantity, sorted, from the ``fields`` (JSON) of index rows; those without one are not counted."""
    found = Counter(str(json.loads(text)[FIELD]) for text in fields if f'"{FIELD}":' in text)
    return dict(sorted((name, count) for name, count in found.items() if name))


def refuse_mixed(new: Sequence[SourceRef], manifest: Mapping[str, Json] | None, *, mix: bool) -> None:
    """Refuses sources of another quantity than their fellows or the store they would join.

    Args:
        new: Sources that would be added.
        manifest: Of the store that is added to, or None.
        mix: ``ingest.mix``.

    Raises:
        UserError: There are several quantities, and ``mix`` is off.
    """
    fresh = Counter(ref.quantity for ref in new if ref.quantity)
    held: Mapping[str, int] = {} if manifest is None else manifest.get("quantities", {})
    if mix or not fresh or len(fresh.keys() | held.keys()) < 2:
        return
    told = [_counted(name, fresh[name], held.get(name, 0)) for name in sorted(fresh.keys() | held.keys())]
    keep = max(held, key=lambda name: (held[name], name)) if held else max(fresh, key=lambda name: (fresh[name], name))
    remedy = f"{_how_to_keep(keep, new)}; ingest the others into a store of their own, or set ingest.mix=true"
    raise UserError("ingest.mix", f"numbers of different kinds would share a store: {', '.join(told)}", remedy=remedy)


def _counted(name: str, fresh: int, held: int) -> str:
    return f"{name!r} ({' and '.join([*([f'{held} in the store'] if held else []), *([f'{fresh} new'] if fresh else [])])})"


def _how_to_keep(quantity: str, refs: Sequence[SourceRef]) -> str:
    """A header filter that takes this quantity only, where some fact tells the quantities apart."""
    names = sorted({name for ref in refs for name in ref.facts})
    telling = [name for name in names if any(str(ref.facts.get(name) or "\0").lower() in ref.quantity.lower() for ref in refs)]
    for name in (*telling, *names):  # first those whose values the quantities themselves repeat
        values = _values(name, refs)
        mine = values.get(quantity, set())
        others = {value for other, found in values.items() if other != quantity for value in found}
        if len(mine) == 1 and not mine & others and len(values) == len({ref.quantity for ref in refs}):
            return f"keep {quantity!r} with ingest.select=\"{name} == '{next(iter(mine))}'\""
        if not mine and len(others) == 1 and len(values) == 1:
            return f"keep {quantity!r} with ingest.select=\"{name} != '{next(iter(others))}'\""
    return f"keep {quantity!r} with an ingest.select expression on a field that tells them apart, or with ingest.include"


def _values(name: str, refs: Sequence[SourceRef]) -> dict[str, set[str]]:
    """Text values of one fact by quantity; "" where a source does not state it. Numbers and lists are no names of a kind."""
    found: dict[str, set[str]] = {}
    for ref in refs:
        value = ref.facts.get(name)
        if not isinstance(value, str):
            return {}
        found.setdefault(ref.quantity, set()).add(value)
    return found
