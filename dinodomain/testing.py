"""For authors of domains and for tests: synthetic domains, tiny stores, and the conformance suite ``DomainTests``.

``SyntheticImages`` (2-D) and ``SyntheticVolumes`` (3-D) read ``.npy`` and ``.npz`` files, or make patterns from an id alone
(source ``generate:COUNT``): stripes whose direction tells the class, a brightness that tells the unit, and noise. Equal ids give
equal pixels on any machine. Pixels are ``(C, Y, X)`` or ``(C, Z, Y, X)``; a ``.npz`` may also hold ``valid``, ``affine``,
``spacing``, ``crs``, ``unit`` and ``acquired``. Not covered: whether features learned from a domain are any good.
"""

# ruff: noqa: D102, PT018 (the names of the conformance tests are their docstrings; a promise of several parts is one assert)

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinodomain.domain import Channel, DisplayWindow, Domain, Jitter, ProbeSpec, ViewPolicy, find_domain, linear_to_unit
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.lineage import canonical, content_hash
from dinodomain.store.format import DTYPES
from dinodomain.store.read import Store, open_store
from dinodomain.types import NODATA, FactValue, Layout, Record, Select, SourceRef, TileInfo, Window

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

    def channels(self, windows: Mapping[str, DisplayWindow]) -> dict[str, Channel]:
        low, high = _range(self.dtype)
        return {
            f"c{index}": Channel(unit="1", low=low, high=high, mean=0.45, std=0.2, windows=windows) for index in range(self.num_channels)
        }

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
        size = self.num_channels * math.prod(self.size) * np.dtype(self.dtype).itemsize
        facts: dict[str, FactValue] = {"bytes_in": size, "bytes_out": size, "sensor": "synthetic"}
        return SourceRef(source_id=keys["path"], uris=(f"{_GENERATE}{index}",), keys=keys, unit=unit, digest=digest, select=select,
                         facts=facts)  # fmt: skip

    def _file(self, path: Path, root: Path, select: Select) -> SourceRef | BadSource:
        relative = path.relative_to(root)
        head = path.read_bytes()[:1024]
        if not head.startswith((b"\x93NUMPY", b"PK")):
            return BadSource(str(path), "is not a numpy file", "write it with numpy.save or numpy.savez")
        keys = {"path": relative.as_posix(), "name": path.name, "stem": path.stem, "folder": relative.parent.name}
        digest = hashlib.sha256(f"{relative.as_posix()}:{path.stat().st_size}:".encode() + head).hexdigest()
        unit = relative.parent.name or None
        facts = {"bytes_in": path.stat().st_size}
        return SourceRef(source_id=keys["path"], uris=(str(path),), keys=keys, unit=unit, digest=digest, select=select, facts=facts)

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


