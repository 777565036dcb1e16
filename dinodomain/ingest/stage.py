"""One source into ``STORE.partial``: pixels first, its done record last. Runs in a worker; a kill at any instant costs that source only.

A window source is written as it will lie in the store (``tree/scenes/<id>``, ``tree/volumes/<id>``). A whole image waits in
``staged/`` until all are known and can be packed. Ids in here are stored ids: pseudonyms in a personal domain.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from dinodomain.domain import Domain
from dinodomain.errors import BadSource, MissingExtra, UserError
from dinodomain.ingest.dates import shifted
from dinodomain.ingest.partial import Partial, disk_errors
from dinodomain.ingest.scrub import scrubbed
from dinodomain.ingest.shrink import shrink
from dinodomain.lineage import Json
from dinodomain.store.cells import CellGrid, chunk_boxes, footprints, lon_lat
from dinodomain.store.format import StorePlan, source_folder, stored_id
from dinodomain.store.measure import read_slab
from dinodomain.store.tables import index_columns
from dinodomain.store.write import Written, prepare_whole, write_scene, write_volume
from dinodomain.types import CLOUD, NODATA, OUTSIDE_BODY, SATURATED, SHADOW_SNOW, USER_MASK, Record, SourceRef, Window

Made = TypeVar("Made")

DAMAGED = "check that the file is whole: open it with another program, or fetch it again"

_MOST_CELLS = 4_000_000
"""Names of ground cells that one source may touch over all its chunks, about 300 MB of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One source and the names it goes by in the store.

    Attributes:
        ref: What discovery found.
        source_id: Stored id.
        digest: Stored digest of the source.
        instance: Stored identity of its images, or empty.
        shift_days: Days by which its date is moved; 0 where ids are public.
        shift_of: Stored id of whom the date is moved for, or empty.
    """

    ref: SourceRef
    source_id: str
    digest: str
    instance: str = ""
    shift_days: int = 0
    shift_of: str = ""

    @property
    def stored(self) -> str:
        """Folder name of the source."""
        return stored_id(self.source_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task: staged, or refused for a reason."""

    task: Task
    bad: BadSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stager:
    """The work of one worker; picklable and stateless.

    Attributes:
        domain: The domain.
        partial: Where it works.
        storage: Layout of arrays.
        max_side: Longest side of a whole image, pixels.
        cells: Grid of ground units.
        signature: Digest of all that decides the stored bytes.
    """

    domain: Domain
    partial: Partial
    storage: StorePlan
    max_side: int
    cells: CellGrid
    signature: str

    def __call__(self, task: Task) -> Outcome:
        """Stages one source.

        Raises:
            UserError: The disk is full or cannot be written, or a package is missing: no source could be staged.
        """
        uri = task.ref.uris[0]
        try:
            with disk_errors(self.partial.store):
                record = shifted(guarded(opened(self.domain, task.ref), uri), task.shift_days)
                self._stage(task, record, uri)
        except BadSource as bad:
            return Outcome(task=task, bad=bad)
        return Outcome(task=task)

    def is_done(self, task: Task) -> bool:
        """Whether an earlier run staged this very source in the same way."""
        done = self.partial.read_done(task.stored)
        wanted = (task.source_id, task.digest, self.signature, task.shift_of)
        if done is None or tuple(done.get(name) for name in ("source_id", "digest", "signature", "shift_of")) != wanted:
            return False
        layout, folder = done["columns"]["layout"], source_folder(task.source_id, self.domain.ndim)
        return (self.partial.tree / folder).is_dir() if layout == "window" else self.partial.staged(task.stored).is_file()

    def content_of(self, task: Task) -> str:
        """Content hash of a staged source."""
        done = self.partial.read_done(task.stored)
        assert done is not None, "only staged sources are compared"
        return str(done["columns"]["content_hash"])

    def _stage(self, task: Task, record: Record, uri: str) -> None:
        if record.layout == "window":
            self._window(task, record, uri)
        else:
            small = _checked(lambda: shrunk(record, self.max_side), uri)
            whole = _checked(lambda: prepare_whole(small), uri)
            _refuse_empty(whole.written, small, uri)
            self.partial.keep_image(task.stored, self._done(task, small, whole.written, uri), whole.pixels, whole.bits)

    def _window(self, task: Task, record: Record, uri: str) -> None:
        place = self.partial.workplace(task.stored)
        write = write_scene if self.domain.ndim == 2 else write_volume
        try:
            written = _checked(lambda: write(place, record, self.storage), uri)
            _refuse_empty(written, record, uri)
            done = self._done(task, record, written, uri)
        except BadSource:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self.partial.keep_folder(place, source_folder(task.source_id, self.domain.ndim), task.stored, done)

    def _done(self, task: Task, record: Record, written: Written, uri: str) -> dict[str, Any]:
        """All that finalising needs to know of a staged source."""
        return {
            "source_id": task.source_id,
            "digest": task.digest,
            "signature": self.signature,
            "shift_of": task.shift_of,
            "columns": index_columns(record, written, f"{source_folder(task.source_id, self.domain.ndim)}/{written.array}"),
            "place": _place(record, written, self.cells, uri),
            "valid_fraction": written.valid_fraction,
            "files": written.digest,
            "warnings": list(self._warnings(task, record, uri)),
        }

    def _warnings(self, task: Task, record: Record, uri: str) -> Iterator[str]:
        """In a personal domain without anything that could name a person, as in reasons: this lies in files, too."""
        names = (PurePosixPath(uri).name, *task.ref.keys.values(), task.ref.source_id)
        yield from (scrubbed(text, names) if self.domain.personal else text for text in record.warnings)


