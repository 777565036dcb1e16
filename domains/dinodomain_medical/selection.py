"""Which DICOM images are taken: the header filter (``ingest.select``) and one reconstruction per acquisition. Headers only.

What is left out becomes one row per series with the number of its images and the clause that did it. Clauses are quoted only where
they name acquisition fields; of others (names of patients, descriptions) only the field is named, never a value.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import numpy as np

from dinodomain.domain import Filter
from dinodomain.errors import BadSource, LeftOut, UserError, require
from dinodomain.types import FactValue, SourceRef
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.dicom_values import kind_of
from dinodomain_medical.series_split import Series

_QUOTED_TEXT = (
    "Modality ImageType SOPClassUID SliceThickness SpacingBetweenSlices PixelSpacing Rows Columns NumberOfFrames BodyPartExamined "
    "ConvolutionKernel KVP XRayTubeCurrent Exposure Manufacturer ManufacturerModelName MagneticFieldStrength EchoTime RepetitionTime "
    "InversionTime FlipAngle ScanningSequence SequenceVariant MRAcquisitionType DiffusionBValue PatientPosition RescaleType "
    "PhotometricInterpretation BitsStored PresentationIntentType ViewPosition Laterality ImageLaterality LossyImageCompression "
    "QualityControlImage"
)
_QUOTED = frozenset(_QUOTED_TEXT.split())
_MOST_VERDICTS = 10_000


@final
class HeaderFilter:
    """``ingest.select`` for DICOM headers, clause by clause.

    Args:
        where: The expression; empty takes everything.

    Raises:
        UserError: It is no expression, or names something that is no DICOM field.

    Attributes:
        names: Keywords it needs from each header.
    """

    def __init__(self, where: str) -> None:
        self.names = tuple(sorted(Filter(where).names))
        for name in self.names:
            _check_name(name)
        self._clauses = [Filter(clause) for clause in _clauses(where)]
        self._verdicts: dict[tuple[FactValue, ...], str] = {}

    def __call__(self, values: Mapping[str, FactValue]) -> str:
        """What leaves a header out, as ``ingest.select: CLAUSE``; empty where it is taken.

        Raises:
            UserError: The expression does not fit the kinds of values.
        """
        key = tuple(values.get(name) for name in self.names)
        if key not in self._verdicts:
            if len(self._verdicts) >= _MOST_VERDICTS:
                self._verdicts.clear()
            failed = next((clause for clause in self._clauses if not clause(values)), None)
            self._verdicts[key] = "" if failed is None else f"ingest.select: {_shown(failed)}"
        return self._verdicts[key]

    def sort_out(self, headers: Sequence[Header], uri: str) -> tuple[list[Header], list[LeftOut]]:
        """The headers of one series that are taken, and a row per reason for those that are not."""
        taken: list[Header] = []
        left: dict[str, list[Header]] = defaultdict(list)
        for header in headers:
            verdict = self(header.values)
            (left[verdict] if verdict else taken).append(header)
        return taken, [LeftOut(uri, f"{why} ({_count(some)})", keys=some[0].keys) for why, some in sorted(left.items())]


def check_modality(header: Header, uri: str, domain: str, modalities: Sequence[str]) -> None:
    """Sees that a header is of a domain's modality; archives hold many, so that another one is no fault.

    Raises:
        LeftOut: It is of another modality.
        BadSource: It states none.
    """
    if header.modality in modalities:
        return
    if not header.modality:
        raise BadSource(uri, "no Modality is stated", "repair the header, or exclude it", keys=header.keys)
    raise LeftOut(uri, f"domain={domain} (modality {header.modality})", "ingest it with its own domain", keys=header.keys)


def _check_name(name: str) -> None:
    if kind_of(name) is not None:
        return
    known = require("pydicom.datadict", extra="medical", wanted_by="DICOM files").keyword_dict
    if name in known:
        raise UserError("ingest.select", f"{name} holds a sequence or bytes", allowed="DICOM fields that hold text or numbers")
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), {key.lower(): key for key in known}, n=1)
    found = {key.lower(): key for key in known}.get(near[0].lower(), near[0]) if near else ""
    remedy = f"did you mean {found}?" if found else "see the DICOM dictionary, PS3.6"
    raise UserError("ingest.select", f"{name!r} is no DICOM field", allowed="keywords such as Modality or SliceThickness", remedy=remedy)


def _clauses(where: str) -> list[str]:
    """The parts that a top-level ``and`` joins, so that a reason can name the one that failed."""
    if not where.strip():
        return []
    parsed = ast.parse(where.strip(), mode="eval").body
    parts = parsed.values if isinstance(parsed, ast.BoolOp) and isinstance(parsed.op, ast.And) else [parsed]
    return [ast.unparse(part) for part in parts]


def _shown(clause: Filter) -> str:
    if clause.names <= _QUOTED:
        return f"fails {clause.text}"
    return f"a condition on {', '.join(sorted(clause.names))}"


def _count(headers: Sequence[Header]) -> str:
    """Files, or frames where all are of one file."""
    files = len({header.path for header in headers})
    if files == 1 and len(headers) > 1:
        return f"{len(headers)} frames of a file"
    return "1 file" if files == 1 else f"{files} files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What ``one_per_acquisition`` needs to know of a volume.

    Attributes:
        acquisition: What all reconstructions of one acquisition share: study, frame of reference, number, contrast, tube voltage ...
        seconds: First and last time of acquisition in seconds of the day, or None.
        box: [2, 3] smallest and largest corner in patient space, LPS mm.
        kernel: ConvolutionKernel as one text; empty where it is not stated.
        thickness: Slice thickness, or else spacing, in mm.
    """

    acquisition: tuple[str, ...]
    seconds: tuple[float, float] | None
    box: np.ndarray = field(compare=False)
    kernel: str
    thickness: float


