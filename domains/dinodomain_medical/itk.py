"""NRRD and MetaImage volumes (``.nrrd``, ``.mha``) through SimpleITK. Geometry comes in LPS mm and leaves in RAS mm.

Does not read detached headers (``.nhdr``, ``.mhd``), 4-D or vector images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_medical.geometry import LPS_TO_RAS, Oriented, to_canonical
from dinodomain_medical.values import storable

SUFFIXES = (".nrrd", ".mha")
DETACHED = (".nhdr", ".mhd")


def is_itk(path: Path) -> bool:
    """Whether the name says NRRD or MetaImage."""
    return path.suffix.lower() in SUFFIXES + DETACHED


def check_header(path: Path) -> None:
    """Reads the header only.

    Raises:
        BadSource: Unreadable, detached, colour, or not three-dimensional.
    """
    uri = str(path)
    if path.suffix.lower() in DETACHED:
        raise BadSource(uri, "a header whose voxels lie in another file", "convert it to .nrrd, .mha or .nii.gz in one file")
    reader = _reader(path)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if components != 1:
        raise BadSource(uri, f"{components} numbers per voxel (colour or vectors)", "convert it to one number per voxel")
    if len(size) > 3:
        frames = int(np.prod(size[3:]))
        raise BadSource(
            uri,
            f"{len(size)}-D with {frames} frames of {'x'.join(map(str, size[:3]))}",
            "split it into one file per frame and ingest those",
        )
    if len(size) < 3 or min(size) < 2:
        raise BadSource(uri, f"shape {'x'.join(map(str, size))} is no volume", "give volumes of at least two slices along every axis")


class ItkVolume:
    """One opened file; attributes as in ``nifti.NiftiVolume``, stored values unscaled (these formats have no slope)."""

    def __init__(self, path: Path) -> None:
        uri = str(path)
        check_header(path)
        reader = _reader(path)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise BadSource(uri, "voxels cannot be read: the file is truncated or damaged", "copy the file again, or exclude it") from error
        itk = _itk()
        stored = storable(itk.GetArrayFromImage(image), uri)
        self.oriented: Oriented = to_canonical(stored.array.T, ras_affine(image), uri)
        self.scale, self.offset = 1.0, 0.0
        self.stages = stored.stages
        self.fields = {"geometry": _geometry(path, image)}


def ras_affine(image: Any) -> np.ndarray:
    """4x4 affine of a SimpleITK image: index (x, y, z) to RAS+ mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _geometry(path: Path, image: Any) -> str:
    """A NRRD without ``space`` states no orientation; ITK then takes LPS."""
    if path.suffix.lower() == ".nrrd" and "NRRD_space" not in image.GetMetaDataKeys():
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
