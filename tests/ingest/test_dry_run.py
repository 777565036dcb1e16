"""A dry run reads headers only, writes nothing, and founds every number it tells."""

from __future__ import annotations

import dataclasses
import json
import tempfile

import pytest

from dinodomain.errors import LeftOut
from dinodomain.ingest.estimate import FAST_BYTES_PER_S, SLOW_BYTES_PER_S, estimate
from dinodomain.types import SourceRef


def unread(ref, record):
    raise AssertionError("a pixel is read")


def ref(number, unit=None, **facts):
    return SourceRef(source_id=f"{number}", uris=(f"{number}",), keys={}, unit=unit, digest="", facts=facts)


def reckon(refs, **given):
    return estimate(refs, **{"workers": 2, "cell_m": 20000.0, "groups": {}, "old": None, **given})


def test_a_dry_run_reads_no_pixel_and_leaves_no_trace(tmp_path, run, archive, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    seen = []

    class Unpacking(archive):
        def discover(self, source, select):
            seen.append(select.scratch)
            yield from super().discover(source, select)

    summary = run("generate:4", tmp_path / "store", Unpacking(record=unread), dry_run=True)
    assert summary.added == 4
    assert seen[0].startswith(str(tmp_path / "tmp"))
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_a_dry_run_tells_sources_units_bytes_time_skips_and_budget(tmp_path, run, archive):
    def change(ref):
        if ref.source_id.endswith("7"):
            return LeftOut(ref.uris[0], "ingest.max_cloud=20 (has 93)")
        return dataclasses.replace(ref, facts={**ref.facts, "requests": 3})

    summary = run("generate:8", tmp_path / "store", archive(change), dry_run=True, budget="21KB", workers=4)
    text = summary.text()
    assert "8 sources found: 3 would be added, 0 already there, 5 left out by choice" in text
    assert "4 x left out by ingest.budget=21KB" in text
    assert "would be read: 20.7 KB of 3 sources, " in text
    assert "pixels uncompressed: 20.7 KB" in text
    assert "on disk: at most about 20.7 KB; how much less hangs on the pixels, which are not read" in text
    assert "requests: 9" in text
    assert (
        "with 3 workers (8 MB/s of pixels a worker for JPEG 2000, 60 MB/s for deflated GeoTIFF, measured by benchmarks/ingest.py, 50 ms"
        in text
    )
    assert "budget: 20.7 KB of 21KB for 3 sources, 4 left out; 1 of 1 kinds of place, season and sensor covered (ingest.seed=0)" in text
    body = json.loads(json.dumps(summary.as_json()))
    assert body["estimate"]["bytes_in"] == body["estimate"]["bytes_out"] == 20736
    assert body["estimate"]["requests"] == 9
    assert (body["left_out"], len(body["skipped"])) == (5, 5)


def test_a_store_that_is_there_founds_the_size_on_disk(tmp_path, run, archive):
    run("generate:4", tmp_path / "store", archive())
    summary = run("generate:6", tmp_path / "store", archive(), dry_run=True)
    assert summary.estimate.stored > 0
    assert "as the store's pixels shrank so far" in summary.text()


def test_the_hours_are_those_of_the_slowest_and_the_fastest_kind():
    told = reckon([ref(n, bytes_in=1, bytes_out=int(6e9)) for n in range(10)])
    assert told.seconds == pytest.approx((6e10 / FAST_BYTES_PER_S / 2, 6e10 / SLOW_BYTES_PER_S / 2))
    assert "time: 8.33 min to 62.5 min with 2 workers" in "\n".join(told.lines())


def test_what_no_header_states_is_not_guessed():
    told = reckon([ref(0, bytes_in=5), ref(1)])
    assert (told.bytes_in, told.bytes_in_unknown, told.seconds, told.stored, told.requests) == (5, 1, None, None, None)
    assert "would be read: 5 B (and 1 sources that do not state it) of 2 sources" in "\n".join(told.lines())
    assert "pixels uncompressed: an amount no header states" in "\n".join(told.lines())
    assert "time: unknown: some headers do not state how many pixels there are" in "\n".join(told.lines())


def test_units_are_patients_groups_ground_cells_or_the_sources_themselves():
    refs = [ref(0, "a"), ref(1, "a"), ref(2), ref(3), ref(4, lon=5.0, lat=45.0), ref(5, lon=5.001, lat=45.0), ref(6, lon=9.0, lat=45.0)]
    assert reckon(refs).units == 1 + 2 + 2
    assert reckon(refs, groups={"2": "a", "3": "b"}).units == 2 + 2