def reconstruction_of(series: Series) -> Reconstruction | None:
    """The same from headers; None where they state no acquisition that could be shared."""
    first = series.headers[0]
    times = [header.seconds for header in series.headers if header.seconds is not None]
    study = first.keys.get("StudyInstanceUID", "")
    if not study or not (first.acquisition or times):
        return None
    contrast = str(first.fields.get("contrast", ""))
    kvp = str(first.fields.get("kvp", ""))
    parts = "/".join(f"{name}={value}" for name, value in sorted(first.parts.items()))
    return Reconstruction(
        acquisition=(study, first.frame_of_reference, first.acquisition, contrast, kvp, parts),
        seconds=(min(times), max(times)) if times else None,
        box=_box(series.headers),
        kernel=str(first.fields.get("kernel", "")),
        thickness=first.thickness if first.thickness else _usual_gap(series.headers),
    )


def _box(headers: Sequence[Header]) -> np.ndarray:
    corners = []
    for header in (headers[0], *headers[1:]):
        across, down = np.array(header.orientation[:3]), np.array(header.orientation[3:])  # type: ignore[index]  # checked by arrange
        right = across * header.spacing[1] * (header.columns - 1)  # type: ignore[index]
        below = down * header.spacing[0] * (header.rows - 1)  # type: ignore[index]
        place = np.array(header.position)
        corners += [place, place + right, place + below, place + right + below]
    return np.array([np.min(corners, axis=0), np.max(corners, axis=0)])


def _usual_gap(headers: Sequence[Header]) -> float:
    depths = np.sort([float(np.dot(header.position or (), _normal(header))) for header in headers])
    return float(np.median(np.diff(depths))) if len(depths) > 1 else 0.0


def _normal(header: Header) -> np.ndarray:
    orientation = np.array(header.orientation)
    normal: np.ndarray = np.cross(orientation[:3], orientation[3:])
    return normal