def opened(domain: Domain, ref: SourceRef) -> Record:
    """``domain.read`` with whatever a damaged file makes a decoder raise turned into a BadSource."""
    try:
        return domain.read(ref)
    except (BadSource, MissingExtra):
        raise
    except UserError as error:
        raise BadSource(ref.uris[0], error.problem, error.remedy or error.allowed or DAMAGED) from error
    except Exception as error:
        if _disk_is_full(error):
            raise
        raise BadSource(ref.uris[0], f"cannot be read: {_words(error)}", DAMAGED) from error


def guarded(record: Record, uri: str) -> Record:
    """The record with readers that raise BadSource only, so that an error of the disk written to is never taken for one of the source."""
    valid = None if record.read_valid is None else _guard(record.read_valid, uri)
    return replace(record, read=_guard(record.read, uri), read_valid=valid)


def _guard(read: Callable[[Window], np.ndarray], uri: str) -> Callable[[Window], np.ndarray]:
    def safely(window: Window) -> np.ndarray:
        try:
            return read(window)
        except (BadSource, MissingExtra):
            raise
        except Exception as error:
            if _disk_is_full(error):
                raise
            raise BadSource(uri, f"its pixels cannot be read: {_words(error)}", DAMAGED) from error

    return safely


def _disk_is_full(error: Exception) -> bool:
    """A reader may unpack or fetch into the scratch folder; that this finds no room is no fault of the source."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _checked(write: Callable[[], Made], uri: str) -> Made:
    """What the store refuses about one record is that source's problem; what the disk refuses is not."""
    try:
        return write()
    except (BadSource, MissingExtra, OSError):
        raise
    except UserError as error:
        remedy = error.remedy or "this is a fault of the domain's reader"
        raise BadSource(uri, error.problem, f"allowed: {error.allowed}" if error.allowed else remedy) from error
    except Exception as error:
        raise BadSource(uri, f"cannot be stored: {_words(error)}", DAMAGED) from error


