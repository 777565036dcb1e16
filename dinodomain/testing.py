"""For authors of domains and for tests: synthetic domains, tiny stores, and the conformance suite ``DomainTests``.

``SyntheticImages`` (2-D) and ``SyntheticVolumes`` (3-D) read ``.npy`` and ``.npz`` files, or make patterns from an id alone
(source ``generate:COUNT``): stripes whose direction tells the class, a brightness that tells the unit, and noise. Equal ids give
equal pixels on any machine. Pixels are ``(C, Y, X)`` or ``(C, Z, Y, X)``; a ``.npz`` may also hold ``valid``, ``affine``,
``spacing``, ``crs``, ``unit`` and ``acquired``. Not covered: whether features learned from a domain are any good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinodomain.domain import Channel, Domain, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.types import NODATA, Layout, Record, Select, SourceRef, TileInfo

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("flat", "steep", "rising", "falling")
"""Class of a generated pattern, by its number modulo 4."""

_GENERATE = "generate:"
_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Synthetic:
    """What both synthetic domains do; the two public ones only fix the number of axes."""

    name: str
    ndim: int
    size: tuple[int, ...]
    num_channels: int
    dtype: str
    layout: Layout
    personal: bool
    per_unit: int
    nodata: bool
    epsg: int | None

    def channels(self) -> dict[str, Channel]:
        low, high = _range(self.dtype)
        return {f"c{index}": Channel(unit="1", low=low, high=high, mean=0.45, std=0.2) for index in range(self.num_channels)}

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        if source.startswith(_GENERATE):
            yield from (self._generated(index, select) for index in range(_count(source)))
            return
        root = Path(source)
        paths = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES and _taken(path.relative_to(root).as_posix(), select))
        yield from (self._file(path, root, select) for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()))

    def _generated(self, index: int, select: Select) -> SourceRef:
        name, unit = f"pattern{index:05d}", f"unit{index // self.per_unit:04d}"
        keys = {"path": f"{unit}/{name}", "name": name, "stem": name, "folder": unit, "PatientID": unit}
        digest = hashlib.sha256(f"{self!r}:{index}".encode()).hexdigest()
        return SourceRef(source_id=keys["path"], uris=(f"{_GENERATE}{index}",), keys=keys, unit=unit, digest=digest, select=select)

    def _file(self, path: Path, root: Path, select: Select) -> SourceRef | BadSource:
        relative = path.relative_to(root)
        head = path.read_bytes()[:1024]
        if not head.startswith((b"\x93NUMPY", b"PK")):
            return BadSource(str(path), "is not a numpy file", "write it with numpy.save or numpy.savez")
        keys = {"path": relative.as_posix(), "name": path.name, "stem": path.stem, "folder": relative.parent.name}
        digest = hashlib.sha256(f"{relative.as_posix()}:{path.stat().st_size}:".encode() + head).hexdigest()
        unit = relative.parent.name or None
        return SourceRef(source_id=keys["path"], uris=(str(path),), keys=keys, unit=unit, digest=digest, select=select)

    def read(self, ref: SourceRef) -> Record:
        uri = ref.uris[0]
        content = self._pattern(int(uri.removeprefix(_GENERATE))) if uri.startswith(_GENERATE) else _load(uri)
        pixels = content["pixels"]
        if pixels.ndim != self.ndim + 1:
            raise BadSource(uri, f"has {pixels.ndim} axes", f"write (C, {'Y, X' if self.ndim == 2 else 'Z, Y, X'})")
        return self._record(_chosen(pixels, ref), content, ref)

    def _record(self, pixels: np.ndarray, content: Mapping[str, Any], ref: SourceRef) -> Record:
        names, valid = ref.select.bands or tuple(f"c{index}" for index in range(len(pixels))), content.get("valid")
        return Record(
            channels=names,
            shape=pixels.shape,
            dtype=str(pixels.dtype),
            spacing=tuple(float(step) for step in content.get("spacing", (1.0,) * self.ndim)),
            affine=_numbers(content.get("affine")),
            crs=None if content.get("crs") is None else str(content["crs"]),
            scale=(1.0,) * len(pixels),
            offset=(0.0,) * len(pixels),
            nodata=(0.0 if valid is not None else None,) * len(pixels),
            layout=self.layout,
            read=lambda window: pixels[(slice(None), *window)],
            read_valid=None if valid is None else lambda window: valid[window],
            acquired=None if content.get("acquired") is None else str(content["acquired"]),
            fields={"instrument": "synthetic"},
        )

    def _pattern(self, index: int) -> dict[str, Any]:
        """Stripes of the class, brightness of the unit, noise of the id; the same on every machine."""
        unit, kind = index // self.per_unit, index % len(CLASSES)
        noise = np.random.Generator(np.random.PCG64(index)).integers(0, 48, (self.num_channels, *self.size))
        grid = np.meshgrid(*(np.arange(extent) for extent in self.size), indexing="ij")
        y, x = grid[-2], grid[-1]
        phase = (y, x, x + y, x - y)[kind] + (grid[0] if self.ndim == 3 else 0) + 3 * index
        stripes = 96 * ((phase // 4) % 2)
        offsets = np.arange(self.num_channels).reshape(-1, *(1,) * self.ndim) * 8
        levels = 16 + (unit * 37) % 64 + stripes[None] + offsets % 32 + noise
        return self._placed(levels, index)

    def _placed(self, levels: np.ndarray, index: int) -> dict[str, Any]:
        low, high = _range(self.dtype)
        pixels = (low + levels * (high - low) / 255).astype(self.dtype)
        content: dict[str, Any] = {"pixels": pixels, "spacing": tuple(1.0 + axis for axis in range(self.ndim))[::-1]}
        if self.nodata and index % 3 == 0:
            valid = np.zeros(self.size, np.uint8)
            valid[tuple(slice(0, extent // 4) for extent in self.size)] = NODATA
            pixels[:, valid != 0] = 0
            content["valid"] = valid
        if self.ndim == 3:
            content["affine"] = np.diag([*content["spacing"][::-1], 1.0])
        elif self.epsg is not None:
            content |= _ground(self.epsg, index, self.size)
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticImages:
    """A 2-D domain of made-up images.

    Attributes:
        size: Rows and columns of a generated pattern.
        num_channels: Channels of a generated pattern, named c0, c1 ...
        dtype: Stored dtype of a generated pattern.
        layout: ``whole`` images or ``window`` scenes.
        personal: Whether ids count as identifying.
        per_unit: Generated patterns per unit.
        nodata: Whether every third pattern has a corner without data.
        epsg: Code of a projected CRS that puts generated scenes side by side on the ground, 10 m a pixel; None leaves them unplaced.
    """

    size: tuple[int, int] = (48, 48)
    num_channels: int = 3
    dtype: str = "uint8"
    layout: Layout = "whole"
    personal: bool = False
    per_unit: int = 2
    nodata: bool = False
    epsg: int | None = None
    name: str = "synthetic"
    ndim: int = 2
    extra: str = "dev"
    channels: Mapping[str, Channel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self._base().channels())

    def _base(self) -> _Synthetic:
        return _Synthetic(name=self.name, ndim=2, size=self.size, num_channels=self.num_channels, dtype=self.dtype, layout=self.layout,
                          personal=self.personal, per_unit=self.per_unit, nodata=self.nodata, epsg=self.epsg)  # fmt: skip

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Files below ``source``, or ``generate:COUNT``."""
        return self._base().discover(source, select)

    def read(self, ref: SourceRef) -> Record:
        """One array."""
        return self._base().read(ref)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Linear in the stored value."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """Mirror images keep their class here; stripes do not survive quarter turns."""
        return ViewPolicy(axes=("NS", "EW"), flips={"NS": 0.5}, brightness=0.1, contrast=0.1)

    def probes(self) -> Sequence[ProbeSpec]:
        """The class of the stripes."""
        return (ProbeSpec(name="stripes", task="classify", target="label", metric="accuracy", unit="unit"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticVolumes:
    """A 3-D domain of made-up volumes; attributes as in ``SyntheticImages``, ``size`` is (Z, Y, X)."""

    size: tuple[int, int, int] = (40, 48, 56)
    num_channels: int = 1
    dtype: str = "int16"
    personal: bool = False
    per_unit: int = 2
    nodata: bool = False
    name: str = "synthetic_volumes"
    ndim: int = 3
    layout: Layout = "window"
    extra: str = "dev"
    channels: Mapping[str, Channel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self._base().channels())

    def _base(self) -> _Synthetic:
        return _Synthetic(name=self.name, ndim=3, size=self.size, num_channels=self.num_channels, dtype=self.dtype, layout=self.layout,
                          personal=self.personal, per_unit=self.per_unit, nodata=self.nodata, epsg=None)  # fmt: skip

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Files below ``source``, or ``generate:COUNT``."""
        return self._base().discover(source, select)

    def read(self, ref: SourceRef) -> Record:
        """One array."""
        return self._base().read(ref)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Linear in the stored value."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """No flips at all, as in a medical domain."""
        return ViewPolicy(axes=("IS", "AP", "LR"), brightness=0.1, contrast=0.1)

    def probes(self) -> Sequence[ProbeSpec]:
        """The class of the stripes."""
        return (ProbeSpec(name="stripes", task="classify", target="label", metric="accuracy", unit="unit"),)


def tiny_store(path: str | Path, *, domain: Domain | None = None, num: int = 12, **plan: Any) -> Path:
    """Ingests generated patterns into a small store.

    Args:
        path: Folder of the store to make.
        domain: ``SyntheticImages()`` unless given; ``SyntheticVolumes()`` for three axes.
        num: Number of sources.
        **plan: Further keys of ``IngestPlan``, for example ``audit_holdout=0.2``.

    Returns:
        The folder of the store.
    """
    chosen: Domain = SyntheticImages() if domain is None else domain
    settings: dict[str, Any] = {"workers": 0, "source": f"{_GENERATE}{num}", **plan}
    ingest(IngestPlan(domain=chosen.name, store=str(path), **settings), domain=chosen, progress=lambda done, total: None)
    return Path(path)


def tiny_labels(path: str | Path, num: int = 12, *, per_unit: int = 2) -> Path:
    """Writes a CSV for the patterns of a tiny store: columns id, label (class of the stripes), level (a number), unit."""
    rows = ["id,label,level,unit"]
    for index in range(num):
        unit = index // per_unit
        rows.append(f"pattern{index:05d},{CLASSES[index % len(CLASSES)]},{(unit * 37) % 64},unit{unit:04d}")
    Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Path(path)


def _range(dtype: str) -> tuple[float, float]:
    ranges = {"uint8": (0.0, 255.0), "uint16": (0.0, 10000.0), "int16": (-1000.0, 1000.0), "float32": (0.0, 1.0)}
    if dtype not in ranges:
        raise UserError("dtype", f"{dtype!r} has no synthetic pattern", allowed=", ".join(ranges))
    return ranges[dtype]


def _count(source: str) -> int:
    text = source.removeprefix(_GENERATE)
    if not text.isdigit():
        raise UserError("source", f"{source!r} names no number of patterns", allowed="generate:COUNT or a folder")
    return int(text)


def _taken(relative: str, select: Select) -> bool:
    wanted = not select.include or any(fnmatch(relative, glob) for glob in select.include)
    return wanted and not any(fnmatch(relative, glob) for glob in select.exclude)


def _load(uri: str) -> dict[str, Any]:
    try:
        loaded = np.load(uri, allow_pickle=False)
        return {"pixels": loaded} if isinstance(loaded, np.ndarray) else {key: _plain(loaded[key]) for key in loaded.files}
    except (ValueError, OSError, EOFError) as error:
        raise BadSource(uri, f"cannot be read: {error}", "write it again with numpy.save or numpy.savez") from None


def _plain(value: np.ndarray) -> Any:
    return value if value.ndim else value.item()


def _chosen(pixels: np.ndarray, ref: SourceRef) -> np.ndarray:
    """The bands that were asked for, in that order."""
    if not ref.select.bands:
        return pixels
    known = {f"c{index}": index for index in range(len(pixels))}
    missing = [band for band in ref.select.bands if band not in known]
    if missing:
        raise BadSource(ref.uris[0], f"has no band {', '.join(missing)}", f"choose among {', '.join(known)}")
    return pixels[[known[band] for band in ref.select.bands]]


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in np.asarray(values).ravel())


def _ground(epsg: int, index: int, size: tuple[int, ...]) -> dict[str, Any]:
    """Scenes in a row from west to east, 10 m a pixel, each beginning where the last one ends."""
    import pyproj

    crs = pyproj.CRS.from_epsg(epsg).to_wkt()
    affine = (10.0, 0.0, 500000.0 + 10.0 * size[1] * index, 0.0, -10.0, 5000000.0, 0.0, 0.0, 1.0)
    return {"crs": crs, "affine": np.array(affine), "spacing": (10.0, 10.0), "acquired": f"2020-01-{1 + index % 28:02d}"}