def same_acquisition(first: Reconstruction, second: Reconstruction) -> bool:
    """Whether two volumes were made of the same rays: equal headers, times that meet, and half of the smaller box in common.

    GE numbers acquisitions per series, so the number alone proves nothing; where both state times, these must overlap.
    """
    if first.acquisition != second.acquisition:
        return False
    if first.seconds and second.seconds and not (first.seconds[0] <= second.seconds[1] and second.seconds[0] <= first.seconds[1]):
        return False
    low, high = np.maximum(first.box[0], second.box[0]), np.minimum(first.box[1], second.box[1])
    # A single plane has no depth; a millimetre keeps its volume above zero.
    common = float(np.prod((high - low + 1).clip(0)))
    return common >= 0.5 * min(float(np.prod(one.box[1] - one.box[0] + 1)) for one in (first, second))


def kept(volumes: Mapping[str, Reconstruction], by: Literal["kernel", "thickness"]) -> dict[str, str]:
    """Which of several reconstructions are left out, and for which other one.

    ``kernel`` prefers smooth body kernels to sharp ones (``kernel_class``), then the kernel most volumes here have, then thinner
    slices; ``thickness`` prefers the thinnest slices, then the same order of kernels. The last resort is the order of the ids.

    Args:
        volumes: Id to reconstruction, of the whole source.
        by: What decides.

    Returns:
        Id left out to the id kept in its place.
    """
    number = Counter(one.kernel for one in volumes.values())

    def rank(name: str) -> tuple[object, ...]:
        one = volumes[name]
        kernel = (kernel_class(one.kernel), -number[one.kernel], one.kernel)
        return (*kernel, one.thickness, name) if by == "kernel" else (one.thickness, *kernel, name)

    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, one in volumes.items():
        groups[one.acquisition].append(name)
    lost: dict[str, str] = {}
    for names in groups.values():
        best: list[str] = []
        for name in sorted(names, key=rank):
            other = next((known for known in best if same_acquisition(volumes[known], volumes[name])), None)
            if other is None:
                best.append(name)
            else:
                lost[name] = other
    return lost


def kernel_class(kernel: str) -> int:
    """0 for smooth kernels made for the body, 1 for smooth ones of other parts and unknown ones, 2 for sharp ones (bone, lung, edge).

    Siemens: letter B (body), H (head) or others with a number, from 50 on sharp (B30f, Br40, Bl57, Hr38). GE: STANDARD, SOFT, DETAIL;
    BONE, LUNG, EDGE, CHST. Philips: A, B, C; L, D, E, YA, YB, YC. Canon: FC01..FC19 body, FC20..FC29 head, from FC30 on sharp.
    """
    word = kernel.upper().split(" ")[0] if kernel else ""
    if word in ("STANDARD", "SOFT", "STND", "DETAIL", "A", "B", "C"):
        return 0
    if word.startswith(("BONE", "LUNG", "EDGE", "CHST", "ULTRA", "HD")) or word in ("L", "D", "E", "YA", "YB", "YC", "YD", "YE"):
        return 2
    canon = re.fullmatch(r"FC(\d\d).*", word)
    if canon:
        return 0 if int(canon[1]) < 20 else 1 if int(canon[1]) < 30 else 2
    siemens = re.fullmatch(r"([A-Z])[A-Z]?(\d\d).*", word)
    if siemens:
        return 2 if int(siemens[2]) >= 50 else 0 if siemens[1] in "BI" else 1
    return 1


def left_out_row(source: SourceRef, by: str, other: Reconstruction) -> LeftOut:
    """The row of a reconstruction that another one stands for."""
    uri = f"{Path(source.uris[0]).parent}" + "".join(source.source_id.partition("#")[1:])
    num = "1 file" if len(source.uris) == 1 else f"{len(source.uris)} files"
    why = f"{num}; kept: kernel {other.kernel or 'not stated'}, {other.thickness:g} mm"
    return LeftOut(uri, f"ingest.one_per_acquisition={by} ({why})", keys=source.keys)
