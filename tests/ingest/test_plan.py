"""Keys of an ingest that have a small language of their own: what they mean, and what is refused before anything is read."""

from __future__ import annotations

import datetime
import os

import pytest

from dinodomain.errors import UserError
from dinodomain.ingest.plan import IngestPlan, parse_dates, parse_shard
from dinodomain.ingest.sizes import hours_text, parse_size, size_text


def plan(**keys):
    return IngestPlan(domain="synthetic", source="in", store="out", **keys)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2019-03-01/2020-02-29", (2019, 3, 1), (2020, 2, 29)),
        ("2019/..", (2019, 1, 1), None),
        ("../2020-02", None, (2020, 2, 29)),
        ("2019-12/2019-12", (2019, 12, 1), (2019, 12, 31)),
        ("2021/2021", (2021, 1, 1), (2021, 12, 31)),
        ("2021", (2021, 1, 1), (2021, 12, 31)),
        ("2021-02-03", (2021, 2, 3), (2021, 2, 3)),
    ],
)
def test_dates_include_both_ends_of_the_year_month_or_day_that_is_named(text, first, last):
    assert parse_dates(text) == tuple(None if day is None else datetime.date(*day) for day in (first, last))


def test_a_domain_sees_whole_days_however_few_digits_were_typed():
    assert plan(dates="2019/2020-02").as_select().dates == "2019-01-01/2020-02-29"
    assert plan(dates="../2020-02").as_select().dates == "../2020-02-29"
    assert plan().as_select().dates == ""


def test_discovery_may_use_as_many_processes_as_reading_but_never_those_of_a_cluster():
    processors = len(os.sched_getaffinity(0))
    assert plan().as_select().workers == processors
    assert plan(workers=0).as_select().workers == 0
    assert plan(workers=99).as_select().workers == 99
    assert plan(workers=99, executor="tcp://127.0.0.1:8786").as_select().workers == processors
    assert plan(workers=0, executor="tcp://127.0.0.1:8786").as_select().workers == 0


def test_the_number_of_processes_makes_no_other_selection():
    assert plan(workers=1).as_select() == plan(workers=5).as_select()
    assert plan(workers=1).signature() == plan(workers=5).signature()


@pytest.mark.parametrize(
    ("text", "size"),
    [("2TB", 2 * 10**12), ("1.5 GiB", 3 * 2**29), ("800kB", 800_000), ("800 kb", 800_000), (".5MB", 500_000), ("7B", 7), ("1PiB", 2**50)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text, "ingest.budget") == size


@pytest.mark.parametrize("text", ["", "2", "TB", "2 XB", "-1GB", "1e3GB", "0B", "2TB2", "1,5 GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"ingest\.budget: .*(no size|nothing)"):
        parse_size(text, "ingest.budget")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (999_600, "1 MB"), (2.5e12, "2.5 TB"), (3e18, "3 EB")]
)
def test_sizes_are_told_in_three_digits(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(4, "4 s"), (300, "5 min"), (9000, "2.5 h"), (864000, "10 days")])
def test_times_are_told_in_the_unit_that_fits(seconds, text):
    assert hours_text(seconds) == text


@pytest.mark.parametrize(("text", "share"), [("1/1", (1, 1)), ("3/16", (3, 16)), (" 16 / 16 ", (16, 16))])
def test_a_share_counts_from_one(text, share):
    assert parse_shard(text) == share


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dates": "2019/2020/2021"}, "ingest.dates: '2019/2020/2021' is no range"),
        ({"dates": ".."}, "is no range"),
        ({"dates": "../.."}, "is no range"),
        ({"dates": "2019-02-30/.."}, "day is out of range"),
        ({"dates": "2020/2019"}, "ends before it begins"),
        ({"dates": "1.3.2019/.."}, "'1.3.2019' is no date"),
        ({"budget": "2"}, "ingest.budget: '2' is no size"),
        ({"budget": ""}, None),
        ({"shard": "0/4"}, "I/N with I from 1 to N"),
        ({"shard": "5/4"}, "I/N with I from 1 to N"),
        ({"shard": ""}, "is no share"),
        ({"crs": "32632"}, "EPSG:CODE, for example EPSG:32632, or utm"),
        ({"crs": "UTM32"}, "or utm"),
        ({"executor": "dask"}, "processes, threads, or the address"),
        ({"executor": ""}, "processes, threads, or the address"),
        ({"aoi": "1,2,3"}, "is no box"),
        ({"aoi": "5,50,4,40"}, "is no box"),
        ({"aoi": "5,40,200,50"}, "is no box"),
        ({"aoi": "nowhere.geojson"}, "neither a box nor a file"),
        ({"max_cloud": 101.0}, "0 to 100 percent"),
        ({"select": "Modality = 'CT'"}, "is no expression"),
        ({"select": "open('x')"}, "calls something unknown"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys, words):
    if words is None:
        plan(**keys)
        return
    with pytest.raises(UserError, match=words):
        plan(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"crs": "utm"}, {"crs": "EPSG:3035"}, {"executor": "threads"}, {"executor": "tcp://10.0.0.7:8786"}, {"aoi": "5,40,6.5,50"},
        {"select": "all"}, {"select": "Modality == 'CT'"}, {"shard": "2/3"}, {"budget": "1 TiB"}, {"dates": "2019/2019"},
    ],
)  # fmt: skip
def test_keys_that_make_sense_are_taken(keys):
    assert plan(**keys)


def test_all_wrong_keys_are_told_at_once():
    with pytest.raises(UserError, match=r"(?s)ingest\.dates.*ingest\.budget.*ingest\.crs"):
        plan(dates="x", budget="y", crs="z")


def test_an_area_in_a_file_is_kept_as_the_digest_of_its_bytes(tmp_path):
    area = tmp_path / "area.geojson"
    area.write_text("{}")
    kept = plan(aoi=str(area))
    assert kept.signature()["aoi"].startswith("sha256:")
    assert kept.record(personal=False)["aoi"] == kept.signature()["aoi"]
    assert str(tmp_path) not in str(kept.record(personal=False))
    assert plan(aoi="5,40,6,50").signature()["aoi"] == "5,40,6,50"


def test_a_store_of_an_earlier_version_was_made_as_the_defaults_of_later_keys_say():
    known = {key: value for key, value in plan().signature().items() if key not in ("crs", "frames", "stack", "voi", "aoi")}
    assert plan().differences(known) == []
    assert plan(voi=True, frames="split").differences(known) == ["frames=refuse (now split)", "voi=False (now True)"]
    assert plan(cell=5000.0).differences(known) == ["cell=20000.0 (now 5000.0)"]
