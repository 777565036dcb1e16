"""Retrieval: the tiles most like a query among those of other units, and whether two crops of a tile find each other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dinodomain.ingest import join_labels
from dinodomain.loader import sweep_tiles
from dinodomain.probes.frozen import column_of, linked_units
from dinodomain.probes.neighbours import chance_same_value, nearest_of_others, reciprocal_rank, same_value
from dinodomain.properties.picture import image_panel, photo, views_of
from dinodomain.properties.report import REFERENCE, UNTRAINED, NotPossible, Number, Property, measured
from dinodomain.properties.scene import PIXELS, Scene, need_units
from dinodomain.show.panels import BAD, GOOD, Panel, draw_panels

_NEAR = 5
_QUERIES = 3
_WORDS = (
    "Each query tile on the left, and to its right the tiles of other units (patients, places) that are most like it to the network, "
    "the most "
    "similar first; below it the same query for the untrained network and for raw pixels. {framed}The first number asks whether a network "
    "knows a tile again: of two crops of a tile, at which rank does the second come when all second crops are sorted by similarity to "
    "the first?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gallery:
    """Tiles that are searched: positions among all tiles, rows, units, features by kind, columns.

    With columns, units join all tiles of a source: values are of whole sources, and a scene would find its own value again.
    """

    positions: np.ndarray
    rows: np.ndarray
    units: np.ndarray
    features: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]


def retrieval(scene: Scene, out: Path) -> Property:
    """Neighbours with their shared values, and the rank of second crops."""
    positions = np.sort(scene.order[: scene.plan.gallery])
    gallery = _gallery(scene, positions)
    near = {kind: nearest_of_others(own, gallery.units, _NEAR) for kind, own in gallery.features.items()}
    numbers = [*_ranks(scene), *(number for name, values in gallery.columns.items() for number in _shared(name, values, gallery, near))]
    column = next(iter(gallery.columns), None)
    framed = f"Green frames share the query's value of {column}, red ones do not. " if column is not None else ""
    return Property(
        name="retrieval", title="Retrieval of like tiles", words=_WORDS.format(framed=framed),
        figures=(_draw(scene, out, gallery, near, column),), numbers=tuple(numbers),
    )  # fmt: skip


def _gallery(scene: Scene, positions: np.ndarray) -> _Gallery:
    tiles = scene.all_tiles.only(positions)
    order = np.concatenate([members for members in tiles.members if len(members)])  # bucket by bucket, as they are read
    columns = _columns(scene, tiles.rows[order])
    units = _units(scene, positions[order], tiles.rows[order], of_sources=bool(columns))
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in scene.encoders}
    plan = replace(scene.plan.loader, batch=scene.plan.batch)
    with closing(sweep_tiles(scene.store, tiles, plan, device=scene.backbone.device)) as batches:
        for batch in batches:
            for kind in parts:
                parts[kind].append(scene.pooled(batch, kind))
    return _Gallery(
        positions=positions[order], rows=tiles.rows[order], units=units, columns=columns,
        features={kind: np.concatenate(part) for kind, part in parts.items()},
    )  # fmt: skip


def _units(scene: Scene, positions: np.ndarray, rows: np.ndarray, *, of_sources: bool) -> np.ndarray:
    """[n] unit of each tile; sources that share a place are one where values of whole sources are compared.

    Raises:
        NotPossible: There is one unit only.
    """
    own: np.ndarray = scene.units[positions]
    need_units(set(own.tolist()))
    if not of_sources:
        return own
    sources, place = np.unique(rows, return_inverse=True)
    joined: np.ndarray = linked_units(scene.all_tiles.rows, scene.units, sources)[place.reshape(-1)]
    if len(set(joined.tolist())) < 2:
        raise NotPossible("labels and attributes are of whole sources, and all sources share places; without them there are neighbours")
    return joined


def _columns(scene: Scene, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the gallery's tiles by column, as text; empty where a tile has none."""
    plan = scene.plan
    found = {name: np.array(["" if v is None else str(v) for v in scene.store.column(name)[rows]]) for name in plan.attributes}
    if plan.labels is not None and plan.target is not None:
        labels = join_labels(scene.store, plan.labels, plan.join, plan.target, secret=plan.secret)
        found = {plan.target: column_of(labels, rows, labels.values).astype(str), **found}
    return found


