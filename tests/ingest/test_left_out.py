"""What the user's own choice leaves out is counted with its reason, and never taken for a fault."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.ingest.sources import LEFT_OUT, Skipped
from dinodomain.ingest.summary import Summary, counts_by_reason, grouped, kind_of
from dinodomain.store import open_store


def cloudy(ref):
    """Every second scene is too cloudy, the last is broken."""
    number = int(ref.source_id[-5:])
    if number == 7:
        return BadSource(ref.uris[0], "has no date", "repair it")
    return LeftOut(ref.uris[0], f"ingest.max_cloud=20 (has {number}1)", keys=ref.keys) if number % 2 else ref


def test_left_out_and_refused_sources_are_counted_apart(tmp_path, run, archive):
    summary = run("generate:8", tmp_path / "store", archive(cloudy))
    assert (summary.added, summary.refused, summary.left_out) == (4, 1, 3)
    text = summary.text()
    assert "8 sources found: 4 added, 0 already there, 1 refused, 3 left out by choice" in text
    assert "refused: 1\n  generate:7: has no date; repair it" in text
    assert "left out by choice: 3\n  3 x left out by ingest.max_cloud=20 (has #); change that key to take it in (generate:1, " in text
    rows = open_store(tmp_path / "store").manifest["skipped"]
    assert [row["kind"] for row in rows] == ["left out", "left out", "left out", "refused"]
    assert all({"uri", "reason", "remedy", "key_path"} <= set(row) for row in rows)
    counts = open_store(tmp_path / "store").manifest["counts"]
    assert (counts["skipped"], counts["refused"], counts["left_out"]) == (4, 1, 3)
    assert counts["skipped_by_reason"] == {"has no date": 1, "left out by ingest.max_cloud=20 (has #)": 3}


def test_strict_stops_at_faults_only(tmp_path, run, archive):
    assert run("generate:6", tmp_path / "store", archive(cloudy), strict=True).left_out == 3
    with pytest.raises(BadSource, match="has no date"):
        run("generate:8", tmp_path / "other", archive(cloudy), strict=True)


def test_a_reader_may_leave_a_source_out_under_strict_too(tmp_path, run, archive):
    def outside(ref, record):
        if ref.source_id.endswith("2"):
            raise LeftOut(ref.uris[0], "ingest.aoi (it ends where the area begins)")
        return record

    summary = run("generate:4", tmp_path / "store", archive(record=outside), strict=True)
    assert (summary.added, summary.left_out) == (3, 1)


def test_everything_left_out_is_an_error_with_counts_and_the_filter(tmp_path, run, archive):
    domain = archive(lambda ref: LeftOut(ref.uris[0], "ingest.select"), default_select="Modality == 'CT'")
    with pytest.raises(UserError) as told:
        run("generate:500", tmp_path / "store", domain)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("source: none of the 500 sources below 'generate:500' can be taken")
    assert "left out by choice: 500" in lines
    assert "500 x left out by ingest.select" in lines[2]
    assert lines[-1] == "ingest.select (default of domain 'synthetic'): Modality == 'CT'; edit it, or ingest.select=all"
    assert not (tmp_path / "store.partial").exists()


def test_the_default_filter_is_told_once_and_another_one_as_it_is(tmp_path, run, archive):
    domain = archive(default_select="Modality == 'CT'")
    told = "ingest.select (default of domain 'synthetic'): Modality == 'CT'; edit it, or ingest.select=all"
    assert run("generate:2", tmp_path / "a", domain).text().count(told) == 1
    assert open_store(tmp_path / "a").lineage["plan"]["select"] == "Modality == 'CT'"
    assert run("generate:2", tmp_path / "b", domain, select="all").text().count("ingest.select: all") == 1
    assert "ingest.select" not in run("generate:2", tmp_path / "c").text()


def test_very_many_rows_stay_a_few_lines():
    skipped = [
        Skipped(uri=f"{n}.dcm", reason=f"left out by ingest.select (study {n})", remedy="", keys={}, kind=LEFT_OUT) for n in range(50_000)
    ]
    skipped += [Skipped(uri=f"bad{n}", reason=f"{'x' * (1 + n % 50)} is wrong", remedy="mend it", keys={}) for n in range(1000)]
    text = Summary(store="s", found=1, added=1, present=0, skipped=tuple(skipped)).text()
    assert len(text.splitlines()) < 30
    assert "50000 x left out by ingest.select (study #)" in text
    assert "more for 30 other reasons" in text
    assert max(map(len, text.splitlines())) < 500


def test_a_reason_that_is_the_same_everywhere_is_told_as_it_is():
    rows = [(f"{n}", "left out by ingest.select=SliceThickness <= 3 and Modality == 'CT'", "") for n in range(3)]
    assert grouped(rows)[0].reason == "left out by ingest.select=SliceThickness <= 3 and Modality == 'CT'"
    assert counts_by_reason(["has 3 axes", "has 4 axes", "is empty"]) == {"has # axes": 2, "is empty": 1}


def test_the_json_holds_every_row_and_the_groups(tmp_path, run, archive):
    body = json.loads(json.dumps(run("generate:8", tmp_path / "store", archive(cloudy)).as_json()))
    assert (body["refused"], body["left_out"], len(body["skipped"])) == (1, 3, 4)
    assert body["by_reason"]["left_out"][0]["count"] == 3
    assert body["by_reason"]["refused"][0]["examples"] == ["generate:7"]


def test_a_row_of_the_csv_that_speaks_of_a_left_out_source_is_no_error(tmp_path, run, archive):
    (tmp_path / "people.csv").write_text("PatientID,sex\nunit0000,F\nunit0001,M\n")

    def second_patient(ref):
        return LeftOut(ref.uris[0], "ingest.select", keys={"PatientID": ref.unit}) if ref.unit == "unit0001" else ref

    summary = run("generate:4", tmp_path / "store", archive(second_patient), metadata=str(tmp_path / "people.csv"), join="PatientID")
    assert (summary.added, summary.left_out) == (2, 2)


def test_two_refusals_of_one_file_are_two_rows_and_the_next_ingest_replaces_them(tmp_path, run, archive):
    def parts(ref):
        number = int(ref.source_id[-5:])
        return ref if number == 0 else LeftOut("generate:0", f"ingest.frames (part {number})")

    run("generate:3", tmp_path / "store", archive(parts))
    assert len(open_store(tmp_path / "store").manifest["skipped"]) == 2
    run("generate:2", tmp_path / "store", archive(parts))
    assert [row["reason"] for row in open_store(tmp_path / "store").manifest["skipped"]] == ["left out by ingest.frames (part 1)"]


def test_warnings_of_readers_reach_the_manifest_and_the_summary(tmp_path, run, archive, snapshot):
    def warned(ref, record):
        return dataclasses.replace(record, warnings=("sform and qform differ by 0.4 mm",)) if ref.source_id.endswith(("1", "3")) else record

    summary = run("generate:4", tmp_path / "store", archive(record=warned))
    assert "look at: 2 warnings on 2 sources that were taken" in summary.text()
    assert "2 x sform and qform differ by 0.4 mm (generate:1, generate:3)" in summary.text()
    manifest = open_store(tmp_path / "store").manifest
    assert [row["uri"] for row in manifest["warnings"]] == ["unit0000/pattern00001", "unit0001/pattern00003"]
    assert manifest["counts"]["warnings"] == 2
    before = snapshot(tmp_path / "store")
    assert run("generate:4", tmp_path / "store", archive(record=warned)).warnings == ()
    assert snapshot(tmp_path / "store") == before
    run("generate:6", tmp_path / "store", archive(record=warned))
    assert len(open_store(tmp_path / "store").manifest["warnings"]) == 2


def test_warnings_of_a_personal_domain_name_nobody(tmp_path, run, archive):
    domain = archive(
        record=lambda ref, record: dataclasses.replace(record, warnings=("unit0000 has 'Doe^Jane' in 19700101",)), personal=True
    )
    summary = run("generate:1", tmp_path / "store", domain)
    (row,) = open_store(tmp_path / "store").manifest["warnings"]
    assert row["warning"] == "… has … in …"
    assert row["uri"] == open_store(tmp_path / "store").column("source_id")[0]
    assert summary.warnings[0].uri == "generate:0"


def test_a_scratch_folder_is_there_while_it_is_needed_and_gone_after(tmp_path, run, archive):
    seen = []

    class Unpacking(archive):
        def discover(self, source, select):
            folder = tmp_path / "store.partial" / "scratch"
            assert select.scratch == str(folder)
            assert folder.stat().st_mode & 0o077 == 0
            seen.append(sorted(path.name for path in folder.iterdir()))
            (folder / "unpacked").write_text("Doe")
            yield from super().discover(source, select)

    def killed(ref, record):
        if len(seen) < 2:
            raise KeyboardInterrupt
        assert (tmp_path / "store.partial" / "scratch" / "unpacked").exists()
        return record

    with pytest.raises(KeyboardInterrupt):
        run("generate:2", tmp_path / "store", Unpacking(record=killed))
    run("generate:2", tmp_path / "store", Unpacking(record=killed))
    assert seen == [[], ["unpacked"]]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_while_unpacking_is_no_fault_of_the_source(tmp_path, run, archive):
    def full(*args):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; free space and run again"):
        run("generate:2", tmp_path / "store", archive(full))
    with pytest.raises(UserError, match="No space left on device; free space and run again"):
        run("generate:2", tmp_path / "store", archive(record=full))

    def lazily(ref, record):
        return dataclasses.replace(record, read=full)

    with pytest.raises(UserError, match="No space left on device; free space and run again"):
        run("generate:2", tmp_path / "store", archive(record=lazily))


def test_a_store_that_knows_fewer_settings_can_be_added_to(tmp_path, run):
    run("generate:2", tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("crs", "sar", "irregular", "frames", "stack", "voi", "aoi"):
        del manifest["settings"][key]
    del manifest["quantities"], manifest["warnings"]
    path.write_text(json.dumps(manifest))
    assert run("generate:3", tmp_path / "store").added == 1
    path.write_text(json.dumps(manifest | {"digests": json.loads(path.read_text())["digests"]}))
    with pytest.raises(UserError, match=r"was made with irregular=refuse \(now resample\)"):
        run("generate:4", tmp_path / "store", irregular="resample")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("left out by ingest.select: fails 'LOCALIZER' not in ImageType (3 files)",) * 2,
        ("left out by ingest.select: fails SliceThickness <= 3 (1 file)",) * 2,
        ("left out by ingest.select: fails 'A' in ImageType or ('B' in ImageType) (5 frames of a file)",) * 2,
        ("left out by domain=ct (modality MR)",) * 2,
        ("left out by ingest.dates=2020/2021 (is of 2019-03-04)", "left out by ingest.dates=2020/2021 (is of #-#-#)"),
        ("left out by being a copy: the same images are taken from '/a/b7'", "left out by being a copy: the same images are taken from …"),
        ("4-D with 10 frames of 4x5x6", "#-D with # frames of #x#x#"),
    ],
)
def test_reasons_are_grouped_by_the_users_own_words_and_not_by_details_of_one_source(reason, kind):
    number = " (".join(kind.split(" (")[:-1]) if kind.endswith(("file)", "files)")) else kind
    assert kind_of(reason) == number


def test_a_long_default_filter_is_told_condition_by_condition_before_and_by_name_after(tmp_path, run, archive):
    conditions = [f"'WORD{number}' not in ImageType" for number in range(20)]
    domain = archive(cloudy, default_select=" and ".join(conditions))
    lines = run("generate:4", tmp_path / "a", domain, dry_run=True).text().splitlines()
    first = lines.index("ingest.select (default of domain 'synthetic'); edit it, or ingest.select=all:")
    assert lines[first + 1 : first + 21] == [f"  {'and ' if number else ''}{text}" for number, text in enumerate(conditions)]
    summary = run("generate:4", tmp_path / "a", domain)
    assert (
        "ingest.select (default of domain 'synthetic'): printed by a dry run; edit it, or ingest.select=all" in summary.text().splitlines()
    )
    assert conditions[-1] in summary.as_json()["select"]


def test_sources_that_name_no_patient_are_counted_where_patients_matter(tmp_path, run, archive):
    def nobody(ref):
        return dataclasses.replace(ref, unit=None) if ref.source_id.endswith(("1", "2")) else ref

    personal, public = archive(nobody, personal=True), archive(nobody)
    for dry_run in (True, False):
        told = run("generate:6", tmp_path / "people", personal, dry_run=dry_run)
        assert told.unnamed == 2
        assert "2 sources name no patient: each counts as a person of its own" in told.text()
    assert run("generate:6", tmp_path / "places", public).unnamed == 0
