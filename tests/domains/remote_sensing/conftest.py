"""Tiny rasters made on the spot, and short ways to find and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain.types import Record, Select, SourceRef
from dinodomain_remote_sensing import RasterDomain

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyproj")

UTM = "EPSG:32632"
ORIGIN = (600000.0, 5300040.0)


class Lab:
    """A folder to write rasters into, and what a domain makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        name: str,
        pixels: np.ndarray,
        *,
        crs: str | None = UTM,
        gsd: float = 10.0,
        transform: Any = None,
        tags: Mapping[str, str] | None = None,
        colours: Sequence[str] = (),
        per_band: Mapping[str, Sequence[Any]] | None = None,
        **profile: Any,
    ) -> Path:
        """Writes [y, x] or [band, y, x]; ``per_band`` sets descriptions, units, scales, offsets."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cube = pixels if pixels.ndim == 3 else pixels[None]
        place = transform if transform is not None else rasterio.Affine(gsd, 0, ORIGIN[0], 0, -gsd, ORIGIN[1])
        shape = {"count": len(cube), "height": cube.shape[1], "width": cube.shape[2], "dtype": cube.dtype.name}
        with rasterio.open(path, "w", **{"driver": "GTiff", **shape, "crs": crs, "transform": place, **profile}) as dataset:
            dataset.write(cube)
            if colours:
                dataset.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
            for attribute, values in (per_band or {}).items():
                setattr(dataset, attribute, tuple(values))
            dataset.update_tags(**(tags or {}))
        return path

    def found(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> list[SourceRef | BadSource]:
        return list(domain.discover(str(source or self.folder), Select(**select)))

    def only(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> Record:
        """The one record of a source."""
        (ref,) = self.found(domain, source, **select)
        if isinstance(ref, BadSource):
            raise ref
        return domain.read(ref)

    def refusal(self, domain: RasterDomain, source: Path | None = None, **select: Any) -> str:
        """Why the one source cannot be had."""
        (ref,) = self.found(domain, source, **select)
        if isinstance(ref, BadSource):
            return str(ref)
        with pytest.raises(BadSource) as caught:
            self.everything(domain.read(ref))
        return str(caught.value)

    @staticmethod
    def everything(record: Record) -> np.ndarray:
        return record.read(tuple(slice(0, side) for side in record.shape[1:]))

    @staticmethod
    def invalid(record: Record) -> np.ndarray:
        assert record.read_valid is not None
        return record.read_valid(tuple(slice(0, side) for side in record.shape[1:]))

    @staticmethod
    def counts(*shape: int, dtype: str = "uint16", first: int = 1) -> np.ndarray:
        """Distinct numbers, none of them 0."""
        return np.arange(first, first + int(np.prod(shape))).astype(dtype).reshape(shape)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Apart from ``tmp_path``, which the conformance suite expects to be empty."""
    return Lab(tmp_path_factory.mktemp("lab") / "source")
