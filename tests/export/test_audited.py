"""An export carries an audit of this very checkpoint or a waiver with somebody's name; without either it is refused in one line."""

from __future__ import annotations

import json

import pytest
import torch

from dinodomain.audit import Asked, AuditSet
from dinodomain.audit.chain import next_line, write_chain
from dinodomain.audit.finding import GateOutcome
from dinodomain.audit.report import write_report
from dinodomain.audit.run import run_checks
from dinodomain.checkpoint import load_backbone, save_backbone, weights_digest
from dinodomain.errors import UserError
from dinodomain.export import ExportPlan, export
from dinodomain.model import Backbone, ModelPlan
from dinodomain.types import Normalisation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("work") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    norm = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.2,))
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8)
    backbone = Backbone.create(plan, ndim=2, image_size=16, normalisation=norm, domain="made_up").eval()
    return save_backbone(folder / "backbones" / "backbone.safetensors", backbone, history={"digest": "abc"})


@pytest.fixture(scope="module")
def audited(run, tmp_path_factory):
    """Makes reports of that checkpoint, or of another, with or without a gate."""

    def make(weights: str | None = None, code: int | None = None):
        data = AuditSet(
            features={"audited": torch.randn(20, 4).numpy()}, units=torch.arange(20).numpy().astype(str), content_hash=None,
            sources=torch.arange(20).numpy(),
        )  # fmt: skip
        digest = weights or weights_digest(load_backbone(run).state_dict())
        report = run_checks(data, asked=Asked(), names=("overlap", "declaration"), subject={"weights": digest}).report
        gate = None if code is None else GateOutcome(asked=True, code=code, words="It does not meet what is asked.")
        report = report.model_copy(update={"gate": gate})
        folder = tmp_path_factory.mktemp("report")
        write_report(report, folder)
        return folder, report

    return make


def plan(run, tmp_path, **keys) -> ExportPlan:
    return ExportPlan(checkpoint=str(run), out=str(tmp_path / "out"), format="safetensors", **keys)


def record(tmp_path):
    return json.loads((tmp_path / "out" / "lineage.json").read_text())["plan"], (tmp_path / "out" / "README.md").read_text("utf-8")


def test_without_audit_or_waiver_an_export_is_refused_with_the_remedy(run, tmp_path):
    with pytest.raises(UserError) as error:
        export(plan(run, tmp_path))
    for words in ("there is no audit of this checkpoint", "add audit=REPORT", 'waive_audit="reason; owner"'):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_waiver_is_written_into_the_export(run, tmp_path):
    done = export(plan(run, tmp_path, waive_audit="first trial; with a semicolon; A. B."))
    assert "not audited: waived by A. B. (first trial; with a semicolon)" in done.text()
    kept, card = record(tmp_path)
    assert kept["waived"] == {"reason": "first trial; with a semicolon", "owner": "A. B."}
    assert "**Not audited.** Waived by A. B." in card


@pytest.mark.parametrize("text", ["no owner", "; A. B.", "reason;", ""])
def test_a_waiver_without_reason_or_owner_is_none(run, tmp_path, text):
    with pytest.raises(UserError, match="reason; owner"):
        export(plan(run, tmp_path, waive_audit=text))


def test_an_audit_travels_with_the_export(run, audited, tmp_path):
    folder, report = audited()
    done = export(plan(run, tmp_path, audit=str(folder)))
    assert report.audit_id[:12] in done.text()
    kept, card = record(tmp_path)
    assert kept["audit"]["audit_id"] == report.audit_id
    assert kept["audit"]["verdicts"] == {"NOT_ASSESSABLE": 2}
    assert "NOT ASSESSABLE: 2" in card
    assert kept["audit"]["not_answered"] == ["Q1", "Q2", "Q3", "Q4"]


def test_an_audit_of_another_checkpoint_an_altered_one_and_a_failed_gate_do_not_count(run, audited, tmp_path):
    with pytest.raises(UserError, match="of another checkpoint"):
        export(plan(run, tmp_path, audit=str(audited(weights="cd" * 32)[0])))
    folder, _ = audited()
    (folder / "audit.json").write_text((folder / "audit.json").read_text() + " ")
    with pytest.raises(UserError, match="altered"):
        export(plan(run, tmp_path, audit=str(folder / "audit.json")))
    with pytest.raises(UserError, match="does not meet what is asked"):
        export(plan(run, tmp_path, audit=str(audited(code=1)[0])))
    with pytest.raises(UserError, match="cannot be read"):
        export(plan(run, tmp_path, audit=str(tmp_path / "none")))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="no report of an audit"):
        export(plan(run, tmp_path, audit=str(tmp_path / "x.json")))
    assert export(plan(run, tmp_path, audit=str(audited(code=0)[0]))).max_abs_diff == 0


def test_the_runs_own_chain_is_looked_up(run, audited, tmp_path):
    folder, report = audited()
    chain = run.parents[1] / "audits.jsonl"
    write_chain(chain, [next_line([], report, folder, chain)])
    try:
        assert report.audit_id[:12] in export(plan(run, tmp_path)).audited
    finally:
        chain.unlink()
