"""What the properties verb is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dinodomain.embed.tiles import check_loader
from dinodomain.errors import Problems, UserError
from dinodomain.loader import LoaderPlan

NAMES: Final = ("attention", "components", "regions", "matching", "retrieval", "slices", "dates")
"""The properties, in the order of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertiesPlan:
    """Emergent properties of a checkpoint on a store.

    Attributes:
        checkpoint: Run folder, checkpoint folder or exported ``.safetensors`` file.
        store: Store whose tiles are looked at; tiles of the audit holdout are not.
        out: Folder for properties.md, properties.json and the figures.
        num: Tiles that maps are made of, one of each unit before a second of any.
        seed: Decides tiles, crops, clusters and the untrained weights.
        only: Properties to look at, of attention, components, regions, matching, retrieval, slices, dates; empty for all.
        size: Longest side given to the network for maps, pixels; none takes twice the pretraining size, as the papers' figures do.
        crops: Tiles of which two crops are compared (regions, matching, retrieval).
        gallery: Tiles among which neighbours are searched.
        regions: Clusters of patch tokens.
        attributes: Columns of the store's index that neighbours may share (``sensor``, ``acquired`` ...).
        labels: CSV with a further column that neighbours may share.
        target: That column.
        join: Column of ``labels`` and ``masks`` that names the image.
        masks: CSV with a column ``mask`` that names a mask file of each image, of the image's own size; 0 is background.
        secret: File with the store's secret, where ids in the CSVs are clear names; none means the one beside the store.
        bands: One or three channels of the network to show; empty takes red, green and blue by wavelength, VV of radar, else the first.
        batch: Tiles at a time for retrieval.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        notice: Printed on the report and its figures, for example that the data are made up.
        loader: Tile side, least valid share, and how tiles are read; ``dates`` and ``min_days`` for the property of that name.
    """

    checkpoint: str
    store: str
    out: str
    num: int = 8
    seed: int = 0
    only: tuple[str, ...] = ()
    size: int | None = None
    crops: int = 32
    gallery: int = 1000
    regions: int = 6
    attributes: tuple[str, ...] = ()
    labels: str | None = None
    target: str | None = None
    join: str = "id"
    masks: str | None = None
    secret: str | None = None
    bands: tuple[str, ...] = ()
    batch: int = 32
    device: str = "auto"
    notice: str = ""
    loader: LoaderPlan = field(default_factory=LoaderPlan)

    def __post_init__(self) -> None:
        """Raises one error for all values that cannot work."""
        found = [
            UserError(name, "is empty", allowed="a path") for name in ("checkpoint", "store", "out") if not getattr(self, name).strip()
        ]
        least = {"num": 1, "crops": 2, "gallery": 2, "regions": 2, "batch": 1} | ({} if self.size is None else {"size": 1})
        found += [
            UserError(name, f"is {getattr(self, name)}", allowed=f"{low} or more")
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        strange = [name for name in self.only if name not in NAMES]
        if strange:
            found.append(UserError("only", f"names {', '.join(strange)}", allowed=", ".join(NAMES)))
        if len(self.bands) not in (0, 1, 3):
            found.append(UserError("bands", f"names {len(self.bands)} channels", allowed="one, or three for red, green and blue"))
        if (self.labels is None) != (self.target is None):
            found.append(UserError("labels", "and target go together", allowed="both, or neither"))
        try:
            check_loader(self.loader)
        except Problems as error:
            found.extend(error.problems)
        if found:
            raise Problems(found)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Properties to look at, in the order of the report."""
        return tuple(name for name in NAMES if not self.only or name in self.only)
