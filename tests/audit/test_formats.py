"""Further files of the bundle, each read by the tools they are for; cells of few units are not told."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from dinodomain.audit import Asked, AuditPlan, run_checks, write_report
from dinodomain.audit.checks.declaration import completed
from dinodomain.audit.evidence import Private
from dinodomain.audit.report.junit import junit
from dinodomain.audit.report.write import FILES
from dinodomain.errors import UserError

pytest.importorskip("mlcroissant")
pytest.importorskip("cyclonedx")
TEXTS = ("datasheet", "croissant", "mlbom", "junit")


@pytest.fixture(scope="module")
def made(make_set, quick):
    """A report of places: one crowded cell, one with three units."""
    data = make_set(num_units=60, leak=3.0)
    lon = np.where(np.arange(120) < 114, 10.5, 20.5)
    data = make_set(num_units=60, leak=3.0, columns=data.columns | {"lon": lon, "lat": np.full(120, 50.5)})
    declared = completed().model_copy(update={"licences": completed().licences.model_copy(update={"data": ("CC-BY-4.0",)})})
    asked = Asked(attributes=("sex",), declaration=declared.model_dump(mode="json"))
    names = ("overlap", "attribute", "declaration")
    return run_checks(data, asked=asked, effort=quick, names=names, subject={"weights": "ab" * 32, "store": "cd" * 32}).report, data


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return write_report(made[0], tmp_path_factory.mktemp("formats"), formats=TEXTS).json.parent


def test_equal_reports_give_equal_bytes_and_all_are_summed(made, folder, tmp_path):
    write_report(made[0], tmp_path, formats=TEXTS)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
    summed = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert summed == [name for name in names if name != "SHA256SUMS"]


def test_an_earlier_bundle_leaves_nothing_behind(made, tmp_path):
    write_report(made[0], tmp_path, formats=("junit",))
    (tmp_path / "audit.md").write_text("old")
    write_report(made[0], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.json", "audit.html", "card.md", "SHA256SUMS"}


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")  # the parser's, of rdflib
def test_croissant_is_read_by_its_own_parser_with_the_evidence_in_it(folder):
    import mlcroissant

    read = mlcroissant.Dataset(jsonld=json.loads((folder / "croissant.json").read_text())).metadata
    assert read.personal_sensitive_information == ["sex"]
    assert any("overlap" in line or "attribute" in line for line in read.data_limitations)
    assert "60 units" in read.description


def test_the_bill_of_materials_names_model_and_data_by_digest(folder):
    body = json.loads((folder / "mlbom.cdx.json").read_text())
    assert (body["bomFormat"], body["specVersion"]) == ("CycloneDX", "1.6")
    model = body["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert {part["name"] for part in body["components"]} == {"audit set", "store"}


def test_junit_fails_skips_and_passes(made):
    root = ElementTree.fromstring(junit(made[0].as_json()))
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases["declaration"] == ["system-out"]
    assert len(cases) == len(made[0].findings)
    flagged = made[0].findings[0].model_copy(update={"verdict": "FLAG", "answer": "bad \x00 <byte>"})
    again = ElementTree.fromstring(junit(made[0].model_copy(update={"findings": (flagged,)}).as_json()))
    assert again.find("testsuite").get("failures") == "1"


def test_the_card_is_one_the_hub_reads(folder):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((folder / "card.md").read_text("utf-8"))
    assert card.data.library_name == "dinodomain"
    assert "auroc" in {result.metric_type for result in card.data.eval_results}


def test_the_datasheet_tells_origin_and_licence(folder):
    text = (folder / "datasheet.md").read_text("utf-8")
    assert "| sex | 0 % | not stated |" in text
    assert "- Licence: CC-BY-4.0" in text


def test_cells_tell_counts_but_never_of_few_units(made, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    report, data = made
    private = (Private(name="copies", columns={"row": [0, 1, 119]}),)
    write_report(report, tmp_path, private, formats=("cells",), data=data)
    frame = geopandas.read_file(tmp_path / FILES["cells"]).set_index("lon").sort_index()
    assert frame.loc[10, "units"] == "57"
    assert frame.loc[10, "in_copies"] == 2
    assert frame.loc[20, "units"] == "< 10"
    assert np.isnan(frame.loc[20, "images"])
    assert np.isnan(frame.loc[20, "in_copies"])
    assert frame.crs.to_epsg() == 4326
    assert frame.geometry.iloc[0].bounds == (10, 50, 11, 51)


def test_cells_without_places_and_unknown_formats_are_refused(made, make_set, tmp_path):
    with pytest.raises(UserError, match="need longitude and latitude"):
        write_report(made[0], tmp_path, formats=("cells",), data=make_set(num_units=20))
    with pytest.raises(UserError, match="no format 'pdf'"):
        AuditPlan(features="f.parquet", out="o", formats=("pdf",))
