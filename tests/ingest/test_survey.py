"""A look at a source counts what headers say, tells what a filter would take, and writes nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import stat

import pytest

import dinodomain
from dinodomain import cli
from dinodomain.domain import Filter
from dinodomain.errors import LeftOut, Problems, UserError
from dinodomain.ingest import IngestPlan
from dinodomain.ingest.inspect_plan import InspectPlan
from dinodomain.ingest.sizes import size_text
from dinodomain.ingest.survey import survey
from dinodomain.ingest.tally import MOST_VALUES, Tally
from dinodomain.testing import SyntheticImages

KERNELS = ("Br40", "Br40", "Br40", "Hr60", "Hr60", None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scanner(SyntheticImages):
    """Patterns with the facts of CT series; every sixth is a localizer; the header filter is applied as a domain would."""

    default_select: str = "'LOCALIZER' not in ImageType"

    def discover(self, source, select):
        for number, ref in enumerate(SyntheticImages.discover(self, source, select)):
            facts = {
                "Modality": "CT",
                "ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER" if number % 6 == 5 else "AXIAL"),
                "ConvolutionKernel": KERNELS[number % 6],
                "SliceThickness": 1.0 + number % 3,
                "KVP": 80 + number,
                "bytes_in": 1000,
                "bytes_out": 5000,
                "requests": 2,
                "acquired": f"20{10 + number}-03-04",
                "cloud_cover_percent": 5.0 * number,
                "lon": 10.0 + number,
                "lat": 50.0,
            }
            if Filter(select.where)(facts) and (select.max_cloud is None or facts["cloud_cover_percent"] <= select.max_cloud):
                yield dataclasses.replace(ref, facts=facts, quantity="HU")
            else:
                yield LeftOut(ref.uris[0], f"ingest.select={select.where}" if select.where else f"ingest.max_cloud={select.max_cloud}")


def look(count=18, domain=None, out=None, **keys):
    return survey(IngestPlan(domain="synthetic", source=f"generate:{count}", store="nowhere", **keys), out, domain=domain or Scanner())


def test_it_counts_what_headers_say_before_any_filter_and_what_the_default_filter_would_take():
    found = look()
    assert (found.sources, found.units, found.files) == (18, 9, 18)
    assert found.facts["ConvolutionKernel"].values == {"Br40": 9, "Hr60": 6}
    assert found.facts["ConvolutionKernel"].missing == 3
    assert found.facts["SliceThickness"].values == {"1": 6, "2": 6, "3": 6}
    assert found.facts["ImageType"].values == {"ORIGINAL/PRIMARY/AXIAL": 15, "ORIGINAL/PRIMARY/LOCALIZER": 3}
    assert (found.facts["KVP"].low, found.facts["KVP"].median, found.facts["KVP"].high) == (80, 88, 97)
    assert (found.taken.sources, found.taken.units) == (15, 9)
    (reason,) = found.taken.left_out
    assert found.taken.left_out[reason].count == 3
    assert found.taken.choice == "the default filter of synthetic: 'LOCALIZER' not in ImageType"
    assert (found.bytes_in, found.bytes_out, found.requests) == (18_000, 90_000, 36)
    assert found.acquired == ("2010-03-04", "2027-03-04")
    assert found.place == (10.0, 50.0, 27.0, 50.0)
    assert found.facts["cloud"].values == {"0 to 10 %": 3, "10 to 20 %": 2, "20 to 50 %": 6, "50 to 100 %": 7}
    assert found.quantities == {"HU": 18}


@pytest.mark.parametrize(
    ("keys", "taken", "choice"),
    [
        ({"select": "all"}, 18, ""),
        ({"select": "SliceThickness <= 2"}, 12, "ingest.select=SliceThickness <= 2"),
        ({"select": "all", "max_cloud": 20}, 5, "ingest.max_cloud=20"),
    ],
)
def test_a_filter_changes_what_is_taken_and_never_what_is_there(keys, taken, choice):
    found = look(**keys)
    assert (found.sources, found.taken.sources, found.taken.choice) == (18, taken, choice)
    assert sum(reason.count for reason in found.taken.left_out.values()) == 18 - taken


def test_headers_are_read_twice_only_where_something_is_chosen(monkeypatch):
    seen = []
    inner = Scanner.discover
    monkeypatch.setattr(Scanner, "discover", lambda self, source, select: seen.append(select.where) or inner(self, source, select))
    look(select="all")
    assert seen == [""]
    look()
    assert seen == ["", "", "'LOCALIZER' not in ImageType"]


def test_the_text_shows_the_commonest_and_how_many_more():
    lines = survey(IngestPlan(domain="synthetic", source="generate:18", store="x"), domain=Scanner(), top=1).text().splitlines()
    assert "ConvolutionKernel: Br40 (9) and 1 more; not stated by 3" in lines
    assert "KVP: 80 to 97, median 88" in lines
    assert lines[1] == f"{size_text(18_000)} to read, {size_text(90_000)} of pixels, 36 requests"
    assert "an ingest would take 15 sources, by the default filter of synthetic: 'LOCALIZER' not in ImageType" in lines
    assert "left out: 3" in lines
    assert "refused: 0" in lines


def test_refusals_are_counted_by_reason_with_an_example(tmp_path, write_images):
    write_images(tmp_path, ["a.npy", "x/b.npy"])
    for name in ("c.npy", "x/d.npy"):
        (tmp_path / name).write_text("none")
    found = survey(IngestPlan(domain="synthetic", source=str(tmp_path), store="nowhere"), domain=SyntheticImages())
    (reason,) = found.taken.refused.values()
    assert (found.sources, reason.count) == (2, 2)
    assert reason.example == "c.npy: is not a numpy file"
    assert re.search(r"  2 x is not a numpy file(; .*)? \(for example c.npy\)", found.text())


def test_nothing_is_written_unless_out_is_given_and_then_for_the_owner_only_where_people_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    look()
    assert list(tmp_path.iterdir()) == []
    look(out=tmp_path / "open")
    look(out=tmp_path / "closed", domain=Scanner(personal=True))
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        facts = json.loads((tmp_path / name / "source.json").read_text())
        assert facts["facts"]["Modality"]["values"] == {"CT": 18}
        assert "18 sources of domain synthetic" in (tmp_path / name / "source.txt").read_text()
        assert stat.S_IMODE((tmp_path / name / "source.txt").stat().st_mode) & ~0o022 == mode


def test_a_place_that_is_not_there_or_holds_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        survey(IngestPlan(domain="synthetic", source=str(tmp_path / "no"), store="x"), domain=SyntheticImages())
    with pytest.raises(UserError, match="holds nothing that domain 'synthetic' reads"):
        survey(IngestPlan(domain="synthetic", source=str(tmp_path), store="x"), domain=SyntheticImages())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "store or source is required; .*give exactly one"),
        ({"store": "s", "source": "x", "domain": "ct"}, "both store and source are given"),
        ({"source": "x"}, "domain: is required with source"),
        ({"store": "s", "domain": "ct"}, "domain: has no use with a store"),
        ({"store": "s", "select": "Modality == 'CT'"}, "select: has no use with a store; it goes with source"),
        ({"source": "x", "domain": "ct", "names": True}, "names: has no use with a source"),
        ({"source": "x", "domain": "ct", "select": "Modality ="}, "ingest.select: .* is no expression"),
        ({"source": "x", "domain": "ct", "max_cloud": 200.0}, "ingest.max_cloud"),
        ({"store": "s", "crosswalk": "r.csv"}, "out: is required with crosswalk"),
        ({"store": "s", "top": 0}, "top: is 0"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys, words):
    with pytest.raises(UserError, match=words):
        InspectPlan(**keys)


def test_several_misplaced_keys_are_told_at_once():
    with pytest.raises(Problems, match=r"notice: has no use(.|\n)*names: has no use(.|\n)*domain: is required"):
        InspectPlan(source="x", notice="made up", names=True)


def test_a_number_of_many_values_is_a_range_and_a_text_of_many_values_is_cut():
    tally = Tally()
    for number in range(MOST_VALUES + 50):
        tally.add({"n": number, "name": f"v{number}", "flag": number % 2 == 0, "bad": float("nan"), "mixed": 1.5 if number else "one"})
    found = tally.spreads(["name"])
    assert list(found) == ["name", "flag", "mixed", "n"]
    assert (len(found["name"].values), found["name"].more) == (MOST_VALUES, 50)
    assert found["flag"].values == {"no": 125, "yes": 125}
    assert found["mixed"].values == {"1.5": 249, "one": 1}
    assert (found["n"].values, found["n"].low, found["n"].median, found["n"].high) == ({}, 0, 124, 249)


def test_the_command_line_takes_a_filter_letter_for_letter_and_tells_json(capsys, tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 3)
    words = [
        "inspect",
        f"source={tmp_path / 'in'}",
        "domain=xray",
        "ingest.select=Modality == 'DX' and Rows > 10",
        "ingest.exclude=[*2.png]",
    ]
    assert cli.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sources"] == 2
    assert facts["taken"]["choice"] == "ingest.select=Modality == 'DX' and Rows > 10"
    assert cli.main(words[:2]) == 2
    assert "domain: is required with source; add domain=NAME" in capsys.readouterr().err


@pytest.fixture
def write_pictures():
    pillow = pytest.importorskip("PIL.Image")

    def write(folder, count):
        folder.mkdir()
        for number in range(count):
            pillow.linear_gradient("L").save(folder / f"{number}.png")

    return write


def test_python_reads_like_the_command(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 2)
    assert dinodomain.inspect(source=str(tmp_path / "in"), domain="xray").sources == 2
