"""Stored values of DICOM frames, and the order of grey (MONOCHROME1). Compressed syntaxes through pydicom's decoder plug-ins.

JPEG, JPEG-LS and JPEG 2000 are read by python-gdcm, High-Throughput JPEG 2000 by pylibjpeg-openjpeg, RLE and deflated files by
pydicom itself. The modality LUT is always applied, a VOI window never. Overlays in unused bits are masked off, overlay planes never
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, MissingExtra, require
from dinodomain_medical.dicom_header import Header, header_of, load, quiet_pydicom
from dinodomain_medical.luts import lut_table

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"

# Decoders per syntax, the first that can; none other is ever asked. Libjpeg's (pylibjpeg-libjpeg) fills what a truncated codestream lacks
# with zeros and says nothing; GDCM refuses it.
_J = "1.2.840.10008.1.2.4."
_DECODERS = {
    **dict.fromkeys((f"{_J}50", f"{_J}51", f"{_J}57", f"{_J}70"), ("gdcm",)),
    **dict.fromkeys((f"{_J}80", f"{_J}81"), ("gdcm", "pyjpegls")),
    **dict.fromkeys((f"{_J}90", f"{_J}91"), ("gdcm", "pylibjpeg")),
    **dict.fromkeys((f"{_J}201", f"{_J}202", f"{_J}203"), ("pylibjpeg",)),
}
_FLOAT_PIXELS = ("FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One decoded frame.

    Attributes:
        header: Its header; slope 1 and offset 0 where a modality LUT sequence was applied.
        stored: (y, x) stored values, native byte order, of BitsStored meaningful bits.
        low: Smallest value that BitsStored and the sign allow.
        high: Largest one.
        slope: physical = stored * slope + offset.
        offset: See ``slope``.
        dataset: The pydicom dataset, for fields that only one domain needs.
        stages: What was done.
        raw: Stored values before a modality LUT sequence; None where there was none, and ``stored`` holds them.
    """

    header: Header
    stored: np.ndarray
    low: int
    high: int
    slope: Fraction
    offset: Fraction
    dataset: Any
    stages: tuple[str, ...] = ()
    raw: np.ndarray | None = None


def decode(path: Path, header: Header | None = None) -> Frame:
    """Reads and decodes a single-frame file.

    Args:
        path: The file.
        header: Its header, where it was read already.

    Raises:
        BadSource: Truncated, undecodable, several frames, or colour; its ``uri`` is this file.
    """
    uri = str(path)
    with quiet_pydicom():
        dataset = load(path)
        if header is None:
            header = header_of(dataset, path, syntax=str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or ""))
        check_single_grey(header)
    stored, low, high = _meaningful_bits(_pixels(dataset, uri), dataset)
    _forget_pixels(dataset)
    if dataset.get("ModalityLUTSequence"):
        return _through_lut(dataset, header, stored)
    return Frame(header=header, stored=stored, low=low, high=high, slope=header.slope, offset=header.offset, dataset=dataset)


def decode_frames(path: Path, headers: Sequence[Header]) -> Iterator[Frame]:
    """Decodes frames of an enhanced multi-frame file one after the other; encoded pixels of one frame are in memory at a time.

    Args:
        path: The file.
        headers: Headers of the frames that are wanted, by rising frame number.

    Raises:
        BadSource: Truncated or undecodable; its ``uri`` is this file.
    """
    with quiet_pydicom():
        dataset = load(path, stop_before_pixels=True)
    iterator = _raw_frames(path, dataset, [header.frame or 0 for header in headers])
    for header in headers:
        check_single_grey(header)
        stored, low, high = _meaningful_bits(next(iterator), dataset)
        yield Frame(header=header, stored=stored, low=low, high=high, slope=header.slope, offset=header.offset, dataset=dataset)


