"""NIfTI volumes (``.nii``, ``.nii.gz``) through nibabel, kept in their stored integers.

Does not read pairs (``.hdr`` with ``.img``), label maps, vectors, statistical maps or colour. The affine is the sform where its code is
set, else the qform; a disagreement of the two above 0.1 mm, of the affine with ``pixdim``, and a file that states neither are warnings,
since none can be told right from wrong here. A 4-D file is one volume per frame, for those who asked for that.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_medical.geometry import Oriented, check_affine, largest_shift_mm, to_canonical
from dinodomain_medical.opened import VolumeFile
from dinodomain_medical.values import Stored, storable

SUFFIXES = (".nii", ".nii.gz")

_DISAGREEMENT_MM, _DISAGREEMENT_SHARE = 0.1, 0.01
_MM_PER = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
_PAIR_SIZES = {(348).to_bytes(4, "little"), (348).to_bytes(4, "big"), (540).to_bytes(4, "little"), (540).to_bytes(4, "big")}
_CODES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI 152", 5: "template"}

# NIfTI-1 standard, section "intent": what the numbers are where they are no picture.
_LABELS = (1002, 1003)
_VECTORS = (1004, 1005, 1006, 1007, 1008, 1009, 1010, 2003, 2004)
_STATISTICS = range(2, 25)


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI in one file."""
    return path.name.lower().endswith(SUFFIXES)


def is_pair(path: Path) -> bool:
    """Whether a file is the header of a NIfTI or Analyze pair, by name and content (other formats have ``.hdr`` files too)."""
    if path.suffix.lower() != ".hdr":
        return False
    with path.open("rb") as handle:
        return handle.read(4) in _PAIR_SIZES


def pair_refusal(path: Path) -> BadSource:
    """The row that the header of a pair gets; it stands for both files."""
    return BadSource(
        str(path),
        "a NIfTI or Analyze pair of .hdr and .img: an old Analyze header does not say which side is left",
        "convert it to .nii.gz where that is known (for example nibabel.load and nibabel.save), and ingest that",
    )


def check_header(path: Path, *, split: bool = False) -> VolumeFile:
    """Reads the header only.

    Args:
        path: The file.
        split: Whether each frame of a 4-D file is to be a volume of its own.

    Raises:
        BadSource: No NIfTI, 4-D and not to be split, no picture by its intent code, colour, fewer than three dimensions, or a broken
            header.
    """
    uri = str(path)
    image = _open(path)
    _check_intent(image, uri)
    shape, frames = _shape_and_frames(image.shape, uri)
    if frames > 1 and not split:
        raise frames_refusal(uri, len(image.shape), frames, shape)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "biuf":
        raise BadSource(uri, f"voxels of type {dtype} (colour or complex)", "convert it to one real number per voxel")
    _scaling(image, uri)
    check_affine(image.affine, uri)
    qform, sform = (int(image.header[name]) for name in ("qform_code", "sform_code"))
    code = sform or qform
    return VolumeFile(
        shape=shape,
        frames=frames,
        item_bytes=2 if dtype.itemsize <= 2 else 4,
        space=f"{_CODES.get(code, code)} coordinates" if code else "",
        b_values=_b_values(path, frames) if frames > 1 else (),
    )


def frames_refusal(uri: str, ndim: int, frames: int, shape: tuple[int, ...]) -> BadSource:
    """The row of a 4-D file that is not to be split."""
    return BadSource(
        uri,
        f"{ndim}-D with {frames} frames of {'x'.join(map(str, shape))}",
        "set ingest.frames=split to take each frame as a source of its own, or take its mean and ingest that",
    )


class NiftiVolume:
    """One opened file, or one frame of it.

    Args:
        path: The file.
        frame: Number of the frame from 0; None for a 3-D file.

    Attributes:
        oriented: The stored values on canonical axes, with affines.
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        fields: ``geometry`` (sform, qform or none), and ``sform_qform_mm`` or ``spacing_unit`` where there is something to say.
        stages: What was done to the values.
        warnings: What is doubtful about the geometry.
    """

    def __init__(self, path: Path, frame: int | None = None) -> None:
        uri = str(path)
        known = check_header(path, split=frame is not None)
        image = _open(path)
        self.scale, self.offset = _scaling(image, uri)
        stored = _voxels(image, path, frame)
        unit = _spatial_unit(image)
        affine = np.diag([_MM_PER[unit]] * 3 + [1.0]) @ image.affine
        self.oriented: Oriented = to_canonical(stored.array.reshape(known.shape, order="F"), affine, uri)
        taken = () if frame is None else (f"frame {frame + 1} of {known.frames}",)
        in_mm = () if _MM_PER[unit] == 1.0 else (f"geometry in {unit} -> mm",)
        self.stages = (*taken, *stored.stages, *in_mm)
        self.fields, self.warnings = _geometry(image, unit)


