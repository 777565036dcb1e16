"""A made-up clinic: small thorax radiographs as real DICOM files, with answers planted for an audit to find. No person is in it.

**Images.** Each patient is drawn once as a body: outline, two lungs, mediastinum with heart, ribs, diaphragm, all of random size. Each
image is that body under a random pose (turn, shift, scale), exposure (gain, gamma) and noise, 64 x 64 pixels, 12 bits.

**Finding** (``yes`` or ``no``, half each). The lungs carry markings: with the finding lines that run one way, without it grains. Both are
sums of plane waves of the same lengths, ranked into the same histogram; direction, length, phases and contrast are random and drawn
alike. So the mean, the histogram, the spectrum's radius and any fixed pixel say nothing; the arrangement does, in every crop of a lung.

**Site** (hospital ``A`` or ``B``). Burned-in letter in a corner, collimator edges, grain and gamma tell the hospital. It is tied to
the finding: P(B | yes) = (1 + s) / 2 and P(B | no) = (1 - s) / 2, so the phi coefficient is s = ``SITE_STRENGTH``. B writes MONOCHROME1.

**Patient overlap.** ``OVERLAP`` of the patients appear again under a second PatientID with re-exposed copies of their images (same body
and pose to within a pixel, other exposure and noise), and in another split than the original.

**Clean attribute.** ``blood_group`` (``O`` or ``AB``) is a coin flip for each PatientID that nothing in the pixels carries. ``sex``
widens the body a little and ``age`` fades the ribs, as weak true signals.

Equal seeds give equal bytes. Pixels are float64 (y, x) in 0..1 until they are stored; anatomical coordinates u (to the image's right)
and v (down) run over -1..1.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import UserError, require
from dinodomain.lineage import write_bytes, write_json

SIZE = 64
BITS = 12
PIXEL_MM = 5.0
SITE_STRENGTH = 0.3
OVERLAP = 0.04
SPLITS = {"train": 0.7, "val": 0.15, "test": 0.15}
COLUMNS = ("id", "PatientID", "finding", "site", "blood_group", "age", "sex", "split")
RECIPE = 1
"""Raised whenever equal arguments give other bytes than before."""

NOTICE = "MADE-UP PHANTOM, NOT A PERSON: drawn by dinodomain for trying out software. Not for diagnosis or research on people."

_WAVES, _SPREAD = 24, 0.2
"""Plane waves of a texture, and how far their directions spread where they run one way, radians."""

_LENGTH, _CONTRAST = (0.13, 0.22), (0.16, 0.24)
"""Wavelength in anatomical units (the image is 2 wide), and half the range of densities."""

_SHUTTER = 5
"""Pixels that hospital B's collimator covers on the left and on the right."""

_LETTERS = {"A": ("010", "101", "111", "101", "101"), "B": ("110", "101", "110", "101", "110")}

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What was written.

    Attributes:
        folder: The folder given.
        images: Folder of the DICOM files, one folder per PatientID.
        labels: ``labels.csv``, one row per image; ``id`` is the file stem.
        truth: ``truth.json``: what was planted.
        num_patients: Real (made-up) patients.
        num_images: DICOM files, copies included.
        aliases: (PatientID, second PatientID) of the planted overlap.
    """

    folder: Path
    images: Path
    labels: Path
    truth: Path
    num_patients: int
    num_images: int
    aliases: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One row of the plan: a PatientID and what is true of it.

    Attributes:
        name: PatientID.
        body: Number that seeds body, finding patch and poses; an alias shares that of its original.
        exposure: Number that seeds exposure and noise; an alias has its own.
        finding: ``yes`` or ``no``.
        site: ``A`` or ``B``.
        blood_group: ``O`` or ``AB``.
        age: Years.
        sex: ``F`` or ``M``.
        split: ``train``, ``val`` or ``test``.
        num_images: Images under this PatientID.
    """

    name: str
    body: int
    exposure: int
    finding: str
    site: str
    blood_group: str
    age: int
    sex: str
    split: str
    num_images: int


