"""DICOMweb against a server in this process that can be told to fail; a real one is in test_orthanc.py."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import socket
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store
from dinodomain.types import Select, SourceRef
from dinodomain_medical import ct, dicomweb, dicomweb_http, mri, xray
from dinodomain_medical.dicom_header import read_headers
from dinodomain_medical.dicomweb_http import Cut, Rate, Refused, Server, retry_after, save_multipart

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])

BOUNDARY = "a boundary/1"


class FakeServer(ThreadingHTTPServer):
    """Serves DICOM files by QIDO-RS and WADO-RS; ``faults`` maps a part of a path to what goes wrong there, in order."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        for path in files:
            dataset = pydicom.dcmread(path)
            uids = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID))
            self.files[uids] = (path, dataset)
        self.faults, self.asked, self.cap, self.ignores_offset, self.authorization = {}, [], 1000, False, None

    @property
    def url(self):
        return f"dicomweb+http://127.0.0.1:{self.server_address[1]}/rs"

    def rows(self, level, query, study="", series=""):
        met = {}
        for uids, (_, dataset) in sorted(self.files.items()):
            if uids[: level - 1] == tuple(filter(None, (study, series)))[: level - 1] and all(
                str(dataset.get(key, "")) == value
                for key, value in query.items()
                if key not in ("limit", "offset", "ModalitiesInStudy", "fuzzymatching")
            ):
                met[uids[:level]] = {"0020000D": {"vr": "UI", "Value": [uids[0]]}} | (
                    {"0020000E": {"vr": "UI", "Value": [uids[1]]}, "00080060": {"vr": "CS", "Value": [str(dataset.Modality)]}}
                    if level == 2
                    else {}
                )
        rows = list(met.values())
        offset = 0 if self.ignores_offset else int(query.get("offset", 0))
        return rows[offset : offset + min(int(query.get("limit", 1000)), self.cap)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        self.server.asked.append(self.path)
        for part, faults in self.server.faults.items():
            if part in address.path and faults:
                fault = faults.pop(0)
                if fault is not None:
                    return self.fail(fault)
                break
        if self.server.authorization and self.headers.get("Authorization") != self.server.authorization:
            return self.answer(401, b"who are you", "text/plain")
        kind, body = self.found(address.path.removeprefix("/rs/").split("/"), dict(parse_qsl(address.query)))
        return self.answer(200, body, kind) if kind else self.answer(404, b"", "text/plain")

    def found(self, path, query):
        match path:
            case ["studies"]:
                return "application/dicom+json", json.dumps(self.server.rows(1, query)).encode()
            case ["studies", study, "series"]:
                return "application/dicom+json", json.dumps(self.server.rows(2, query, study)).encode()
            case ["studies", study, "series", series, "metadata"]:
                return "application/dicom+json", json.dumps([metadata(path) for path in self.of(study, series)]).encode()
            case ["studies", study, "series", series]:
                return self.multipart(self.of(study, series))
            case ["studies", study, "series", series, "instances", sop]:
                return self.multipart([self.server.files[study, series, sop][0]])
        return None, b""

    def of(self, study, series):
        return [path for uids, (path, _) in sorted(self.server.files.items()) if uids[:2] == (study, series)]

    def multipart(self, paths):
        assert self.headers["Accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
        head = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + path.read_bytes() for path in paths) + f"\r\n--{BOUNDARY}--\r\n".encode()
        return f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"', body[2:]

    def answer(self, status, body, kind, *, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def fail(self, fault):
        path = urlsplit(self.path).path.removeprefix("/rs/").split("/")
        if isinstance(fault, tuple):
            status, headers = fault
            return self.answer(status, b"", "text/plain", **headers)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if fault == "html":
            return self.answer(200, b"<html>log in</html>", "text/html")
        kind, body = self.found(path, dict(parse_qsl(urlsplit(self.path).query)))
        self.close_connection = True
        if fault == "slow":
            time.sleep(0.6)
            return self.answer(200, body, kind)
        if fault == "bare":
            return self.answer(200, self.of(*path[1::2])[0].read_bytes(), "application/dicom")
        if fault == "cut":  # neither a length nor chunks: only the closing delimiter tells
            return self.answer(200, body[: len(body) * 2 // 3], kind, length=-1)
        assert fault == "short"
        return self.answer(200, body[: len(body) * 2 // 3], kind, length=len(body))


def metadata(path):
    dataset = pydicom.dcmread(path)
    body = dataset.to_json_dict(bulk_data_threshold=1, bulk_data_element_handler=lambda _: "http://127.0.0.1/bulk")
    assert "BulkDataURI" in body["7FE00010"]
    return body


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    monkeypatch.setattr(dicomweb_http, "FIRST_PAUSE", 0.01)
    for name in ("TOKEN", "USER", "PASSWORD", "RATE"):
        monkeypatch.delenv(f"DINODOMAIN_DICOMWEB_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def serve():
    servers = []

    def start(files):
        server = FakeServer(files)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(tmp_path, slices, write_series):
    return write_series(tmp_path / "files" / "se1", slices, SeriesDescription="chest")


@pytest.fixture
def server(serve, files):
    return serve(files)


SERIES = "studies/1.2/series/1.2.3"


def test_a_series_is_the_same_from_a_server_and_from_files(server, files, found, full, scratch):
    (one,), refused = found(ct, server.url, scratch=str(scratch))
    (plain,), _ = found(ct, files[0].parent)
    assert refused == []
    assert one.source_id == "1.2/1.2.3"
    assert one.keys["path"] == "1.2/1.2.3"
    assert one.keys["folder"] == "1.2.3"
    assert {name: one.keys[name] for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")} == {
        name: plain.keys[name] for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    }
    assert (one.unit, one.instance, one.quantity) == (plain.unit, plain.instance, plain.quantity)
    assert all(uri.startswith(f"{server.url}/{SERIES}/instances/") for uri in one.uris)
    assert one.facts["requests"] == 1
    assert one.facts["bytes_in"] == 5 * 6 * 8 * 2
    assert not any(f"{SERIES}/" in path and "metadata" not in path for path in server.asked), "discovery asks for headers only"
    record, twin = ct.read(one), ct.read(plain)
    np.testing.assert_array_equal(full(record), full(twin))
    assert (record.affine, record.scale, record.fields) == (twin.affine, twin.scale, twin.fields)
    assert list(scratch.iterdir()) == []


def test_without_scratch_what_was_fetched_is_removed_too(server, found, tmp_path, monkeypatch):
    monkeypatch.setattr(dicomweb.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (one,), _ = found(ct, server.url)
    assert ct.read(one).shape == (1, 5, 6, 8)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_expb.dcm", "JPEG2000.dcm", "rtdose.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm"])
def test_headers_from_metadata_equal_those_from_the_file(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("not among the files that pydicom ships")
    names = ("Modality", "SliceThickness", "ImageType", "StudyDate", "EchoTime")
    with dicomweb.quiet_pydicom():
        instance = json.loads(json.dumps(metadata(path)))
        made = dicomweb.headers_of(instance, Path(path), names, frames=True)
    read = read_headers(Path(path), names)
    assert len(made) == len(read)
    for ours, theirs in zip(made, read, strict=True):
        for field in ours.__slots__:
            if field not in ("pixel_print", "file_bytes", "fields"):
                assert getattr(ours, field) == getattr(theirs, field), field
        assert {**ours.fields, "lossy": None} == {**theirs.fields, "lossy": None}


def test_the_query_goes_to_the_level_it_belongs_to_and_is_paged_to_the_end(serve, tmp_path, slices, write_series, found, monkeypatch):
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    paths = []
    for number in range(5):
        tags = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1", "PatientID": f"P{number % 2}"}
        paths += write_series(tmp_path / f"{number}", slices[:2], ProtocolName="chest" if number else "head", **tags)
    server = serve(paths)
    assert [one.source_id for one in found(ct, server.url)[0]] == [f"1.{number}/1.{number}.1" for number in range(5)]
    server.asked.clear()
    sources, _ = found(ct, f"{server.url}/studies/?PatientID=P0&ProtocolName=chest&ModalitiesInStudy=CT&fuzzymatching=true")
    assert [one.source_id for one in sources] == ["1.2/1.2.1", "1.4/1.4.1"]
    searches = [dict(parse_qsl(urlsplit(path).query)) for path in server.asked if urlsplit(path).path == "/rs/studies"]
    assert [search["offset"] for search in searches] == ["0", "2", "3"]
    assert all(search["PatientID"] == "P0" and "ProtocolName" not in search and search["fuzzymatching"] == "true" for search in searches)


def test_servers_that_cap_pages_or_ignore_offsets_end(serve, tmp_path, slices, write_series, found):
    paths = []
    for number in range(4):
        tags = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1"}
        paths += write_series(tmp_path / f"{number}", slices[:2], **tags)
    server = serve(paths)
    server.cap = 3
    assert len(found(ct, server.url)[0]) == 4
    server.ignores_offset, server.cap = True, 1000
    assert len(found(ct, server.url)[0]) == 4


def test_ids_come_sorted_whatever_the_uids(serve, tmp_path, slices, write_series, found):
    paths = []
    for study in ("1.2", "1.2.3", "1.10", "1.2.30"):
        for series in (f"{study}.9", f"{study}.10"):
            paths += write_series(tmp_path / series, slices[:2], StudyInstanceUID=study, SeriesInstanceUID=series)
    ids = [one.source_id for one in found(ct, serve(paths).url)[0]]
    assert ids == sorted(ids)
    assert len(ids) == 8


@pytest.mark.parametrize("where", ["/studies", "/metadata", SERIES])
def test_faults_that_pass_are_outlived(server, found, physical, slices, scratch, where):
    faults = [(503, {}), (429, {"Retry_After": "0"}), "reset", "cut", "short"]
    if where == SERIES:
        (one,), _ = found(ct, server.url, scratch=str(scratch))
        server.faults[where] = faults
    else:
        server.faults[where] = faults
        (one,), _ = found(ct, server.url, scratch=str(scratch))
    np.testing.assert_array_equal(physical(ct.read(one)).max(), slices.max() - 1024.0)
    assert faults == [], "each was met"
    assert list(scratch.iterdir()) == []


def test_a_slow_server_is_waited_for_up_to_the_timeout(server, found, monkeypatch):
    (one,), _ = found(ct, server.url)
    server.faults[SERIES] = ["slow"]
    assert ct.read(one).shape == (1, 5, 6, 8)
    monkeypatch.setattr(dicomweb_http, "READ_SECONDS", 0.2)
    monkeypatch.setattr(dicomweb_http, "ATTEMPTS", 2)
    server.faults[SERIES] = ["slow"]
    assert ct.read(one).shape == (1, 5, 6, 8), "the second attempt is in time"
    server.faults[SERIES] = ["slow"] * 2
    with pytest.raises(BadSource, match="did not answer in time"):
        ct.read(one)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (["cut"] * 9, "cannot be fetched: its answer was cut 6 times"),
        (["reset"] * 9, "cannot be fetched: the server cannot be reached"),
        ([(503, {})] * 9, r"cannot be fetched: the server failed 6 times \(HTTP 503 Service Unavailable\)"),
        ([(404, {})], r"cannot be fetched: not there \(HTTP 404\)"),
        ([(403, {})], "the credentials may not read this"),
        ([(406, {})], r"the server refuses the request \(HTTP 406 Not Acceptable\)"),
        (["html"], "answered with text/html instead of DICOM files"),
        (["bare"], "the server sent 1 images, and 4 of 5 are missing"),
    ],
)
def test_a_series_that_cannot_be_had_whole_is_refused_and_leaves_nothing(server, found, scratch, faults, reason):
    (one,), _ = found(ct, server.url, scratch=str(scratch))
    server.faults[SERIES] = faults
    with pytest.raises(BadSource, match=reason) as error:
        ct.read(one)
    assert error.value.uri == f"{server.url}/{SERIES}"
    assert list(scratch.iterdir()) == []


def test_a_series_that_grew_shrank_or_came_twice_since_it_was_listed_is_refused(server, files, found, tmp_path, write_dicom, slices):
    (one,), _ = found(ct, server.url)
    entries = dict(server.files)
    last = max(entries)
    del server.files[last]
    with pytest.raises(BadSource, match="4 images, and 1 of 5 are missing"):
        ct.read(one)
    server.files = entries | {(*last[:2], f"{last[2]}.1"): (write_dicom(tmp_path / "new", slices[0], Modality="CT"), None)}
    with pytest.raises(BadSource, match="had 5 images when it was listed and has 6 now"):
        ct.read(one)
    server.files = entries | {(*last[:2], "9"): entries[last]}
    with pytest.raises(BadSource, match="one image twice"):
        ct.read(one)


def test_damage_inside_a_file_is_named_by_its_address(server, files, found, tmp_path):
    (one,), _ = found(ct, server.url)
    uids, (path, dataset) = sorted(server.files.items())[2]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes()[:-20])
    server.files[uids] = (damaged, dataset)
    with pytest.raises(BadSource, match="cannot be decoded") as error:
        ct.read(one)
    assert error.value.uri == f"{server.url}/{SERIES}/instances/{uids[2]}"
    assert "/tmp" not in str(error.value)


def test_one_series_that_cannot_be_listed_is_a_row_and_stops_nothing(serve, tmp_path, slices, write_series, found):
    paths = [path for uid in ("1.2.3", "1.2.4") for path in write_series(tmp_path / uid, slices, SeriesInstanceUID=uid)]
    server = serve(paths)
    server.faults["1.2.3/metadata"] = [(500, {})] * 9
    (one,), (row,) = found(ct, server.url)
    assert one.source_id == "1.2/1.2.4"
    assert row.uri == f"{server.url}/studies/1.2/series/1.2.3"
    assert row.reason == "its metadata cannot be had: the server failed 6 times (HTTP 500 Internal Server Error)"
    server.faults = {"/1.2/series": ["html"]}
    assert found(ct, server.url)[1][0].reason.startswith("its series cannot be listed: the server's answer is no DICOM JSON")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((401, {}), "set DINODOMAIN_DICOMWEB_TOKEN, or DINODOMAIN_DICOMWEB_USER and"),
        ((403, {}), "may not read this"),
        ((404, {}), "check the path: it is often /dicom-web"),
        ((400, {}), "refuses the request \\(HTTP 400 Bad Request\\); check the address and its filters"),
        ("html", "no DICOM JSON; check that the address"),
        ((429, {"Retry_After": "90000"}), "asks to wait for 90000 s"),
    ],
)
def test_a_server_that_cannot_be_asked_is_a_user_error_without_the_query(server, fault, message):
    server.faults["/studies"] = [fault] * 9
    with pytest.raises(UserError, match=message) as error:
        list(ct.discover(f"{server.url}?PatientID=SECRET1", Select()))
    assert not isinstance(error.value, BadSource)
    assert "SECRET1" not in str(error.value)


def test_a_server_that_is_not_there_is_a_user_error(monkeypatch):
    monkeypatch.setattr(dicomweb_http, "ATTEMPTS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="cannot be reached"):
        list(ct.discover(f"dicomweb+http://127.0.0.1:{port}/rs", Select()))


def test_a_certificate_that_cannot_be_verified_says_how_it_can(server):
    """Plain HTTP where TLS is expected fails in the handshake, as an unknown authority does."""
    with pytest.raises(UserError, match="REQUESTS_CA_BUNDLE"):
        list(ct.discover(server.url.replace("+http:", "+https:"), Select()))


@pytest.mark.parametrize(
    ("environment", "header"),
    [({"TOKEN": "abc.def"}, "Bearer abc.def"), ({"USER": "eve", "PASSWORD": "pass word"}, "Basic ZXZlOnBhc3Mgd29yZA==")],
)
def test_credentials_come_from_the_environment_and_go_nowhere_else(server, found, monkeypatch, caplog, scratch, environment, header):
    caplog.set_level(logging.DEBUG)
    server.authorization = header
    with pytest.raises(UserError, match="wants other credentials") as error:
        list(ct.discover(server.url, Select()))
    for name, value in environment.items():
        monkeypatch.setenv(f"DINODOMAIN_DICOMWEB_{name}", value)
    (one,), _ = found(ct, server.url, scratch=str(scratch))
    assert ct.read(one).shape == (1, 5, 6, 8)
    said = caplog.text + repr(one) + str(error.value)
    assert not any(secret in said for secret in (*environment.values(), header.split()[1]))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TOKEN": "a", "USER": "b", "PASSWORD": "c"}, "unset one of the two"),
        ({"USER": "b"}, "DINODOMAIN_DICOMWEB_PASSWORD: is not set"),
        ({"PASSWORD": "b"}, "DINODOMAIN_DICOMWEB_USER: is not set"),
        ({"TOKEN": "Bearer abc"}, "give the token alone"),
        ({"RATE": "fast"}, "requests per second"),
        ({"RATE": "0"}, "requests per second"),
    ],
)
def test_an_environment_that_makes_no_sense_is_a_user_error(server, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(f"DINODOMAIN_DICOMWEB_{name}", value)
    with pytest.raises(UserError, match=message) as error:
        list(ct.discover(server.url, Select()))
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("dicomweb+https://eve:secret@host/rs", "set DINODOMAIN_DICOMWEB_USER"),
        ("dicomweb+ftp://host/rs", "no address of a DICOMweb service"),
        ("dicomweb+https:///rs", "no address of a DICOMweb service"),
        ("dicomweb+https://host:99999999/rs", "no address of a DICOMweb service"),
        ("dicomweb+https://host/rs?ModalitiesInStudi=CT", "did you mean 'ModalitiesInStudy'"),
        ("dicomweb+https://host/rs?limit=5", "leave it out"),
        ("dicomweb+https://host/rs?SliceThickness=3", "ingest.select"),
        ("dicomweb+https://host/rs?00180050=3", "ingest.select"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(source, message):
    with pytest.raises(UserError, match=message) as error:
        list(ct.discover(source, Select()))
    assert "secret" not in str(error.value)


def test_other_modalities_are_left_out_before_their_metadata_is_asked_for(serve, tmp_path, slices, write_series, write_dicom, found):
    paths = write_series(tmp_path / "ct", slices)
    paths += write_series(tmp_path / "mr", slices, SeriesInstanceUID="1.2.4", Modality="MR")
    paths.append(write_dicom(tmp_path / "sm", slices[0], Modality="SM", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.5"))
    server = serve(paths)
    sources, rows = found(ct, server.url)
    assert len(sources) == 1
    assert all(isinstance(row, LeftOut) for row in rows)
    assert [row.reason for row in rows] == [
        "left out by domain=ct (modality MR)",
        "left out by domain=ct (modality SM: whole-slide images are not read)",
    ]
    assert sum("metadata" in path for path in server.asked) == 1
    assert [one.source_id for one in found(mri, server.url)[0]] == ["1.2/1.2.4"]


def test_the_header_filter_works_on_metadata_as_on_files(server, files, found):
    for where in ("SeriesDescription == 'chest'", "SliceThickness == 3", "InstanceNumber <= 3"):
        there, here = found(ct, server.url, where=where), found(ct, files[0].parent, where=where)
        assert [len(one.uris) for one in there[0]] == [len(one.uris) for one in here[0]], where
        assert [row.reason for row in there[1]] == [row.reason for row in here[1]], where


def test_a_small_part_of_a_series_is_fetched_image_by_image(server, found, slices, physical):
    (part,), _ = found(ct, server.url, where="InstanceNumber <= 2")
    assert part.facts["requests"] == 2
    server.asked.clear()
    np.testing.assert_array_equal(physical(ct.read(part)).shape, (2, 6, 8))
    assert [path.rpartition("/")[2] for path in server.asked] == [uri.rpartition("/")[2] for uri in part.uris]
    (most,), _ = found(ct, server.url, where="InstanceNumber <= 4")
    assert (most.facts["requests"], ct.read(most).shape) == (1, (1, 4, 6, 8))


def test_each_radiograph_is_a_source(serve, tmp_path, slices, write_dicom, found, full):
    tags = {"Modality": "DX", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "PatientID": "P"}
    paths = [write_dicom(tmp_path / f"{number}", slices[number], **tags) for number in range(3)]
    server = serve(paths)
    sources, refused = found(xray, server.url)
    plain, _ = found(xray, tmp_path)
    assert refused == []
    by_instance = {one.instance: one for one in plain}
    assert len(sources) == 3
    for one in sources:
        assert one.source_id == f"1.2/1.2.3/{one.keys['SOPInstanceUID']}"
        assert one.keys["stem"] == one.keys["SOPInstanceUID"]
        np.testing.assert_array_equal(full(xray.read(one)), full(xray.read(by_instance[one.instance])))


def test_globs_hold_for_ids(server, found):
    assert found(ct, server.url, exclude=("1.2/*",)) == ([], [])
    assert len(found(ct, server.url, include=("1.2/1.2.3",))[0]) == 1


def test_a_store_from_a_server_holds_what_one_from_files_does_and_a_second_run_fetches_what_failed(serve, tmp_path, slices, write_series):
    paths = []
    for number in range(3):
        tags = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1", "PatientID": f"P{number}"}
        paths += write_series(tmp_path / "in" / f"{number}", slices + number, ImageType=["ORIGINAL", "PRIMARY"], **tags)
    server = serve(paths)
    server.faults["studies/1.1/series/1.1.1"] = [None, (403, {})]
    plan = IngestPlan(domain="ct", source=server.url, store=str(tmp_path / "web"), workers=0)
    first = ingest(plan)
    assert (first.added, len(first.skipped)) == (2, 1)
    server.faults, server.asked = {}, []
    second = ingest(plan)
    assert (second.added, second.present, len(second.skipped)) == (1, 2, 0)
    assert [path for path in server.asked if urlsplit(path).path.endswith("/series/1.1.1")]
    assert not [path for path in server.asked if urlsplit(path).path.endswith(("/series/1.0.1", "/series/1.2.1"))]
    ingest(IngestPlan(domain="ct", source=str(tmp_path / "in"), store=str(tmp_path / "plain"), workers=0))
    hashes = [sorted(open_store(tmp_path / name).index["content_hash"].to_pylist()) for name in ("web", "plain")]
    assert hashes[0] == hashes[1]
    assert not list(tmp_path.rglob("dicomweb-*"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_multipart_body_is_taken_apart_whatever_its_chunks(tmp_path, size):
    parts = [b"first", b"", b"\r\n--boundarx\r\n" * 3, bytes(range(256)) * 4, b"--boundary inside", b"\r\n--boundaryX"]
    body = b"preamble" + b"".join(b"\r\n--boundary\r\nA: b\r\n\r\n" + part for part in parts) + b"\r\n--boundary--\r\nepilogue"
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    assert [path.read_bytes() for path in save_multipart(chunks, b"boundary", tmp_path)] == parts
    with pytest.raises(Cut):
        save_multipart([body[: body.index(b"--boundary--")]], b"boundary", tmp_path)
    bare = b"--boundary \r\n\r\nonly\r\n--boundary--"
    assert [path.read_bytes() for path in save_multipart([bare], b"boundary", tmp_path)] == [b"only"]


def test_a_part_whose_header_never_ends_is_refused(tmp_path):
    with pytest.raises(Refused, match="no end of its header"):
        save_multipart([b"--b\r\n" + b"x" * 70000], b"b", tmp_path)


def test_retry_after_may_be_seconds_or_a_date():
    assert retry_after("7") == 7
    assert retry_after(None) == retry_after("soon") == 0
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(seconds=60), usegmt=True)) == 0


def _take_turns(scratch, count):
    rate = Rate(50.0, scratch)
    for _ in range(count):
        rate.wait()


def test_the_rate_is_one_for_all_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    start = time.monotonic()
    others = [context.Process(target=_take_turns, args=(str(tmp_path), 10)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert time.monotonic() - start >= 19 / 50
    assert [other.exitcode for other in others] == [0, 0]
    start = time.monotonic()
    _take_turns("", 5)
    assert time.monotonic() - start >= 4 / 50
    Rate(None, "").wait()


def test_a_clock_of_an_earlier_start_of_the_machine_is_not_waited_for(tmp_path):
    (tmp_path / "dicomweb-rate").write_text("1e12")
    start = time.monotonic()
    _take_turns(str(tmp_path), 1)
    (tmp_path / "dicomweb-rate").write_text("gar")
    _take_turns(str(tmp_path), 1)
    assert time.monotonic() - start < 1


def test_sources_are_picklable_and_hold_no_server(server, found):
    (one,), _ = found(ct, server.url)
    again = pickle.loads(pickle.dumps(one))
    assert isinstance(again, SourceRef)
    assert again == one
    assert ct.read(again).shape == (1, 5, 6, 8)


def test_a_server_closes(server):
    talk = Server(server.url.removeprefix("dicomweb+"), Rate(None, ""))
    talk.close()
