"""Every kind of source that a raster domain reads, and who reads it.

A folder, a file, a text file of addresses, ``s3://BUCKET/PREFIX``, ``https://FILE``; ``stac:URL?collections=...`` or a STAC ``.json``;
``torchgeo:CLASS?root=PATH``.
"""

from __future__ import annotations

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_remote_sensing import stac
from dinodomain_remote_sensing.files import candidates
from dinodomain_remote_sensing.remote import quietly
from dinodomain_remote_sensing.sensor import Candidate, Sensor
from dinodomain_remote_sensing.stac_item import candidate_of
from dinodomain_remote_sensing.torchgeo_source import is_torchgeo, torchgeo_candidates


def sources(source: str, select: Select, sensor: Sensor) -> list[Candidate | BadSource]:
    """All candidates of a source, sorted by source id; behind them what cannot be one.

    Raises:
        UserError: There is no such source.
    """
    if is_torchgeo(source):
        return torchgeo_candidates(source, select, sensor)
    with quietly():
        return _catalogued(source, select, sensor) if stac.is_stac(source) else candidates(source, select, sensor)


def _catalogued(source: str, select: Select, sensor: Sensor) -> list[Candidate | BadSource]:
    found: list[Candidate] = []
    refused: list[BadSource] = []
    for item in stac.items(source, select):
        try:
            if isinstance(item, BadSource):
                raise item
            candidate = candidate_of(item, select, sensor)
        except BadSource as refusal:
            refused.append(refusal)
        else:
            found += [candidate] if candidate is not None else []
    return [*sorted(found, key=lambda candidate: candidate.source_id), *refused]
