"""Names, ids, dates and free text in more than fifty DICOM tags, private ones, sequences, UIDs, file and folder names: none of them reaches
a store, its log, or the list of what was skipped; every byte is searched, in every coding, decompressed."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from datetime import date

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinodomain.ingest import IngestPlan, ingest, inspect, join_labels
from dinodomain.ingest.private import read_private_table
from dinodomain.ingest.secret import read_secret
from dinodomain.lineage import date_shift, pseudonym
from dinodomain.store import open_store

pydicom = pytest.importorskip("pydicom")
zarr = pytest.importorskip("zarr")

_TAGS = """
PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName PatientAddress
PatientTelephoneNumbers PatientComments EthnicGroup Occupation AdditionalPatientHistory MedicalRecordLocator MilitaryRank
BranchOfService CountryOfResidence RegionOfResidence PatientReligiousPreference MedicalAlerts Allergies
InsurancePlanIdentification ResponsiblePerson ResponsibleOrganization InstitutionName InstitutionAddress
InstitutionalDepartmentName StationName ReferringPhysicianName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers
PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName RequestingPhysician RequestingService PhysiciansOfRecord
AdmittingDiagnosesDescription StudyID AccessionNumber StudyDescription SeriesDescription ProtocolName
RequestedProcedureDescription PerformedProcedureStepDescription PerformedProcedureStepID RequestedProcedureID ImageComments
DerivationDescription DeviceSerialNumber DetectorID PlateID CassetteID GantryID TextComments CurrentPatientLocation
PatientInstitutionResidence AdmissionID ContrastBolusAgent AcquisitionDeviceProcessingDescription SoftwareVersions
ContentCreatorName VerifyingObserverName WindowCenterWidthExplanation BodyPartExamined ViewPosition Laterality
RetrieveAETitle ScheduledStationAETitle PatientSpeciesDescription
"""
_UIDS = "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID InstanceCreatorUID DeviceUID"

TEXTS = {name: f"ZQ{number:03d}{name[:6].upper()}" for number, name in enumerate(_TAGS.split())}
"""Tag to the text planted in it."""

UIDS = {name: f"1.2.826.0.1.3680043.8.498.7770{number}" for number, name in enumerate(_UIDS.split())}

OTHERS = ("ZQ900Private", "ZQ901Unknown", "ZQ902Sequence", "ZQ903Nested", "ZQ904Overlay", "ZQ905Label", "ZQ906ÜnlüŞebnem", "ZQ907山田",
          "ZQ908File", "ZQ909Folder", "ZQ910Refused", "ZQ911Cut", "ZQ912LeftOut", "ZQ913NoDicom", "ZQ914Person")  # fmt: skip

BORN, SEEN, LATER = "19310203", "20110415", "20110525"
DATES = tuple(form for day in (BORN, SEEN, LATER) for form in (day, f"{day[:4]}-{day[4:6]}-{day[6:]}", f"{day[6:]}.{day[4:6]}.{day[:4]}"))
TIMES = ("031415.926", "03:14:15")


def dataset(modality: str, *, day: str = SEEN, uid: str = "", **changes) -> pydicom.Dataset:
    """A header with something planted in every tag that could name a person."""
    made = pydicom.Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for name, text in TEXTS.items():
        setattr(made, name, text)
    for name, value in UIDS.items():
        setattr(made, name, value)
    made.PatientName = f"{TEXTS['PatientName']}^{OTHERS[6]}={OTHERS[7]}"
    made.PatientBirthDate = BORN
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate", "DateOfLastCalibration"):
        setattr(made, name, day)
    for name in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "PatientBirthTime"):
        setattr(made, name, TIMES[0])
    made.Modality, made.SOPClassUID = modality, {"DX": "1.2.840.10008.5.1.4.1.1.1.1"}.get(modality, "1.2.840.10008.5.1.4.1.1.2")
    made.SOPInstanceUID = f"{UIDS['SOPInstanceUID']}.{uid or '1'}"
    made.ImageType, made.PatientSex, made.PatientAge = ["ORIGINAL", "PRIMARY", "AXIAL"], "F", "080Y"
    made.Manufacturer, made.ManufacturerModelName = "ACME", "Scanner 5"
    private = made.private_block(0x0009, "ACME PRIVATE", create=True)
    private.add_new(0x01, "LO", OTHERS[0])
    private.add_new(0x02, "UN", OTHERS[1].encode())
    inner = pydicom.Dataset()
    inner.ScheduledProcedureStepDescription, inner.PatientName = OTHERS[2], OTHERS[3]
    outer = pydicom.Dataset()
    outer.RequestedProcedureComments, outer.ModifiedAttributesSequence = OTHERS[2], [inner]
    made.RequestAttributesSequence, made.OtherPatientIDsSequence = [outer], [inner]
    made.add_new(0x60004000, "LT", OTHERS[4])
    made.add_new(0x60001500, "LO", OTHERS[5])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def with_pixels(made: pydicom.Dataset, pixels: np.ndarray) -> pydicom.Dataset:
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if pixels.ndim == 3 else (1, "MONOCHROME2")
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    return made


def save(path, made) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.SourceApplicationEntityTitle = OTHERS[14]
    pydicom.dcmwrite(path, made, enforce_file_format=True)


def noise(seed: int, shape) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 4000, shape).astype(np.uint16)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two radiographs of one patient, one of another, a CT series, and files that are refused or left out for all sorts of reasons."""
    root = tmp_path_factory.mktemp("archive") / OTHERS[9]
    with pydicom.config.disable_value_validation():
        fill(root)
    return root


