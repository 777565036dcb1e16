"""Sizes in bytes as people write them, and back."""

from __future__ import annotations

import re

from dinodomain.errors import UserError

_PREFIXES = "KMGTPE"
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:([KMGTPE])(i?))?B", re.IGNORECASE)


def parse_size(text: str, place: str) -> int:
    """Bytes of ``2TB``, ``1.5 GiB`` or ``800 kB``: decimal prefixes are powers of 1000, binary ones of 1024.

    Args:
        text: A number and its unit; a number alone is refused, since it leaves open of what.
        place: Key that the error names.

    Raises:
        UserError: It is no size, or not above zero.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(place, f"{text!r} is no size", allowed="a number with B, KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB or PiB")
    number, prefix, binary = found.groups()
    power = _PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise UserError(place, f"{text!r} is nothing", allowed="one byte or more")
    return size


def size_text(count: float) -> str:
    """``1.5 TB``: powers of 1000, as disks and networks are sold."""
    power = 0
    while count >= 999.5 and power < len(_PREFIXES):
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_PREFIXES[power - 1] if power else ''}B"


def hours_text(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h`` or ``6 days``."""
    for limit, unit, name in ((99.5, 1.0, "s"), (99.5 * 60, 60.0, "min"), (48 * 3600.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"