def write_clinic(folder: Path | str, *, patients: int = 480, seed: int = 0, images_per_patient: tuple[int, int] = (1, 2)) -> Archive:
    """Writes the archive, or finds it as this very call wrote it before.

    Args:
        folder: Made if absent.
        patients: Patients before the overlap is added, at least 8.
        seed: Equal seeds give equal bytes.
        images_per_patient: Fewest and most images of one patient.

    Raises:
        UserError: The folder holds something else, or the numbers make no sense.
        MissingExtra: pydicom is not installed.
    """
    fewest, most = images_per_patient
    if patients < 8 or not 1 <= fewest <= most:
        raise UserError(
            "demo clinic", f"{patients} patients with {fewest}..{most} images", allowed="at least 8 patients with at least one image each"
        )
    target = Path(folder)
    recipe = {"recipe": RECIPE, "patients": patients, "seed": seed, "images_per_patient": [fewest, most]}
    truth = target / "truth.json"
    people = plan_patients(patients, seed, images_per_patient)
    archive = _archive(target, people)
    if truth.is_file() and json.loads(truth.read_text()).get("made_by") == recipe:
        return archive
    if target.is_dir() and any(target.iterdir()) and not (target / "README.txt").is_file():
        raise UserError(str(target), "the folder is not empty and holds no clinic of ours", remedy="give an empty or new folder")
    write_bytes(_made(target) / "README.txt", _readme(people).encode())
    for person in people:
        for number in range(person.num_images):
            # Written plainly: an archive without truth.json is drawn again, and 700 calls of fsync take longer than all the drawing.
            path = _made(archive.images / person.name) / f"{stem(person, number)}.dcm"
            path.write_bytes(dicom_bytes(person, number, draw_image(person, number, seed), seed))
    write_bytes(archive.labels, _labels(people).encode())
    write_json(truth, _truth(people, archive, recipe))  # last: its presence says that the archive is whole
    return archive