def _raw_frames(path: Path, dataset: Any, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    pixels = require("pydicom.pixels", extra="medical", wanted_by="DICOM files")
    try:
        with quiet_pydicom():
            iterator = pixels.iter_pixels(path, indices=numbers, raw=True, correct_unused_bits=False, decoding_plugin=_decoder(dataset))
        yield from iterator
    except MissingExtra:
        raise
    except Exception as error:  # as in _pixels
        raise _undecodable(str(path), dataset, error) from error


def _forget_pixels(dataset: Any) -> None:
    """Encoded pixels are not needed any more; hundreds of slices would hold them twice."""
    for name in ("PixelData", *_FLOAT_PIXELS):
        if name in dataset:
            delattr(dataset, name)


def check_single_grey(header: Header) -> None:
    """Refuses objects without an image, with several frames, or in colour."""
    uri = str(header.path)
    if header.rows == 0 or header.columns == 0:
        raise BadSource(uri, f"a DICOM object without an image (modality {header.modality or 'not stated'})", "exclude it")
    if header.frames > 1 and header.frame is None:
        raise BadSource(
            uri,
            f"a multi-frame object with {header.frames} frames and no statement of where each lies",
            "exclude it, or convert it to single frames with positions and ingest those",
        )
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        raise BadSource(
            uri,
            f"colour ({header.photometric or 'photometric interpretation not stated'})",
            "exclude it: secondary captures are no measurements",
        )


def invert(frame: Frame) -> np.ndarray:
    """Stored values with the order of grey turned round about the stored range, so that slope and offset stay true to the range."""
    wide = np.int64(frame.high) + np.int64(frame.low) - frame.stored.astype(np.int64)
    return wide.astype(frame.stored.dtype)


def shows_low_as_white(frame: Frame) -> bool:
    """MONOCHROME1, or a presentation LUT that inverts. The two name the same turn (PS3.3 C.8.11.3), so it is done once."""
    shape = str(frame.dataset.get("PresentationLUTShape") or "").upper()
    return frame.header.photometric == "MONOCHROME1" or shape == "INVERSE"


def _pixels(dataset: Any, uri: str) -> np.ndarray:
    if "PixelData" not in dataset and not any(name in dataset for name in _FLOAT_PIXELS):
        raise BadSource(uri, "no pixel data: the file is truncated, or holds no image", "copy the file again, or exclude it")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = _default_syntax(dataset)
    # pydicom's own correction of unused bits drops the top bits before HighBit is looked at; ours follows.
    try:
        if _is_twelve_bit_jpeg(dataset):
            return _twelve_bit_jpeg(dataset, uri)
        dataset.pixel_array_options(correct_unused_bits=False, decoding_plugin=_decoder(dataset))
        return np.asarray(dataset.pixel_array)
    except MissingExtra:
        raise
    except Exception as error:  # decoders are plug-ins and raise what they like; each case names the file and goes on
        raise _undecodable(uri, dataset, error) from error


def _decoder(dataset: Any) -> str:
    """Name of the plug-in to decode with; empty where pydicom does it itself.

    Raises:
        MissingExtra: None of those that can is installed.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    names = _DECODERS.get(str(syntax), ())
    if not names:
        return ""
    pixels = require("pydicom.pixels", extra="medical", wanted_by="DICOM files")
    there = pixels.get_decoder(syntax).available_plugins
    chosen = next((name for name in names if name in there), None)
    if chosen is None:
        raise MissingExtra(f"DICOM in {syntax.name}", {"gdcm": "python-gdcm", "pylibjpeg": "pylibjpeg-openjpeg"}[names[0]], "medical")
    return chosen


def _is_twelve_bit_jpeg(dataset: Any) -> bool:
    return str(dataset.file_meta.TransferSyntaxUID) == _JPEG_EXTENDED and int(dataset.get("BitsStored") or 0) > 8


def _twelve_bit_jpeg(dataset: Any, path: str) -> np.ndarray:
    """Lossy 12-bit JPEG, which pydicom does not hand to GDCM though GDCM reads it. A lossy decoder may round otherwise than another."""
    gdcm = require("gdcm", extra="medical", wanted_by="12-bit JPEG")
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read():
        raise ValueError("GDCM cannot read it")
    kind = np.int16 if dataset.get("PixelRepresentation") else np.uint16
    pixels = np.frombuffer(reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape"), kind)
    return pixels.reshape(int(dataset.Rows), int(dataset.Columns))


def _undecodable(uri: str, dataset: Any, error: Exception) -> BadSource:
    name = dataset.file_meta.TransferSyntaxUID.name
    return BadSource(
        uri,
        f"pixels cannot be decoded ({name}, {type(error).__name__}): truncated, damaged, or no decoder for it",
        "copy the file again, or convert it to Explicit VR Little Endian",
    )


def _default_syntax(dataset: Any) -> Any:
    """Files without a meta header are uncompressed; pydicom found out which byte order and VR they use."""
    uid = require("pydicom.uid", extra="medical", wanted_by="DICOM files")
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _meaningful_bits(pixels: np.ndarray, dataset: Any) -> tuple[np.ndarray, int, int]:
    """Drops bits outside BitsStored (overlays of old devices lie there) and extends the sign; gives the range too."""
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    signed = bool(dataset.get("PixelRepresentation"))
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    width = pixels.dtype.itemsize * 8
    if pixels.dtype.kind == "f" or bits >= width:
        return pixels, low, high
    syntax = dataset.file_meta.TransferSyntaxUID
    # A JPEG codestream holds the meaningful bits alone; native and RLE frames hold the cell as it was allocated.
    drop = 0 if syntax.is_compressed and "RLE" not in syntax.name else max(int(dataset.get("HighBit") or bits - 1) + 1 - bits, 0)
    kind = np.dtype(f"i{pixels.dtype.itemsize}" if signed else f"u{pixels.dtype.itemsize}")
    # Shifting left to the top and back keeps exactly `bits` bits; a signed type shifts back with its sign.
    shifted = np.left_shift(pixels.view(kind), width - bits - drop)
    return np.right_shift(shifted, width - bits), low, high


def _through_lut(dataset: Any, header: Header, stored: np.ndarray) -> Frame:
    """Applies a ModalityLUTSequence (PS3.3 C.11.1): a table from stored values to the maker's numbers."""
    table = lut_table(
        dataset.ModalityLUTSequence[0], str(header.path), name="modality LUT", signed=bool(dataset.get("PixelRepresentation"))
    )
    return Frame(
        header=header,
        stored=table(stored),
        low=0,
        high=(1 << table.bits) - 1,
        slope=Fraction(1),
        offset=Fraction(0),
        dataset=dataset,
        stages=("modality LUT applied",),
        raw=stored,
    )