def _ranks(scene: Scene) -> list[Number]:
    pairs = scene.pairs
    if len(pairs) < 2:
        return []
    values = {
        kind: reciprocal_rank(
            np.stack([pair.first.seen[kind].pooled for pair in pairs]), np.stack([pair.second.seen[kind].pooled for pair in pairs])
        )
        for kind in scene.encoders
    }
    blind = float(np.mean(1.0 / np.arange(1, len(pairs) + 1)))
    meaning = f"mean of one over the rank of a tile's own second crop among {len(pairs)} second crops; 1: always first."
    return [measured("own crop found", meaning, values, chance=blind, units=[pair.first.unit for pair in pairs])]


def _shared(name: str, values: np.ndarray, gallery: _Gallery, near: Mapping[str, np.ndarray]) -> list[Number]:
    """For one column: share of nearest, and of the nearest five, that have the query's value; tiles without a value ask nothing."""
    known = values != ""
    if len(set(values[known].tolist())) < 2:
        return []
    own = {
        kind: nearest_of_others(rows[known], gallery.units[known], _NEAR) if not known.all() else near[kind]
        for kind, rows in gallery.features.items()
    }
    chance = chance_same_value(values[known], gallery.units[known])
    return [
        measured(f"same {name}: nearest" if count == 1 else f"same {name}: nearest {count}",
                 f"share of the {'nearest tile' if count == 1 else f'{count} nearest tiles'} of other units with the query's value, 0 "
                 f"to 1.",
                 {kind: same_value(found[:, :count], values[known]) for kind, found in own.items()}, chance=chance,
                 units=gallery.units[known])
        for count in (1, _NEAR)
    ]  # fmt: skip


def _draw(scene: Scene, out: Path, gallery: _Gallery, near: Mapping[str, np.ndarray], column: str | None) -> str:
    place_of = {position: place for place, position in enumerate(gallery.positions.tolist())}
    queries = [place_of[position] for position in scene.order.tolist() if position in place_of][:_QUERIES]
    kinds = {REFERENCE: "pretrained", UNTRAINED: "untrained", PIXELS: "raw pixels"}
    wanted = {place for query in queries for kind in kinds for place in (query, *near[kind][query].tolist()) if place >= 0}
    panels = {place: _thumbnail(scene, gallery, place) for place in sorted(wanted)}
    values = None if column is None else gallery.columns[column]
    rows: list[list[Panel | None]] = []
    labels = []
    for number, query in enumerate(queries):
        for kind, name in kinds.items():
            found = [place for place in near[kind][query].tolist() if place >= 0]
            row: list[Panel | None] = [_named(panels[query], values, query, None) if kind == REFERENCE else None]
            rows.append(row + [_named(panels[place], values, place, query) for place in found])
            labels.append(f"query {number + 1}\n{name}")
    names = ["query", "nearest", *(f"{count}." for count in range(2, _NEAR + 1))]
    words = "The tiles of other units (patients, places) that are most like the query, by each kind of features."
    words += f"\nGreen frame: same {column} as the query; red: another." if column is not None else ""
    draw_panels(rows, out / "retrieval.png", title=f"{scene.domain.name}: nearest tiles of other units, among {len(gallery.rows)}",
                columns=names, labels=labels, words=words, notice=scene.plan.notice, cell=1.15)  # fmt: skip
    return "retrieval.png"


def _thumbnail(scene: Scene, gallery: _Gallery, place: int) -> Panel:
    batch = next(scene.read(gallery.positions[[place]]))
    picture = scene.picture(batch)
    view = views_of([picture])[0]
    base = image_panel(scene, view)
    return Panel(picture=photo(scene, view), aspect=base.aspect)


def _named(panel: Panel, values: np.ndarray | None, place: int, query: int | None) -> Panel:
    if values is None:
        return panel
    edge = "" if query is None or values[query] == "" else GOOD if values[place] == values[query] else BAD
    return replace(panel, caption=str(values[place])[:26], edge=edge)