_MILD = Jitter(brightness=(-0.1, 0.1), contrast=(0.9, 1.1))


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
        windows: Display windows that every channel has.
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
    default_select: str = ""
    windows: Mapping[str, DisplayWindow] = field(default_factory=dict)
    channels: Mapping[str, Channel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self._base().channels(self.windows))

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
        return ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5}, jitter=_MILD)

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
    default_select: str = ""
    windows: Mapping[str, DisplayWindow] = field(default_factory=dict)
    channels: Mapping[str, Channel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", self._base().channels(self.windows))

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
        return ViewPolicy(axes=("IS", "AP", "LR"), jitter=_MILD)

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


class DomainTests:
    """The conformance suite of a domain: subclass it in a test file, say what to test, and pytest runs the rest.

    ```python
    class TestMyDomain(DomainTests):
        domain = MyDomain()
        source = "tests/data"  # or a fixture that overrides ``source_folder``
        expected = 3  # readable sources below it
        entry_point = "mydomain"  # None for a domain that is not installed
    ```

    Attributes:
        domain: The domain.
        source: What it discovers.
        expected: Number of readable sources there; None for "at least one".
        entry_point: Name it is installed under, or None.
        select: Which files and bands are taken.
    """

    domain: Domain
    source: str = ""
    expected: int | None = None
    entry_point: str | None = None
    select: Select = Select()

    def source_folder(self) -> str:
        """What is discovered; override it where the files are made by the test."""
        return self.source

    def refs(self) -> list[SourceRef]:
        """All readable sources."""
        return [item for item in self.domain.discover(self.source_folder(), self.select) if isinstance(item, SourceRef)]

    def test_it_is_a_domain(self) -> None:
        assert isinstance(self.domain, Domain), "a member of dinodomain.domain.Domain is missing"
        assert self.domain.ndim in (2, 3)
        assert self.domain.layout in ("window", "whole")

    def test_its_name_is_that_of_its_entry_point(self) -> None:
        assert self.domain.name.isidentifier(), "a name is typed on the command line"
        if self.entry_point is not None:
            assert self.domain.name == self.entry_point
            assert find_domain(self.entry_point).name == self.entry_point

    def test_its_channels_have_a_unit_and_a_finite_range(self) -> None:
        assert self.domain.channels, "a domain names at least one channel"
        for name, channel in self.domain.channels.items():
            assert channel.unit, f"channel {name} has no unit; use '1' where it is arbitrary"
            assert math.isfinite(channel.low) and math.isfinite(channel.high) and channel.low < channel.high, name
            assert 0 <= channel.mean <= 1 and channel.std > 0, f"channel {name}: mean and std are those of the unit range"
            assert channel.wavelength_nm is None or channel.wavelength_nm > 0, name

    def test_it_pickles(self) -> None:
        copy = pickle.loads(pickle.dumps(self.domain))
        assert copy.name == self.domain.name
        assert dict(copy.channels) == dict(self.domain.channels)

    def test_discovery_is_sorted_unique_and_picklable(self) -> None:
        refs = self.refs()
        ids = [ref.source_id for ref in refs]
        assert ids == sorted(ids), "discover yields sources sorted by source_id"
        assert len(set(ids)) == len(ids), "two sources have one id"
        assert len(refs) == self.expected if self.expected is not None else refs, f"{len(refs)} sources found"
        assert pickle.loads(pickle.dumps(refs)) == refs

    def test_every_source_offers_the_keys_a_csv_may_join_on(self) -> None:
        for ref in self.refs():
            assert {"path", "name", "stem", "folder"} <= set(ref.keys), ref.source_id
            assert ref.uris and list(ref.uris) == sorted(ref.uris), ref.source_id
            assert ref.digest, ref.source_id

    def test_discovery_twice_gives_the_same_sources(self) -> None:
        assert self.refs() == self.refs()

    def test_a_folder_without_sources_gives_none(self, tmp_path: Path) -> None:
        assert not list(self.domain.discover(str(tmp_path), self.select))

    def test_records_are_consistent(self) -> None:
        for ref in self.refs():
            check_record(self.domain.read(ref), self.domain, ref)

    def test_reading_twice_gives_equal_pixels(self) -> None:
        for ref in self.refs()[:3]:
            first, second = self.domain.read(ref), self.domain.read(ref)
            assert _plain_fields(first) == _plain_fields(second)
            np.testing.assert_array_equal(first.read(_whole(first)), second.read(_whole(second)))

    def test_a_window_is_a_part_of_the_whole(self) -> None:
        for ref in self.refs()[:3]:
            record = self.domain.read(ref)
            window = tuple(slice(extent // 3, max(extent // 3 + 1, 2 * extent // 3)) for extent in record.shape[1:])
            np.testing.assert_array_equal(record.read(window), record.read(_whole(record))[(slice(None), *window)])
            if record.read_valid is not None:
                np.testing.assert_array_equal(record.read_valid(window), record.read_valid(_whole(record))[window])

    def test_no_field_names_a_person(self) -> None:
        """Fields lie in the store in the clear."""
        for ref in self.refs() if self.domain.personal else ():
            names = {ref.source_id, ref.unit, *(ref.keys.get(kind) for kind in ("path", "name", "stem", "PatientID"))} - {None, ""}
            leaks = {name: value for name, value in self.domain.read(ref).fields.items() if value in names}
            assert not leaks, f"{ref.source_id}: {leaks}"

    def test_to_float_gives_finite_numbers_in_the_unit_range(self) -> None:
        import torch

        for ref in self.refs()[:3]:
            record = self.domain.read(ref)
            pixels = np.nan_to_num(np.ascontiguousarray(record.read(_whole(record))), posinf=0, neginf=0)  # as the store holds them
            unit = self.domain.to_float(torch.from_numpy(pixels)[None], _tile_info(record, self.domain, pixels))
            assert unit.dtype == torch.float32
            assert unit.shape == (1, *pixels.shape)
            assert bool(torch.isfinite(unit).all())
            assert float(unit.min()) >= 0
            assert float(unit.max()) <= 1

    def test_its_policy_names_the_array_axes_and_fits_the_units_of_its_channels(self) -> None:
        policy = self.domain.view_policy()
        assert len(policy.axes) == self.domain.ndim
        assert pickle.loads(pickle.dumps(policy)) == policy
        check_policy(policy, self.domain.channels)

    def test_its_display_windows_show_a_part_of_the_range(self) -> None:
        for name, channel in self.domain.channels.items():
            for window in channel.windows.values():
                assert window.width > 0 and 0 <= window.mean <= 1 and window.std > 0, name
                assert channel.low < window.centre < channel.high, name

    def test_its_probes_have_a_task_and_a_target(self) -> None:
        for probe in self.domain.probes():
            assert probe.task in ("classify", "regress", "segment")
            assert probe.target and probe.metric and probe.unit and probe.name

    def test_it_is_ingested_and_read_back_exactly(self, tmp_path: Path) -> None:
        select, name = self.select, self.domain.name
        plan = IngestPlan(domain=name, source=self.source_folder(), store=str(tmp_path / "store"), workers=0,
                          include=select.include, exclude=select.exclude, bands=select.bands, grid=select.grid, sar=select.sar)  # fmt: skip
        ingest(plan, domain=self.domain, progress=lambda done, total: None)
        store = open_store(tmp_path / "store")
        assert len(store) == len(self.refs())
        assert store.domain == name
        for row in range(len(store)):
            assert content_hash(read_source(store, row), tuple(store.row(row)["channels"])) == store.row(row)["content_hash"]
        records = [self.domain.read(ref) for ref in self.refs()]
        exact = [record for record in records if max(record.shape[1:]) <= plan.max_side or record.layout == "window"]
        hashes = {content_hash(np.nan_to_num(record.read(_whole(record)), posinf=0, neginf=0), record.channels) for record in exact}
        assert hashes <= set(store.column("content_hash"))


def read_source(store: Store, row: int) -> np.ndarray:
    """All pixels of one source of a store, (C, (Z,) Y, X) without padding."""
    facts = store.row(row)
    pixels = np.zeros(facts["shape"], facts["dtype"])
    store.read_box(row, (0,) * (len(facts["shape"]) - 1), pixels)
    return pixels


def check_record(record: Record, domain: Domain, ref: SourceRef) -> None:
    """Asserts that a record keeps its promises: shapes, channels, units, finite numbers, validity where pixels are not finite."""
    place, count = ref.source_id, len(record.channels)
    assert record.layout in ("window", "whole"), place
    assert len(record.shape) == domain.ndim + 1 and record.shape[0] == count and min(record.shape) > 0, place
    assert record.dtype in DTYPES, f"{place}: {record.dtype} cannot be stored"
    assert len(set(record.channels)) == count, f"{place}: a channel twice"
    assert set(record.channels) <= set(domain.channels), f"{place}: channels that the domain does not know"
    assert len(record.scale) == len(record.offset) == len(record.nodata) == count, place
    assert all(math.isfinite(value) for value in (*record.scale, *record.offset)) and all(record.scale), place
    assert len(record.spacing) == domain.ndim and all(math.isnan(step) or step > 0 for step in record.spacing), place
    assert record.affine is None or len(record.affine) == (9 if domain.ndim == 2 else 16), place
    pixels = record.read(_whole(record))
    assert pixels.shape == record.shape and pixels.dtype.name == record.dtype, place
    bits = None if record.read_valid is None else record.read_valid(_whole(record))
    assert bits is None or (bits.shape == record.shape[1:] and bits.dtype == np.uint8), place
    finite = np.isfinite(pixels).all(axis=0) | (0 if bits is None else bits != 0) | any(value is not None for value in record.nodata)
    assert finite.all(), f"{place}: pixels that are not finite, and neither nodata nor flagged"


def check_policy(policy: ViewPolicy, channels: Mapping[str, Channel]) -> None:
    """Asserts that a policy keeps the meaning of its channels: symmetries that the scene has, operations on the right unit.

    Args:
        policy: A domain's.
        channels: The domain's declared channels.
    """
    assert all(0 <= probability <= 1 for probability in policy.flip.values())
    assert not policy.flip.get("LR"), "a flip of LR exchanges the sides of a body"
    turns = {axis for axis in policy.axes[-2:] if policy.flip.get(axis)}
    assert not policy.quarter_turns or turns == set(policy.axes[-2:]), "quarter turns without both flips make no symmetry"
    assert policy.thickness is None or len(policy.axes) == 3, "thickness needs slices"
    _check_wavelengths(policy, channels)
    _check_units(policy, {channel.unit for channel in channels.values()})


def _check_wavelengths(policy: ViewPolicy, channels: Mapping[str, Channel]) -> None:
    for name, nm in policy.wavelengths_nm.items():
        assert name in channels, f"wavelengths_nm names {name}, which is no channel"
        assert channels[name].unit == "reflectance", f"haze and shadow act on reflectance, and {name} is in {channels[name].unit}"
        assert channels[name].wavelength_nm == nm, f"{name} has another wavelength than its channel"
    needed = policy.haze is not None or policy.shadow is not None
    assert not needed or policy.wavelengths_nm, "haze and shadow do nothing without wavelengths_nm"


def _check_units(policy: ViewPolicy, units: set[str]) -> None:
    shown = ", ".join(sorted(units))
    if policy.speckle is not None:
        decibels = policy.speckle.scale == "db"
        assert units == {"dB"} if decibels else "dB" not in units, f"speckle of {policy.speckle.scale} on channels in {shown}; dB is db"
    for name in ("gamma", "jitter"):
        bent = getattr(policy, name) is not None and units & {"HU", "dB"}
        assert not bent, f"{name} breaks the meaning of {shown}; gain and window state how far they go"
    for name in ("bias_field", "rician"):
        assert getattr(policy, name) is None or units == {"1"}, f"{name} is for magnitudes of no fixed unit, not for {shown}"
    assert policy.value_noise is None or len(units) == 1, f"one value_noise for channels in {shown}"
    assert policy.gain is None or policy.gain.offset == (0.0, 0.0) or len(units) == 1, f"one offset of gain for channels in {shown}"
    assert policy.window is None or (len(units) == 1 and not units & {"1", "DN"}), f"a window needs one calibrated unit, not {shown}"


def _whole(record: Record) -> Window:
    return tuple(slice(0, extent) for extent in record.shape[1:])


def _plain_fields(record: Record) -> str:
    return canonical({item.name: getattr(record, item.name) for item in fields(record) if item.name not in ("read", "read_valid")})


def _tile_info(record: Record, domain: Domain, pixels: np.ndarray) -> TileInfo:
    """As the loader makes it, with the declared ranges; a batch of one."""
    import torch

    def row(values: Sequence[float]) -> Tensor:
        return torch.tensor([list(values)], dtype=torch.float32)

    known = [domain.channels[name] for name in record.channels]
    box = torch.tensor([[[0, extent] for extent in pixels.shape[1:]]], dtype=torch.int64)
    return TileInfo(
        scale=row(record.scale),
        offset=row(record.offset),
        nodata=row([math.nan if value is None else value for value in record.nodata]),
        low=row([channel.low for channel in known]),
        high=row([channel.high for channel in known]),
        spacing=row(record.spacing),
        valid_box=box,
    )