def fill(root) -> None:
    base = root / TEXTS["PatientID"]
    save(base / f"{OTHERS[8]}.dcm", with_pixels(dataset("DX", uid="1"), noise(1, (40, 48))))
    later = dataset("DX", day=LATER, uid="2", PatientOrientation=["L", "F"])
    save(base / OTHERS[8] / "0002", with_pixels(later, noise(2, (40, 48))))
    other = dataset("DX", uid="3", PatientID="ZQ950Other", IssuerOfPatientID="", StudyInstanceUID=f"{UIDS['StudyInstanceUID']}.3")
    save(root / "ZQ950Other.dcm", with_pixels(other, noise(3, (40, 48))))
    colour = dataset("DX", uid="4", PatientName=OTHERS[10])
    save(root / f"{OTHERS[10]}.dcm", with_pixels(colour, noise(4, (20, 20, 3)).astype(np.uint8)))
    derived = dataset("DX", uid="5", ImageType=["DERIVED", "SECONDARY", OTHERS[12]], PatientName=OTHERS[12])
    save(root / f"{OTHERS[12]}.dcm", with_pixels(derived, noise(5, (40, 48))))
    whole = (root / "ZQ950Other.dcm").read_bytes()
    (root / f"{OTHERS[11]}.dcm").write_bytes(whole[: len(whole) - 900])
    (root / f"{OTHERS[13]}.dcm").write_text(f"{OTHERS[13]} is no DICOM")
    for number in range(6):
        changes = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2.0 * number], "PixelSpacing": [1, 1],
                   "RescaleSlope": 1, "RescaleIntercept": -1024, "SliceThickness": 2, "InstanceNumber": number + 1}  # fmt: skip
        series = f"{UIDS['SeriesInstanceUID']}.9"
        made = dataset("CT", uid=f"9{number}", SeriesInstanceUID=series, **changes)
        save(root / "ct" / f"{TEXTS['PatientName']}{number}.dcm", with_pixels(made, noise(10 + number, (32, 32))))
    single = copy.deepcopy(dataset("CT", uid="99", SeriesInstanceUID=f"{UIDS['SeriesInstanceUID']}.10", PatientName=OTHERS[10]))
    save(root / "ct one" / f"{OTHERS[10]}.dcm", with_pixels(single, noise(20, (32, 32))))


def planted() -> list[str]:
    return [*TEXTS.values(), *UIDS.values(), *OTHERS, *DATES, *TIMES, "ZQ950Other"]


def everything(root) -> bytes:
    """All paths and bytes below a folder, and what is inside parquet files and arrays once it is decompressed."""
    parts = []
    for path in sorted(root.rglob("*")):
        parts.append(path.relative_to(root).as_posix().encode())
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            read = pq.read_table(path)
            parts += [json.dumps(read.to_pylist(), default=str, ensure_ascii=False).encode(), str(read.schema.metadata).encode()]
        if path.name == "zarr.json" and json.loads(path.read_bytes())["node_type"] == "array":
            parts.append(zarr.open_array(path.parent, mode="r")[...].tobytes())
    return b"\n".join(parts).lower()


def found(data: bytes, texts) -> set[str]:
    """The texts that a blob holds in any coding, upper or lower case."""

    def coded(text):
        for coding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "shift_jis"):
            try:
                yield text.encode(coding).lower()
            except UnicodeEncodeError:
                continue
        yield json.dumps(text).strip('"').encode().lower()

    return {text for text in texts if any(form in data for form in coded(text))}


def take(archive, tmp_path, domain, **plan):
    plan = IngestPlan(domain=domain, source=str(archive), store=str(tmp_path / "store"), workers=0, **plan)
    return ingest(plan, progress=lambda done, total: None)


def test_more_than_fifty_tags_are_planted_and_the_search_finds_all_of_it_in_the_files(archive):
    assert len(TEXTS) + len(UIDS) + 12 > 75
    data = b"\n".join(
        path.relative_to(archive.parent).as_posix().encode() + path.read_bytes() for path in archive.rglob("*") if path.is_file()
    )
    wanted = set(planted()) - {form for form in DATES if not form.isdigit()} - {TIMES[1]}
    assert found(data.lower(), wanted) == wanted


