"""Where sources come from: a folder, a file, a server. The one place that tells them apart, at discovery and again when a source is read.

Out of scope, and said so: DIMSE (C-FIND, C-MOVE) and whole-slide images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinodomain.errors import UserError
from dinodomain.types import Select, SourceRef
from dinodomain_medical.sources import Handlers, Item
from dinodomain_medical.walking import walk


def discover(source: str, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Yields sources and refusals sorted by id.

    Raises:
        UserError: The source does not exist, or is an address of a kind that is not read.
    """
    path = Path(source)
    if not path.exists():
        raise UserError("ingest.source", f"{source!r} does not exist", remedy="give a folder or a file")
    yield from walk(path, select, handlers)


@contextmanager
def at_hand(ref: SourceRef) -> Iterator[SourceRef]:
    """The same source with files that can be opened now; what had to be fetched for it is gone afterwards."""
    yield ref
