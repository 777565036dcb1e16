"""DICOMweb against a real server: Orthanc with its DICOMweb plug-in (Debian packages ``orthanc`` and ``orthanc-dicomweb``)."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store
from dinodomain.types import Select, SourceRef
from dinodomain_medical import ct, mri, xray

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])

_PLUGINS = [Path(folder) / "libOrthancDicomWeb.so" for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins")]
_USER, _PASSWORD = "reader", "of tests"
_START_SECONDS = 30


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The server's port."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugin = next((path for path in _PLUGINS if path.exists()), None)
    if program is None or plugin is None:
        pytest.skip("needs Orthanc with its DICOMweb plug-in: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    port = _free_port()
    (folder / "configuration.json").write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "HttpPort": port,
                "DicomServerEnabled": False,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": True,
                "RegisteredUsers": {_USER: _PASSWORD},
                "Plugins": [str(plugin)],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
        )
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "configuration.json")], stdout=log, stderr=log)
        try:
            _wait(process, port, folder / "log")
            yield port
        finally:
            process.terminate()
            process.wait(20)


def _wait(process, port, log):
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"Orthanc ended:\n{log.read_text()[-2000:]}"
        try:
            _post(port, "/tools/find", b'{"Level": "Patient", "Query": {}}')
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"Orthanc does not answer:\n{log.read_text()[-2000:]}")


def _post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    token = base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
    connection.request("POST", path, body, {"Authorization": f"Basic {token}"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return json.loads(text)


@pytest.fixture(scope="module")
def archive(orthanc, tmp_path_factory, write_series, write_dicom):
    """Files that were uploaded: two CT series of one study (one compressed), an MR series with two echoes, two radiographs, a scout."""
    root = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(3)
    one, two = (rng.integers(0, 3000, (6, 64, 48)).astype(np.uint16) for _ in range(2))
    study = {
        "StudyInstanceUID": "1.2.826.0.1.1",
        "PatientID": "A^1",
        "PatientName": "Doe^Jane",
        "StudyDate": "20200304",
        "AccessionNumber": "X",
    }
    kept = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    write_series(
        root / "ct" / "1", one, SeriesInstanceUID="1.2.826.0.1.1.1", RescaleSlope="0.5", SeriesDescription="Thorax", **study, **kept
    )
    for path in write_series(root / "ct" / "2", two, SeriesInstanceUID="1.2.826.0.1.1.2", **study, **kept):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(path)
    write_dicom(
        root / "ct" / "scout",
        one[0],
        Modality="CT",
        SeriesInstanceUID="1.2.826.0.1.1.3",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        **study,
    )
    other = {"StudyInstanceUID": "1.2.826.0.1.2", "PatientID": "B2", "StudyDate": "20210101"}
    for echo in (1, 2):
        tags = {"EchoNumbers": echo, "EchoTime": 10 * echo, "SeriesInstanceUID": "1.2.826.0.1.2.1", "Modality": "MR"}
        write_series(root / "mr" / f"{echo}", two[:4] + echo, **tags, **other, **kept)
    for number in range(2):
        tags = {"Modality": "DX", "SeriesInstanceUID": "1.2.826.0.1.2.2", "PresentationIntentType": "FOR PRESENTATION"}
        write_dicom(root / "xr" / f"{number}", one[number], **tags, **other, **kept)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            assert _post(orthanc, "/instances", path.read_bytes())["Status"] == "Success"
    return root


@pytest.fixture
def address(orthanc, archive, monkeypatch):
    monkeypatch.setenv("DINODOMAIN_DICOMWEB_USER", _USER)
    monkeypatch.setenv("DINODOMAIN_DICOMWEB_PASSWORD", _PASSWORD)
    for name in ("TOKEN", "RATE"):
        monkeypatch.delenv(f"DINODOMAIN_DICOMWEB_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return f"dicomweb+http://127.0.0.1:{orthanc}/dicom-web"


def _sources(domain, source):
    return [item for item in domain.discover(str(source), Select()) if isinstance(item, SourceRef)]


def _by_instance(domain, source, full):
    records = {ref.instance: (ref, domain.read(ref)) for ref in _sources(domain, source)}
    return {instance: (ref, full(record), record) for instance, (ref, record) in records.items()}


@pytest.mark.parametrize(("name", "folder"), [("ct", "ct"), ("mri", "mr"), ("xray", "xr")])
def test_what_comes_from_orthanc_is_what_lies_in_the_files(address, archive, full, name, folder):
    domain = {"ct": ct, "mri": mri, "xray": xray}[name]
    there, here = _by_instance(domain, address, full), _by_instance(domain, archive / folder, full)
    assert len(there) == 2
    assert there.keys() == here.keys()
    for instance, (ref, pixels, record) in there.items():
        plain, expected, twin = here[instance]
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.dtype == expected.dtype
        assert (record.affine, record.spacing, record.scale, record.offset, record.channels) == (
            twin.affine, twin.spacing, twin.scale, twin.offset, twin.channels,
        )  # fmt: skip
        assert (record.fields, record.acquired) == (twin.fields, twin.acquired)
        assert (ref.unit, ref.quantity) == (plain.unit, plain.quantity)
        assert {name: ref.facts[name] for name in ("Modality", "ImageType") if name in plain.facts} == {
            name: plain.facts[name] for name in ("Modality", "ImageType") if name in plain.facts
        }


def test_an_ingest_from_orthanc_gives_the_pixels_of_an_ingest_from_files(address, archive, tmp_path):
    web = ingest(
        IngestPlan(
            domain="ct", source=f"{address}?ModalitiesInStudy=CT&StudyDate=20200101-20201231", store=str(tmp_path / "web"), workers=1
        )
    )
    plain = ingest(IngestPlan(domain="ct", source=str(archive / "ct"), store=str(tmp_path / "plain"), workers=0))
    assert (web.added, plain.added) == (2, 2)
    stores = [open_store(tmp_path / name) for name in ("web", "plain")]
    for column in ("content_hash", "shape", "scale", "offset", "affine", "fields", "stages", "mean", "low", "high"):
        rows = [sorted(map(str, store.index[column].to_pylist())) for store in stores]
        assert rows[0] == rows[1], column
    again = ingest(IngestPlan(domain="ct", source=address, store=str(tmp_path / "web"), workers=0))
    assert (again.added, again.present) == (0, 2)
    for place in (tmp_path / "web", tmp_path / "web.private"):
        for path in place.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert _PASSWORD.encode() not in content, path


def test_orthanc_pages_filters_and_refuses_strangers(address, monkeypatch):
    assert _sources(ct, f"{address}?PatientID=B2") == []
    assert len(_sources(mri, f"{address}?PatientID=B*")) == 2
    assert [one.source_id for one in _sources(ct, f"{address}?SeriesDescription=Thorax")] == ["1.2.826.0.1.1/1.2.826.0.1.1.1"]
    monkeypatch.setenv("DINODOMAIN_DICOMWEB_PASSWORD", "wrong")
    with pytest.raises(UserError, match="wants other credentials"):
        list(ct.discover(address, Select()))
    monkeypatch.setenv("DINODOMAIN_DICOMWEB_PASSWORD", _PASSWORD)
    with pytest.raises(UserError, match="check the path"):
        list(ct.discover(address.replace("dicom-web", "dicomweb"), Select()))