def shrunk(record: Record, max_side: int) -> Record:
    """The record itself, or one of an image with no side longer than ``max_side``; its validity then lies in the field alone."""
    if max(record.shape[1:]) <= max_side:
        return record
    if len(record.shape) != 3:
        raise UserError("record", f"a whole volume of {record.shape[1:]}", allowed=f"sides up to {max_side}")
    slab = read_slab(record, (slice(0, record.shape[1]), slice(0, record.shape[2])))
    small = shrink(slab.pixels, slab.bits, max_side)
    stages = (
        *record.stages,
        *((f"{slab.mended} pixels that were not finite flagged as nodata",) if slab.mended else ()),
        small.stage or "",
    )
    return replace(
        record,
        shape=small.pixels.shape,
        spacing=tuple(step * factor for step, factor in zip(record.spacing, small.factor)),
        affine=_scaled(record.affine, small.factor),
        nodata=(None,) * len(record.channels),
        stages=stages,
        read=lambda window: small.pixels,
        read_valid=lambda window: small.bits,
    )


def _scaled(affine: tuple[float, ...] | None, factor: tuple[float, float]) -> tuple[float, ...] | None:
    """A 3x3 affine of pixel corners after pixels grew by ``factor`` (rows, columns)."""
    if affine is None or len(affine) != 9:
        return None
    return tuple((np.reshape(affine, (3, 3)) @ np.diag([factor[1], factor[0], 1.0])).ravel().tolist())


_LOOK = 4_000_000
"""Pixels looked at in one go where a source is refused."""

_CAUSES = {
    NODATA: "NaN or nodata", CLOUD: "cloud", SHADOW_SNOW: "shadow or snow", OUTSIDE_BODY: "outside the body",
    USER_MASK: "outside ingest.aoi", SATURATED: "saturated",
}  # fmt: skip


def _refuse_empty(written: Written, record: Record, uri: str) -> None:
    """A source without a valid pixel is refused with the reasons; only such a one is read a second time, to learn them."""
    if float(written.valid_fraction.max()) > 0:
        return
    bits = NODATA if record.read_valid is None else _bits_of(record)
    causes = ", ".join(cause for bit, cause in _CAUSES.items() if bits & bit)
    raise BadSource(uri, f"holds no valid pixel: everywhere {causes}", "leave it out with ingest.exclude")


def _bits_of(record: Record) -> int:
    """All bits that any pixel carries."""
    assert record.read_valid is not None
    first, *others = record.shape[1:]
    step, found = max(1, _LOOK // int(np.prod(others))), 0
    for start in range(0, first, step):
        window = (slice(start, min(start + step, first)), *(slice(0, side) for side in others))
        found |= int(np.bitwise_or.reduce(record.read_valid(window), axis=None))
    return found or NODATA  # pixels that are no finite numbers are flagged later than here


def _place(record: Record, written: Written, cells: CellGrid, uri: str) -> Mapping[str, Json] | None:
    """Longitude, latitude and, per chunk, its ground cell and the cells it touches; None for sources without a place."""
    if record.crs is None or record.affine is None or len(record.affine) != 9:
        return None
    try:
        boxes = footprints(record.crs, record.affine, chunk_boxes(record.shape[1:], written.chunk), uri)
        lon, lat = lon_lat(record.crs, record.affine, record.shape[1:])
    except (UserError, MissingExtra):
        raise
    except Exception as error:  # pyproj's own errors, without importing it here
        raise BadSource(uri, f"its coordinate reference system cannot be used: {_words(error)}", "check it with gdalinfo") from error
    count = cells.count(boxes)
    if count > _MOST_CELLS:
        reason = f"its chunks touch {count} ground cells of {cells.cell_m:g} m, more than {_MOST_CELLS}"
        raise BadSource(uri, reason, "set ingest.cell to about the side of a chunk, or larger")
    finite = math.isfinite(lon) and math.isfinite(lat)
    return {"lon": lon if finite else None, "lat": lat if finite else None, "units": cells.units(boxes), "touched": cells.touched(boxes)}


def source_columns(done: Mapping[str, Any]) -> dict[str, Json]:
    """The index columns of a done record; JSON has no NaN, so null inside a list of numbers is NaN again."""
    columns = dict(done["columns"])
    for name in ("spacing", "nodata", "low", "high", "mean", "std"):
        columns[name] = [math.nan if value is None else value for value in columns[name]]
    return columns
