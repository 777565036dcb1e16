"""NRRD and MetaImage volumes (``.nrrd``, ``.mha``) through SimpleITK. Geometry comes in LPS mm and leaves in RAS mm.

Detached headers (``.nhdr``, ``.mhd``) are read if they name one data file, that lies beside them. An axis of kind ``list`` or ``time``
(wherever it lies), or a fourth axis, holds frames: one volume each, for those who asked for that. Does not read vectors, colour,
tensors or segmentations.
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_medical.geometry import LPS_TO_RAS, Oriented, to_canonical
from dinodomain_medical.nifti import frames_refusal
from dinodomain_medical.opened import VolumeFile
from dinodomain_medical.values import storable

SUFFIXES = (".nrrd", ".mha")
DETACHED = (".nhdr", ".mhd")

_HEADER_BYTES = 1 << 16
_DATA_FILE = re.compile(r"^\s*(?:data ?file\s*:|ElementDataFile\s*=)\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_FRAME_KINDS = frozenset({"list", "time", ""})
_ANATOMICAL = "left-posterior-superior"  # ITK turns the other anatomical spaces into this one


def is_itk(path: Path) -> bool:
    """Whether the name says NRRD or MetaImage."""
    return path.suffix.lower() in SUFFIXES + DETACHED


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, and the data file of a detached header.

    Raises:
        BadSource: The data file is missing, is several, or does not lie beside its header.
    """
    if path.suffix.lower() not in DETACHED:
        return (path,)
    with path.open("rb") as handle:
        found = _DATA_FILE.findall(handle.read(_HEADER_BYTES).decode("latin-1"))
    name = found[0] if found else ""
    plain = bool(name) and name == PureWindowsPath(name).name and not re.search(r"[%\s]|^LIST$|^LOCAL$|^\.", name)
    if not plain:
        raise BadSource(
            str(path),
            "a header whose voxels lie in several files, or not beside it",
            "convert it to .nrrd, .mha or .nii.gz in one file",
        )
    data = path.with_name(name)
    # A link may lead out of the source; so may a name, which was looked at above.
    if not data.is_file() or data.resolve().parent != path.resolve().parent:
        raise BadSource(str(path), "a header whose data file does not lie beside it", "bring the data file, or exclude the header")
    return (path, data)


def check_header(path: Path, *, split: bool = False) -> VolumeFile:
    """Reads the header only.

    Args:
        path: The file.
        split: Whether each frame is to be a volume of its own.

    Raises:
        BadSource: Unreadable, colour or vectors, a segmentation, frames that are not to be split, or not three-dimensional.
    """
    uri = str(path)
    files_of(path)
    reader = _reader(path)
    shape, frames = _shape_and_frames(reader, uri)
    if any(key.startswith("Segment0_") for key in reader.GetMetaDataKeys()):
        raise BadSource(uri, "its header says segmentation; labels never enter a store", "exclude it")
    if frames > 1 and not split:
        raise frames_refusal(uri, 4, frames, shape)
    if len(shape) < 3 or min(shape) < 2:
        raise BadSource(uri, f"shape {'x'.join(map(str, shape))} is no volume", "give volumes of at least two slices along every axis")
    wide = reader.GetPixelID() not in {getattr(_itk(), f"sitk{sign}Int{bits}") for sign in ("", "U") for bits in (8, 16)}
    return VolumeFile(
        shape=(shape[0], shape[1], shape[2]),
        frames=frames,
        item_bytes=4 if wide else 2,
        space="scanner coordinates" if _geometry(path, reader) == "header" else "",
        b_values=_b_values(reader, frames) if frames > 1 else (),
    )


def _shape_and_frames(reader: Any, uri: str) -> tuple[tuple[int, ...], int]:
    size, components = tuple(map(int, reader.GetSize())), int(reader.GetNumberOfComponents())
    kind = _meta(reader, "NRRD_kinds[pixel]") if components > 1 else _meta(reader, f"NRRD_kinds[{len(size) - 1}]")
    if components > 1 and (kind not in _FRAME_KINDS - {""} or len(size) > 3):
        raise BadSource(
            uri,
            f"{components} numbers per voxel ({kind or 'colour or vectors'})",
            "convert it to one number per voxel",
        )
    if len(size) > 4:
        raise BadSource(uri, f"{len(size)}-D of {'x'.join(map(str, size))}", "split it into one file per frame and ingest those")
    frames = components if components > 1 else size[3] if len(size) > 3 else 1
    return size[:3], frames


class ItkVolume:
    """One opened file; arguments and attributes as in ``nifti.NiftiVolume``, stored values unscaled (these formats have no slope)."""

    def __init__(self, path: Path, frame: int | None = None) -> None:
        uri = str(path)
        known = check_header(path, split=frame is not None)
        reader = _reader(path)
        try:
            image = _frame_of(reader, known, frame)
        except RuntimeError as error:
            raise BadSource(uri, "voxels cannot be read: the file is truncated or damaged", "copy the file again, or exclude it") from error
        stored = storable(_itk().GetArrayFromImage(image), uri)
        self.oriented: Oriented = to_canonical(stored.array.T, ras_affine(image), uri)
        self.scale, self.offset = 1.0, 0.0
        self.stages = (*(() if frame is None else (f"frame {frame + 1} of {known.frames}",)), *stored.stages)
        geometry = _geometry(path, reader)
        self.fields: dict[str, str | float] = {"geometry": geometry}
        none = "no anatomical space is stated: which side is left is not known, and LPS is taken"
        self.warnings: tuple[str, ...] = (none,) if geometry == "none" else ()


def _frame_of(reader: Any, known: VolumeFile, frame: int | None) -> Any:
    """The image, or one frame of it: an index of its vectors, or a slice along its fourth axis."""
    size = reader.GetSize()
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], 0])
        reader.SetExtractIndex([0, 0, 0, frame or 0])
        return reader.Execute()
    image = reader.Execute()
    return image if known.frames == 1 or frame is None else _itk().VectorIndexSelectionCast(image, frame)


def ras_affine(image: Any) -> np.ndarray:
    """4x4 affine of a SimpleITK image: index (x, y, z) to RAS+ mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _b_values(reader: Any, frames: int) -> tuple[float, ...]:
    """b-values in s/mm2 as NA-MIC writes them: a greatest one, of which the squared length of each gradient is the share."""
    greatest = _meta(reader, "DWMRI_b-value")
    gradients = [_meta(reader, f"DWMRI_gradient_{number:04d}").split() for number in range(frames)]
    try:
        lengths = [sum(float(part) ** 2 for part in gradient) for gradient in gradients]
        return tuple(round(float(greatest) * length, 1) for length in lengths) if all(gradients) else ()
    except ValueError:
        return ()


def _meta(reader: Any, key: str) -> str:
    return str(reader.GetMetaData(key)).strip() if key in reader.GetMetaDataKeys() else ""


def _geometry(path: Path, reader: Any) -> str:
    """A NRRD without an anatomical ``space`` states no orientation; ITK then takes LPS."""
    space = _meta(reader, "NRRD_space")
    if path.suffix.lower() in (".nrrd", ".nhdr") and not space.startswith(_ANATOMICAL):
        return "none"
    return "header"


def _itk() -> Any:
    return require("SimpleITK", extra="medical", wanted_by="NRRD and MHA files")


def _reader(path: Path) -> Any:
    reader = _itk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        kind = path.suffix.lower().lstrip(".").upper()
        raise BadSource(str(path), f"not a readable {kind} file", "check that the file is whole, or exclude it") from error
    return reader
