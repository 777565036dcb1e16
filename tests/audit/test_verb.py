"""The verbs on a tiny store: probe and audit a checkpoint, audit features of another encoder, judge a report."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dinodomain.audit import AuditPlan, audit
from dinodomain.audit.checks import CHECKS
from dinodomain.checkpoint import load_backbone, save_backbone, weights_digest
from dinodomain.errors import UserError
from dinodomain.model import Backbone, ModelPlan
from dinodomain.probes import ProbePlan, probe, wilson
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, tiny_labels, tiny_store
from dinodomain.types import Normalisation

DOMAIN = SyntheticImages()
QUICK = {"permutations": 99, "bootstraps": 100, "ocr_images": 0, "attackers": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A store of 70 units with a holdout, its labels, and a backbone that says it was trained on it."""
    root = tmp_path_factory.mktemp("audit")
    store = open_store(tiny_store(root / "store", domain=DOMAIN, num=140, audit_holdout=0.2))
    labels = tiny_labels(root / "labels.csv", 140)
    count = len(store.channels)
    numbers = Normalisation(
        mode="domain", channels=store.channels, low=(0.0,) * count, high=(255.0,) * count, mean=(0.5,) * count, std=(0.25,) * count
    )
    torch.manual_seed(0)
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8, registers=1)
    backbone = Backbone.create(plan, ndim=2, image_size=16, normalisation=numbers, domain=DOMAIN.name)
    history = {"parents": {"store": store.digest}, "digest": "ab"}
    save_backbone(root / "backbone.safetensors", backbone, history=history)
    return {"checkpoint": str(root / "backbone.safetensors"), "store": str(root / "store"), "labels": str(labels)}


@pytest.fixture(scope="module")
def result(files, tmp_path_factory):
    plan = AuditPlan(**files, attributes=("label", "level"), target="label", out=str(tmp_path_factory.mktemp("out")), copies=20, **QUICK)
    return audit(plan, domain=DOMAIN)


def test_a_probe_leaves_the_audit_holdout_alone_and_says_so(files, tmp_path):
    report = probe(ProbePlan(**files, target="label", bootstraps=100, out=str(tmp_path)), domain=DOMAIN)
    held = int(open_store(files["store"]).column("holdout").sum())
    assert held > 0
    assert report.left_out == {"of units reserved for the audit": held}
    assert report.num_images == 140 - held
    assert {path.name for path in tmp_path.iterdir()} == {"probe.json", "probe.txt", "probe.png"}


def test_units_of_a_probe_can_come_from_the_csv(files):
    report = probe(ProbePlan(**files, target="label", group="level", bootstraps=100), domain=DOMAIN)
    assert report.num_units <= 64
    with pytest.raises(UserError, match="no column 'patient'"):
        probe(ProbePlan(**files, target="label", group="patient"), domain=DOMAIN)


def test_an_audit_names_weights_store_and_whether_they_belong_together(result, files):
    subject = result.report.subject
    assert subject["weights"] == weights_digest(load_backbone(files["checkpoint"]).state_dict())
    assert subject["store"] == open_store(files["store"]).digest
    assert subject["trained_on_this_store"] is True
    assert result.report.data["n_reserved"] > 0


def test_an_audit_finds_every_question_a_place(result):
    found = {item.check for item in result.report.findings}
    assert found == {check.about.name for check in CHECKS}
    assert "Q4" in result.report.unanswered  # nothing is declared, and no column bears on a named risk
    assert result.exit_code == 0
    assert result.paths.html.is_file()
    assert json.loads(json.dumps(result.as_json()))["verdicts"]["overlap"] == "NOT_ASSESSABLE"


def test_membership_asks_for_the_store_of_the_training(files, tmp_path, result):
    member = next(item for item in result.report.findings if item.check == "membership")
    assert member.reason_code not in ("members_unknown", "no_random_nonmembers")
    foreign = tmp_path / "foreign.safetensors"
    save_backbone(foreign, load_backbone(files["checkpoint"]), history={"parents": {"store": "another"}})
    other = audit(AuditPlan(checkpoint=str(foreign), store=files["store"], out=str(tmp_path / "out"), copies=0, **QUICK), domain=DOMAIN)
    assert next(item for item in other.report.findings if item.check == "membership").reason_code == "members_unknown"


def test_recall_of_copies_is_measured_on_the_stores_own_images(result):
    """Crops of noise are other noise to an untrained network: none of the 20 is found again, so that no copies seen means nothing."""
    found = next(item for item in result.report.findings if item.check == "duplicates")
    of_twenty = wilson(0, 20)
    assert found.evidence["recall_on_altered_copies"] == pytest.approx({"value": 0.0, "low": of_twenty.low, "high": of_twenty.high})
    assert (found.verdict, found.reason_code) == ("NOT_ASSESSABLE", "low_recall")


def test_an_existing_report_is_judged_without_a_new_audit(result, files, tmp_path):
    gate = tmp_path / "gate.yaml"
    gate.write_text("required: [overlap]\n")
    judged = audit(AuditPlan(report=str(result.paths.json), gate=str(gate), checkpoint=files["checkpoint"]))
    assert judged.exit_code == 4
    assert any("overlap" in line for line in judged.gate.undecided)
    assert not any("another weights" in line for line in judged.gate.undecided)


def test_features_of_any_encoder_are_audited_with_a_csv(make_set, tmp_path):
    data = make_set(num_units=130, leak=3.0)
    names = [f"image{i}" for i in range(260)]
    pq.write_table(pa.table({"id": names, "features": data.audited.tolist()}), tmp_path / "f.parquet")
    lines = [f"{name},{unit},{site}" for name, unit, site in zip(names, data.units, data.columns["site"])]
    (tmp_path / "m.csv").write_text("\n".join(["id,patient,site", *reversed(lines)]))
    keys = {"features": str(tmp_path / "f.parquet"), "metadata": str(tmp_path / "m.csv"), "out": str(tmp_path / "out")}
    found = audit(AuditPlan(**keys, group="patient", attributes=("site",), **QUICK))
    site = next(item for item in found.report.findings if item.id == "attribute/site")
    assert site.verdict == "FLAG"
    assert site.n_units == 130
    (tmp_path / "m.csv").write_text("\n".join(["id,patient,site", *lines[:-1]]))
    keys["out"] = str(tmp_path / "again")
    with pytest.raises(UserError, match="1 rows of features have no line"):
        audit(AuditPlan(**keys, group="patient", attributes=("site",), **QUICK))


def test_features_that_are_no_numbers_of_one_width_are_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "features": [[1.0], [1.0, 2.0]]}), tmp_path / "f.parquet")
    with pytest.raises(UserError, match="holds 1 to 2 numbers"):
        audit(AuditPlan(features=str(tmp_path / "f.parquet"), out=str(tmp_path / "out")))
    np.savez(tmp_path / "f.npz", a=1)
    with pytest.raises(UserError, match="not readable Parquet"):
        audit(AuditPlan(features=str(tmp_path / "f.npz"), out=str(tmp_path / "out")))


def test_a_plan_that_says_nothing_to_audit_lists_what_is_missing():
    with pytest.raises(UserError) as error:
        AuditPlan(attributes=("sex", "sex"), permutations=5)
    for words in ("permutations: 5", "give either a checkpoint or features", "out: missing", "names 'sex' twice"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="without a policy"):
        AuditPlan(report="audit.json")
