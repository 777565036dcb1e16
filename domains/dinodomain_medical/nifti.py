"""NIfTI volumes (``.nii``, ``.nii.gz``) through nibabel, kept in their stored integers.

Does not read Analyze pairs, 4-D series or colour. The affine is the sform where its code is set, else the qform; a disagreement
of the two above 0.1 mm and a file that states neither are recorded in the fields, since neither can be told right from wrong here.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_medical.geometry import Oriented, check_affine, largest_shift_mm, to_canonical
from dinodomain_medical.values import Stored, storable

SUFFIXES = (".nii", ".nii.gz")

_DISAGREEMENT_MM = 0.1
_MM_PER = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def check_header(path: Path) -> None:
    """Reads the header only.

    Raises:
        BadSource: No NIfTI, 4-D, colour, fewer than three dimensions, or a broken header.
    """
    image = _open(path)
    _check_shape(image.shape, str(path))
    if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "biuf":
        raise BadSource(
            str(path), f"voxels of type {image.get_data_dtype()} (colour or complex)", "convert it to one real number per voxel"
        )
    _scaling(image, str(path))
    check_affine(image.affine, str(path))


class NiftiVolume:
    """One opened file.

    Attributes:
        oriented: The stored values on canonical axes, with affines.
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        fields: ``geometry`` (sform, qform or none), and ``sform_qform_mm`` or ``spacing_unit`` where there is something to say.
        stages: What was done to the values.
    """

    def __init__(self, path: Path) -> None:
        uri = str(path)
        check_header(path)
        image = _open(path)
        self.scale, self.offset = _scaling(image, uri)
        stored = _voxels(image, uri)
        shape = _check_shape(image.shape, uri)
        unit = _spatial_unit(image)
        affine = np.diag([_MM_PER[unit]] * 3 + [1.0]) @ image.affine
        self.oriented: Oriented = to_canonical(stored.array.reshape(shape, order="F"), affine, uri)
        self.stages = stored.stages if _MM_PER[unit] == 1.0 else (*stored.stages, f"geometry in {unit} -> mm")
        self.fields = _geometry_fields(image, unit)


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


def _check_shape(shape: tuple[int, ...], uri: str) -> tuple[int, int, int]:
    frames = int(np.prod(shape[3:], dtype=np.int64))
    if frames != 1:
        raise BadSource(
            uri,
            f"{len(shape)}-D with {frames} frames of {'x'.join(map(str, shape[:3]))}",
            "split it into one file per frame (for example nibabel.four_to_three) or take its mean, and ingest those",
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise BadSource(uri, f"shape {'x'.join(map(str, shape))} is no volume", "give volumes of at least two slices along every axis")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _scaling(image: Any, uri: str) -> tuple[float, float]:
    """Slope and intercept of the header; a slope of 0 or NaN means unscaled (NIfTI-1 standard, field scl_slope)."""
    slope, offset = float(image.dataobj.slope), float(image.dataobj.inter)
    if not (np.isfinite(slope) and np.isfinite(offset)):
        raise BadSource(uri, f"scl_slope {slope} with scl_inter {offset}", "repair the header: both must be finite")
    return slope, offset


def _voxels(image: Any, uri: str) -> Stored:
    try:
        array = np.asanyarray(image.dataobj.get_unscaled())
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BadSource(
            uri, f"voxels cannot be read ({type(error).__name__}): the file is truncated or damaged", "copy the file again, or exclude it"
        ) from error
    return storable(array, uri)


def _spatial_unit(image: Any) -> str:
    try:
        return str(image.header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _geometry_fields(image: Any, unit: str) -> dict[str, str | float]:
    header = image.header
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    fields: dict[str, str | float] = {"geometry": "sform" if sform is not None else "qform" if qform is not None else "none"}
    if qform is not None and sform is not None:
        shift = largest_shift_mm(qform, sform, image.shape) * _MM_PER[unit]
        if shift > _DISAGREEMENT_MM:
            fields["sform_qform_mm"] = round(shift, 3)
    if unit == "unknown":
        fields["spacing_unit"] = "not stated, taken as mm"
    return fields
