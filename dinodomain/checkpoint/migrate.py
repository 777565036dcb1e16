"""Brings the state of an older checkpoint format to the present one, one function per version. Tensors are not touched here.

``MIGRATIONS[n]`` takes a format-n body and returns a format-(n+1) body. A format newer than this package is refused: guessing
would load weights into the wrong places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dinodomain.checkpoint.state import FORMAT
from dinodomain.errors import UserError

Body = dict[str, Any]
MIGRATIONS: Mapping[int, Callable[[Body], Body]] = {1: lambda body: {**body, "extra": {}, "beside": []}}


def migrate(body: Body, place: str, *, target: int = FORMAT, steps: Mapping[int, Callable[[Body], Body]] = MIGRATIONS) -> Body:
    """The body in the present format.

    Args:
        body: What ``state.json`` holds.
        place: The file, for the message.
        target: Format wanted.
        steps: One function per version.

    Raises:
        UserError: The format is newer than this package, or is not a number.
    """
    found = body.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UserError(place, f"has no usable format number ({found!r})", allowed=f"1 to {target}")
    if found > target:
        raise UserError(
            place, f"is format {found}", allowed=f"up to {target}", remedy="it was written by a newer dinodomain: upgrade this one"
        )
    for version in range(found, target):
        body = {**steps[version](body), "format": version + 1}
    return body
