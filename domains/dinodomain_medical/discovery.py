"""Where sources come from: a folder, a file, a server. The one place that tells them apart, at discovery and again when a source is read.

Out of scope, and said so: DIMSE (C-FIND, C-MOVE) and whole-slide images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dinodomain.errors import BadSource, UserError
from dinodomain.types import Select, SourceRef
from dinodomain_medical import dicomweb
from dinodomain_medical.archives import Names
from dinodomain_medical.sources import Handlers, Item
from dinodomain_medical.walking import walk


def discover(source: str, select: Select, handlers: Handlers) -> Iterator[Item]:
    """Yields sources and refusals sorted by id.

    Raises:
        UserError: The source does not exist, or is an address of a kind that is not read.
    """
    if source.startswith(dicomweb.SCHEME):
        yield from dicomweb.discover(source, select, handlers)
        return
    if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
        problem = (
            "is DIMSE (C-FIND, C-MOVE), which is not read"
            if source.lower().startswith("dimse")
            else "is not a kind of address that is read"
        )
        allowed = "a folder, a file, an archive, a DICOMDIR, or dicomweb+https://HOST/PATH?QIDO filters"
        raise UserError("ingest.source", f"{source.partition('?')[0]!r} {problem}", allowed=allowed)
    path = Path(source)
    if not path.exists():
        raise UserError("ingest.source", f"{source!r} does not exist", remedy="give a folder or a file")
    yield from walk(path, select, handlers)


@contextmanager
def at_hand(ref: SourceRef) -> Iterator[SourceRef]:
    """The same source with files that can be opened now; what had to be fetched for it is gone afterwards."""
    if ref.uris[0].startswith(dicomweb.SCHEME):
        with dicomweb.fetched(ref) as local:
            yield local
        return
    names = Names(ref.select.scratch)
    uris = tuple(map(names.local, ref.uris))
    if uris == ref.uris:
        yield ref
        return
    try:
        yield replace(ref, uris=uris)
    except BadSource as bad:
        raise names.renamed(bad) from bad
