"""The properties verb: looks at each property in turn, says what the data do not allow, and writes one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dinodomain.domain import Domain
from dinodomain.lineage import Json, Lineage, digest, to_json
from dinodomain.properties.attention import attention
from dinodomain.properties.components import principal
from dinodomain.properties.masks import Masks
from dinodomain.properties.matching import matching
from dinodomain.properties.plan import PropertiesPlan
from dinodomain.properties.propagation import dates, slices
from dinodomain.properties.regions import regions
from dinodomain.properties.report import NotPossible, PropertiesReport, Property
from dinodomain.properties.retrieval import retrieval
from dinodomain.properties.scene import Scene
from dinodomain.show.sides import convention

_TITLES = {
    "attention": "Attention of the class token",
    "components": "Principal components of patch tokens",
    "regions": "Regions without labels",
    "matching": "Dense matching",
    "retrieval": "Retrieval of like tiles",
    "slices": "A region carried through slices",
    "dates": "The same place at another date",
}


def properties(plan: PropertiesPlan, *, domain: Domain | None = None) -> PropertiesReport:
    """Draws and measures the emergent properties of a checkpoint on a store, and writes them to ``plan.out``.

    Args:
        plan: What, and where to.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: The checkpoint, the store or a mask cannot be used, or they do not fit each other.
    """
    scene = Scene(plan, domain)
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    masks = Masks(scene)
    calls: Mapping[str, Callable[[], Property]] = {
        "attention": lambda: attention(scene, out, masks),
        "components": lambda: principal(scene, out, masks),
        "regions": lambda: regions(scene, out, masks),
        "matching": lambda: matching(scene, out),
        "retrieval": lambda: retrieval(scene, out),
        "slices": lambda: slices(scene, out, masks),
        "dates": lambda: dates(scene, out, masks),
    }
    found = tuple(_looked(name, calls[name]) for name in plan.wanted)
    names = " ".join(scene.backbone.channels[band] for band in scene.sight.bands)
    light = f"{names}, each picture stretched by itself" if scene.own_light else scene.sight.range_words()
    shown = f"{light}; {convention(scene.tiles[0].frame)}; pixels without data are dark blue"
    report = PropertiesReport(
        properties=found, settings=_settings(scene), lineage=_lineage(scene), out=str(out), shown=shown, notice=plan.notice
    )
    report.save()
    return report


def _looked(name: str, call: Callable[[], Property]) -> Property:
    try:
        return call()
    except NotPossible as error:
        return Property(name=name, title=_TITLES[name], why_not=str(error))


def _settings(scene: Scene) -> dict[str, Json]:
    plan = scene.plan
    return {
        "checkpoint step or weights": str(scene.frozen.origin.get("digest", ""))[:16],
        "tiles": len(scene.tiles),
        "units of these tiles": len({tile.unit for tile in scene.tiles}),
        "longest side for maps, pixels": scene.size,
        "patch, pixels": list(scene.backbone.patch),
        "patches of a tile": sorted({"x".join(map(str, tile.grid)) for tile in scene.tiles}),
        "crops": plan.crops,
        "gallery": min(plan.gallery, len(scene.all_tiles)),
        "groups": plan.regions,
        "seed": plan.seed,
    }


def _lineage(scene: Scene) -> dict[str, Json]:
    plan = {name: value for name, value in to_json(scene.plan).items() if name not in ("checkpoint", "store", "out", "device")}
    checkpoint = str(scene.frozen.origin.get("digest") or digest(scene.backbone.spec))
    counts = {"tiles": len(scene.tiles), "units": len({tile.unit for tile in scene.tiles})}
    return Lineage(
        kind="report", parents={"checkpoint": checkpoint, "store": scene.store.digest}, plan=plan, counts=counts,
        history=(scene.frozen.origin, scene.store.lineage),
    ).as_json()  # fmt: skip
