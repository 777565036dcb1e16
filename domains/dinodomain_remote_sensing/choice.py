"""What ``ingest.dates`` and ``ingest.max_cloud`` leave out, by what a scene states of itself.

A scene that does not state what is asked for is left out too, and its row says so: what is not known is not chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dinodomain.errors import LeftOut, UserError
from dinodomain.types import FactValue, Select
from dinodomain_remote_sensing.place import meets
from dinodomain_remote_sensing.sensor import Sensor
from dinodomain_remote_sensing.stated import Stated

CLOUD_FIELD = "cloud_cover_percent"


def check_choice(select: Select, sensor: Sensor) -> None:
    """Refuses choices that no scene of this sensor could meet.

    Raises:
        UserError: ``ingest.max_cloud`` where products state no cloud cover.
    """
    if select.max_cloud is not None and CLOUD_FIELD not in sensor.facts:
        raise UserError("ingest.max_cloud", f"{sensor.title} products state no cloud cover", remedy="leave the key out")


def refuse_early(stated: Stated | None, select: Select, uri: str) -> None:
    """Leaves a scene out by what its catalogue says, before a file of it is opened.

    Raises:
        LeftOut: It lies outside the area, the dates or the cloud cover asked for.
    """
    if stated is None:
        return
    known = {"acquired": stated.acquired, CLOUD_FIELD: stated.fields.get(CLOUD_FIELD)}
    dates = select.dates if stated.acquired else ""
    max_cloud = select.max_cloud if known[CLOUD_FIELD] is not None else None
    refuse_unchosen(replace(select, dates=dates, max_cloud=max_cloud), known, uri)
    if select.aoi and stated.bbox and not meets(select.aoi, stated.bbox):
        raise LeftOut(uri, f"ingest.aoi={select.aoi} (lies elsewhere)")


def refuse_unchosen(select: Select, facts: Mapping[str, FactValue], uri: str) -> None:
    """Leaves a scene out by its date or cloud cover.

    Raises:
        LeftOut: It lies outside the dates, is cloudier than asked for, or does not say.
    """
    if select.dates:
        first, _, last = select.dates.partition("/")
        day = str(facts["acquired"])[:10] if facts.get("acquired") else ""
        early, late = first not in ("", "..") and day < first, last not in ("", "..") and day > last
        if not day:
            raise LeftOut(uri, f"ingest.dates={select.dates} (date not stated)")
        if early or late:
            raise LeftOut(uri, f"ingest.dates={select.dates} (is of {day})")
    if select.max_cloud is not None:
        cloud = facts.get(CLOUD_FIELD)
        if not isinstance(cloud, (int, float)):
            raise LeftOut(uri, f"ingest.max_cloud={select.max_cloud:g} (cloud cover not stated)")
        if cloud > select.max_cloud:
            raise LeftOut(uri, f"ingest.max_cloud={select.max_cloud:g} (has {cloud:g})")