@pytest.mark.parametrize(("domain", "sources"), [("xray", 3), ("ct", 1)])
def test_no_byte_of_a_store_or_of_the_log_names_anybody(tmp_path, archive, domain, sources, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    summary = take(archive, tmp_path, domain, crosswalk=True, licence="CC0")
    assert summary.added == sources
    assert len(summary.skipped) >= 4
    logged = caplog.text + "".join(capfd.readouterr())
    assert found(everything(tmp_path / "store"), planted()) == set()
    assert found(logged.lower().encode(), planted()) == set()
    assert not (tmp_path / "store.partial").exists()


def test_an_archive_file_of_the_same_leaves_no_name_either(tmp_path, archive, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / OTHERS[8]), "zip", archive)
    assert take(tmp_path / "in", tmp_path, "xray").added == 3
    assert found(everything(tmp_path / "store") + caplog.text.encode().lower(), planted()) == set()
    assert sorted(path.name for path in tmp_path.glob("store*")) == ["store", "store.private"]


def test_no_byte_of_the_working_folder_names_anybody(tmp_path, archive, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dinodomain.ingest.finalise.write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        take(archive, tmp_path, "xray")
    assert (tmp_path / "store.partial" / "tree" / "index.parquet").exists()
    assert found(everything(tmp_path / "store.partial"), planted()) == set()


def test_what_is_written_of_a_look_into_the_store_names_nobody(tmp_path, archive):
    take(archive, tmp_path, "xray")
    told = inspect(tmp_path / "store", tmp_path / "look", names=True)
    assert found(everything(tmp_path / "look"), planted()) == set()
    assert found(inspect(tmp_path / "store").text().encode().lower(), planted()) == set()
    assert any(OTHERS[13] in row["uri"] for row in told.skipped_files)


def test_true_days_are_gone_and_intervals_are_kept(tmp_path, archive):
    take(archive, tmp_path, "xray")
    secret, store = read_secret(tmp_path / "store.private" / "secret"), open_store(tmp_path / "store")
    unit = f"{TEXTS['IssuerOfPatientID']}\\{TEXTS['PatientID']}"
    days = sorted(date.fromisoformat(row["acquired"]) for row in store.index.to_pylist() if row["unit"] == pseudonym(secret, unit))
    assert [(day - days[0]).days for day in days] == [0, 40]
    assert (days[0] - date(2011, 4, 15)).days == date_shift(secret, unit)
    assert {json.loads(text)["year"] for text in store.column("fields")} == {2011}


def test_site_and_station_are_kept_as_keyed_hashes(tmp_path, archive):
    take(archive, tmp_path, "xray")
    secret, store = read_secret(tmp_path / "store.private" / "secret"), open_store(tmp_path / "store")
    fields = [json.loads(text) for text in store.column("fields")]
    assert {field["site"] for field in fields} == {pseudonym(secret, TEXTS["InstitutionName"])}
    assert {field["station"] for field in fields} == {pseudonym(secret, TEXTS["StationName"])}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("PatientID", "ZQ950Other"),
        ("StudyInstanceUID", f"{UIDS['StudyInstanceUID']}.3"),
        ("SOPInstanceUID", f"{UIDS['SOPInstanceUID']}.3"),
    ],
)
def test_hospital_spreadsheets_join_by_dicom_fields_at_ingest_and_for_labels_alike(tmp_path, archive, column, value):
    (tmp_path / "ris.csv").write_text(f"{column};finding\n {value} ;yes\n")
    take(archive, tmp_path, "xray", metadata=str(tmp_path / "ris.csv"), join=column, fields=("finding",))
    store = open_store(tmp_path / "store")
    labels = join_labels(store, tmp_path / "ris.csv", column, "finding")
    at_ingest = [row for row, text in enumerate(store.column("fields")) if json.loads(text).get("finding") == "yes"]
    assert labels.rows.tolist() == at_ingest
    assert len(at_ingest) == 1


def test_the_crosswalk_leads_from_every_source_of_the_store_to_its_patient(tmp_path, archive):
    take(archive, tmp_path, "xray", crosswalk=True)
    rows = read_private_table(tmp_path / "store.private" / "crosswalk.csv")
    store = open_store(tmp_path / "store")
    assert [row["source_id"] for row in rows] == store.column("source_id").tolist()
    assert [row["unit"] for row in rows] == store.column("unit").tolist()
    assert {row["PatientID"] for row in rows} == {TEXTS["PatientID"], "ZQ950Other"}
    assert {row["path"] for row in rows} >= {"ZQ950Other.dcm"}
    assert all(row["StudyInstanceUID"].startswith(UIDS["StudyInstanceUID"]) for row in rows)