def plan_patients(patients: int, seed: int, images_per_patient: tuple[int, int]) -> list[Patient]:
    """Who is in the clinic: balanced findings, site tied to them, coin flips, splits by patient, aliases last."""
    rng = np.random.default_rng([seed, 1])
    num_aliases = max(round(OVERLAP * patients), 1)
    numbers = rng.permutation(patients + num_aliases)  # so that a PatientID does not tell an alias
    finding = np.where(rng.permutation(patients) < patients // 2, "yes", "no")
    in_b = rng.random(patients) < np.where(finding == "yes", 1 + SITE_STRENGTH, 1 - SITE_STRENGTH) / 2
    bounds = np.cumsum(list(SPLITS.values())) * patients
    split = np.array(list(SPLITS))[np.searchsorted(bounds, rng.permutation(patients) + 0.5)]
    coins = rng.integers(0, 2, (2, patients))
    ages, counts = rng.integers(20, 96, patients), rng.integers(images_per_patient[0], images_per_patient[1] + 1, patients)
    people = [
        Patient(
            name=f"MP{numbers[i]:05d}", body=i, exposure=i, finding=str(finding[i]), site="B" if in_b[i] else "A",
            blood_group=("O", "AB")[coins[0, i]], age=int(ages[i]), sex="FM"[coins[1, i]], split=str(split[i]), num_images=int(counts[i]),
        )
        for i in range(patients)
    ]  # fmt: skip
    again, coins = rng.choice(patients, num_aliases, replace=False), rng.integers(0, 2, (1, num_aliases))
    return people + [
        _alias(people[i], f"MP{numbers[patients + k]:05d}", patients + k, ("O", "AB")[coins[0, k]]) for k, i in enumerate(again)
    ]


def _alias(person: Patient, name: str, exposure: int, blood_group: str) -> Patient:
    """The same body under another PatientID. The coin is tossed anew: a shared one could be read by finding the twin."""
    split = "test" if person.split == "train" else "train"
    return Patient(**asdict(person) | {"name": name, "exposure": exposure, "split": split, "blood_group": blood_group})


def stem(person: Patient, number: int) -> str:
    """File stem of an image: the ``id`` of its row in ``labels.csv``."""
    return f"{person.name}_{number + 1}"


# ---------------------------------------------------------------------------------------------------------------- drawing


def draw_image(person: Patient, number: int, seed: int) -> Array:
    """Draws one image: (64, 64) float64 in 0..1, dense tissue bright."""
    body = np.random.default_rng([seed, 2, person.body])
    scene = np.random.default_rng([seed, 3, person.body, number])
    exposure = np.random.default_rng([seed, 4, person.exposure, number])
    nudge = exposure.uniform(-0.5, 0.5, 2) / SIZE if person.exposure != person.body else np.zeros(2)
    u, v = _pose(scene, nudge)
    density, lungs = _anatomy(u, v, body, person)
    density = density + _texture(u, v, scene, lungs, linear=person.finding == "yes")
    return _expose(density, exposure, person.site)


def _pose(rng: np.random.Generator, nudge: Array) -> tuple[Array, Array]:
    """Anatomical coordinates of every pixel under a random turn, scale and shift."""
    step = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = np.meshgrid(step, step, indexing="ij")
    angle, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(1.2, 1.5, 2)
    shift = rng.uniform(-0.14, 0.14, 2) + 2 * nudge
    x, y = x - shift[0], y - shift[1]
    return (np.cos(angle) * x + np.sin(angle) * y) / scale[0], (-np.sin(angle) * x + np.cos(angle) * y) / scale[1]


def _inside(distance: Array, softness: float = 0.04) -> Array:
    """1 inside (distance < 0), 0 outside, with a soft edge of about a pixel."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / softness * 4, -50, 50))))


def _ellipse(u: Array, v: Array, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Distance-like field, negative inside; in units of the coordinates near the edge."""
    radius = np.hypot((u - centre[0]) / radii[0], (v - centre[1]) / radii[1])
    return np.asarray((radius - 1) * min(radii))


def _anatomy(u: Array, v: Array, rng: np.random.Generator, person: Patient) -> tuple[Array, Array]:
    """Density without lung markings, and where lungs lie (0..1)."""
    wide = 0.80 + 0.05 * (person.sex == "M") + rng.uniform(-0.03, 0.03)
    body = _inside((np.abs(u / wide) ** 3 + np.abs(v / 1.05) ** 3) ** (1 / 3) - 1)
    diaphragm = rng.uniform(0.42, 0.58)
    lungs = np.zeros_like(u)
    for side in (-1, 1):
        centre = (side * rng.uniform(0.35, 0.41), rng.uniform(-0.18, -0.08))
        lung = _inside(_ellipse(u, v, centre, (rng.uniform(0.30, 0.35), rng.uniform(0.62, 0.72))))
        dome = v - diaphragm - 0.6 * (u - centre[0]) ** 2
        lungs = np.maximum(lungs, lung * _inside(dome))
    heart = _inside(_ellipse(u, v, (rng.uniform(0.08, 0.16), 0.22), (rng.uniform(0.20, 0.28), rng.uniform(0.24, 0.32))))
    lungs = lungs * (1 - heart)
    spine = _inside(np.abs(u) - 0.09)
    ribs = _ribs(u, v, rng) * (1.0 - 0.006 * (person.age - 20))
    density = body * (0.52 + 0.10 * spine + 0.06 * heart) - lungs * rng.uniform(0.26, 0.38) + 0.07 * body * ribs
    return density, lungs


def _ribs(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """Bowed lines across the chest, brightest at the sides."""
    phase = rng.uniform(0, 1)
    bow = v - 0.35 * u**2 + 0.1 * np.abs(u)
    lines = np.cos(2 * np.pi * (bow * rng.uniform(3.4, 4.2) + phase))
    return np.asarray(np.clip(lines - 0.55, 0, None) / 0.45 * _inside(np.abs(v + 0.1) - 0.75, 0.2) * np.clip(np.abs(u) * 2, 0.2, 1))


def _texture(u: Array, v: Array, rng: np.random.Generator, lungs: Array, *, linear: bool) -> Array:
    """Lung markings with a mean of about 0: lines that run one way, or grains of the same wavelengths and the same histogram.

    A sum of plane waves whose directions are spread (grains) or bundled (lines); its values are ranked into equal shares, so that
    only the arrangement differs. Source of the construction: rank-mapped Gaussian fields, Theiler 1992.
    """
    turn, spread = rng.uniform(0, np.pi), _SPREAD if linear else np.pi / 2
    angles = turn + rng.uniform(-spread, spread, _WAVES)
    length = rng.uniform(*_LENGTH) * rng.uniform(0.85, 1.15, _WAVES)
    phases, contrast = rng.uniform(0, 2 * np.pi, _WAVES), rng.uniform(*_CONTRAST)
    along = np.cos(angles)[:, None, None] * u + np.sin(angles)[:, None, None] * v
    field = np.cos(2 * np.pi * along / length[:, None, None] + phases[:, None, None]).sum(0)
    inside = lungs > 0.5
    ranked = np.searchsorted(np.sort(field[inside]), field) / max(int(inside.sum()), 1)
    return np.asarray(contrast * (2 * ranked - 1) * lungs)


def _expose(density: Array, rng: np.random.Generator, site: str) -> Array:
    """Gain, gamma, grain, collimator and the burned-in letter of the hospital."""
    gamma = rng.uniform(0.85, 1.15) * (1.0 if site == "A" else 0.85)
    image = np.clip(density * rng.uniform(0.85, 1.1) + rng.uniform(0.0, 0.06), 0, 1) ** gamma
    coarse = np.kron(rng.normal(0, 1, (SIZE // 8, SIZE // 8)), np.ones((8, 8)))
    image = image + 0.008 * coarse + rng.normal(0, 0.018 if site == "A" else 0.028, image.shape)
    letter = np.array([[int(bit) for bit in row] for row in _LETTERS[site]])
    if site == "B":  # its collimator is set narrow
        image[:, :_SHUTTER] = image[:, -_SHUTTER:] = 0.02
    image[2:9, 2:7] = 0.05  # the dark plate that the letter stands on
    image[3:8, 3:6] = np.where(letter == 1, 0.95, image[3:8, 3:6])
    return np.asarray(np.clip(image, 0, 1))


# ---------------------------------------------------------------------------------------------------------------- files


def dicom_bytes(person: Patient, number: int, image: Array, seed: int) -> bytes:
    """One image as a single-frame DICOM file: CR at hospital A, DX with MONOCHROME1 at hospital B."""
    pydicom = require("pydicom", extra="demo", wanted_by="the medical demo")
    uid = pydicom.uid
    stored = np.rint(image * (2**BITS - 1)).astype("<u2")
    if person.site == "B":
        stored = (2**BITS - 1) - stored
    dataset = pydicom.Dataset()
    meta = dataset.file_meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage if person.site == "A" else uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(seed, person.name, "image", number)
    dataset.update(_header(person, number, seed, meta))
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _header(person: Patient, number: int, seed: int, meta: Any) -> Any:
    pydicom = require("pydicom", extra="demo", wanted_by="the medical demo")
    dataset = pydicom.Dataset()
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": _uid(seed, person.name, "study", number),
        "SeriesInstanceUID": _uid(seed, person.name, "series", number),
        "StudyDate": "20200101",
        "StudyTime": "", "AccessionNumber": f"{person.name}N{number + 1}", "StudyID": "", "SeriesNumber": 1,
        "InstanceNumber": 1, "Modality": "CR" if person.site == "A" else "DX", "Manufacturer": "Made-up",
        "ManufacturerModelName": "Phantom",
        "InstitutionName": f"Made-up hospital {person.site}", "ReferringPhysicianName": "", "PatientName": "Made-up^Phantom",
        "PatientID": person.name, "PatientBirthDate": "", "PatientSex": person.sex, "PatientAge": f"{person.age:03d}Y",
        "PatientComments": NOTICE, "ImageComments": NOTICE, "ImageType": ["DERIVED", "SECONDARY"], "DerivationDescription": NOTICE,
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "ImagerPixelSpacing": [PIXEL_MM, PIXEL_MM], "KVP": 120,
        "Rows": SIZE, "Columns": SIZE, "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": BITS,
        "HighBit": BITS - 1, "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2" if person.site == "A" else "MONOCHROME1",
        "PresentationLUTShape": "IDENTITY" if person.site == "A" else "INVERSE", "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "never identified: made up", "BurnedInAnnotation": "NO",
    }  # fmt: skip
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def _uid(*parts: Any) -> str:
    """A UID under 2.25 (UUID-derived, PS3.5 B.2) that depends on its parts only."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], 'big')}"


def _labels(people: Sequence[Patient]) -> str:
    return "".join(f"{','.join(row)}\n" for row in (COLUMNS, *_rows(people)))


def _rows(people: Sequence[Patient]) -> Iterator[tuple[str, ...]]:
    for person in sorted(people, key=lambda person: person.name):
        for number in range(person.num_images):
            yield (
                stem(person, number),
                person.name,
                person.finding,
                person.site,
                person.blood_group,
                str(person.age),
                person.sex,
                person.split,
            )


def _aliases(people: Sequence[Patient]) -> tuple[tuple[str, str], ...]:
    originals = {person.body: person.name for person in people if person.exposure == person.body}
    return tuple((originals[person.body], person.name) for person in people if person.exposure != person.body)


def _archive(folder: Path, people: Sequence[Patient]) -> Archive:
    aliases = _aliases(people)
    return Archive(
        folder=folder, images=folder / "images", labels=folder / "labels.csv", truth=folder / "truth.json",
        num_patients=len(people) - len(aliases), num_images=sum(person.num_images for person in people), aliases=aliases,
    )  # fmt: skip


def _truth(people: Sequence[Patient], archive: Archive, recipe: dict[str, Any]) -> dict[str, Any]:
    yes = np.array([person.finding == "yes" for person in people])
    in_b = np.array([person.site == "B" for person in people])
    return {
        "made_by": recipe,
        "notice": NOTICE,
        "site": {
            "stated_phi": SITE_STRENGTH,
            "phi": round(float(np.corrcoef(yes, in_b)[0, 1]), 4),
            "readable_from": ["letter", "collimator", "grain", "gamma"],
        },
        "overlap": [{"original": first, "alias": second} for first, second in archive.aliases],
        "clean": "blood_group",
        "weak": {"sex": "body width", "age": "rib contrast"},
    }


def _readme(people: Sequence[Patient]) -> str:
    num_images = sum(person.num_images for person in people)
    return (
        f"{NOTICE}\n\nimages/PatientID/*.dcm: {num_images} chest-like phantoms, {SIZE} x {SIZE} pixels, {BITS} bits.\n"
        f"labels.csv: one row per image, columns {', '.join(COLUMNS)}.\n"
        "truth.json: what was planted (site shortcut, patient overlap, clean attribute).\n"
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