def _open(path: Path) -> Any:
    nibabel = require("nibabel", extra="medical", wanted_by="NIfTI files")
    try:
        image = nibabel.load(path)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
    ) as error:
        raise BadSource(
            str(path), f"not a readable NIfTI file ({type(error).__name__})", "check that the file is whole, or exclude it"
        ) from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise BadSource(str(path), f"a file of type {type(image).__name__} under a NIfTI name", "rename or convert it")
    return image


def _check_intent(image: Any, uri: str) -> None:
    code = int(image.header["intent_code"])
    if code in _LABELS:
        raise BadSource(
            uri,
            f"its header says label map (intent code {code}); labels never enter a store",
            "exclude it, or, if it is an image, set intent_code to 0 in the file",
        )
    if code in _VECTORS:
        raise BadSource(uri, f"its header says vectors or matrices (intent code {code})", "convert it to one real number per voxel")
    if code in _STATISTICS:
        raise BadSource(
            uri,
            f"its header says statistical map (intent code {code}), which is no scan",
            "exclude it, or, if it is an image, set intent_code to 0 in the file",
        )


def _shape_and_frames(shape: tuple[int, ...], uri: str) -> tuple[tuple[int, int, int], int]:
    beyond = shape[4:]
    if any(size != 1 for size in beyond):
        raise BadSource(
            uri,
            f"{len(shape)}-D of {'x'.join(map(str, shape))}: {int(np.prod(beyond))} numbers per voxel (vectors)",
            "convert it to one real number per voxel",
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise BadSource(
            uri,
            f"shape {'x'.join(map(str, shape))} is no volume",
            "give volumes of at least two slices along every axis; single pictures as PNG or TIFF with domain=xray",
        )
    return (int(shape[0]), int(shape[1]), int(shape[2])), int(shape[3]) if len(shape) > 3 else 1


def _scaling(image: Any, uri: str) -> tuple[float, float]:
    """Slope and intercept of the header; a slope of 0 or NaN means unscaled (NIfTI-1 standard, field scl_slope)."""
    slope, offset = float(image.dataobj.slope), float(image.dataobj.inter)
    if not (np.isfinite(slope) and np.isfinite(offset)):
        raise BadSource(uri, f"scl_slope {slope} with scl_inter {offset}", "repair the header: both must be finite")
    return slope, offset


def _voxels(image: Any, path: Path, frame: int | None) -> Stored:
    uri = str(path)
    try:
        if frame is None:
            array = np.asanyarray(image.dataobj.get_unscaled())
        else:
            # The same voxels as a proxy without scale, which nibabel reads by slices; a compressed file is inflated up to the frame.
            proxy = require("nibabel.arrayproxy", extra="medical", wanted_by="NIfTI files")
            array = np.asanyarray(proxy.ArrayProxy(path, (image.shape, image.get_data_dtype(), image.dataobj.offset))[..., frame])
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BadSource(
            uri, f"voxels cannot be read ({type(error).__name__}): the file is truncated or damaged", "copy the file again, or exclude it"
        ) from error
    return storable(array, uri)


def _b_values(path: Path, frames: int) -> tuple[float, ...]:
    """b-values in s/mm2 from a ``.bval`` file of the same stem (FSL, BIDS); empty where there is none."""
    beside = path.with_name(path.name[: path.name.lower().rindex(".nii")] + ".bval")
    if not beside.is_file():
        return ()
    try:
        values = tuple(float(word) for word in beside.read_text(encoding="utf-8").split())
    except (ValueError, OSError):
        values = ()
    if len(values) != frames or not np.isfinite(values).all():
        raise BadSource(
            str(path), f"a .bval file beside it that does not hold {frames} numbers, one for each frame", "repair or remove the .bval file"
        )
    return values


def _spatial_unit(image: Any) -> str:
    try:
        return str(image.header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _geometry(image: Any, unit: str) -> tuple[dict[str, str | float], tuple[str, ...]]:
    """Fields that say where the affine is from, and what is doubtful about it."""
    header, warnings = image.header, []
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    fields: dict[str, str | float] = {"geometry": "sform" if sform is not None else "qform" if qform is not None else "none"}
    if fields["geometry"] == "none":
        warnings.append("neither sform nor qform is set: which side is left is not stated, and its axes are taken as they are stored")
    if qform is not None and sform is not None:
        shift = largest_shift_mm(qform, sform, image.shape) * _MM_PER[unit]
        if shift > _DISAGREEMENT_MM:
            fields["sform_qform_mm"] = round(shift, 3)
            warnings.append(f"sform and qform put a corner voxel {shift:.3g} mm apart; the sform is used")
    stated = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    used = np.linalg.norm(image.affine[:3, :3], axis=0)
    if fields["geometry"] != "none" and (np.abs(stated - used) > _DISAGREEMENT_SHARE * used).any():
        warnings.append(f"pixdim says voxels of {_by(stated)}, the affine of {_by(used)}; the affine is used")
    if unit == "unknown":
        fields["spacing_unit"] = "not stated, taken as mm"
    return fields, tuple(warnings)


def _by(sizes: np.ndarray) -> str:
    return "x".join(f"{size:.4g}" for size in sizes)
