"""A report that is handed over: whole, altered, signed or not, computed anew; and the bundle's place in the chain."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinodomain.audit import AuditPlan, audit
from dinodomain.audit.complete import command
from dinodomain.audit.policy import Policy, read_policy
from dinodomain.cli import make_plan, split_words
from dinodomain.errors import UserError
from dinodomain.verbs import VERBS

QUICK = {"permutations": 99, "bootstraps": 100, "checks": ("duplicates", "declaration")}


@pytest.fixture(scope="module")
def files(make_set, tmp_path_factory):
    """Features of some encoder with a planted site, and a key."""
    root = tmp_path_factory.mktemp("verify")
    data = make_set(num_units=80, leak=3.0)
    columns = {
        "unit": data.units.tolist(),
        "site": data.columns["site"].tolist(),
        "split": data.columns["split"].tolist(),
        "features": data.audited.tolist(),
    }
    pq.write_table(pa.table(columns), root / "f.parquet")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(root / "key.pem")], check=True, capture_output=True)
    return {"features": str(root / "f.parquet"), "attributes": ("site",), **QUICK}, root


@pytest.fixture(scope="module")
def bundle(files):
    keys, root = files
    return audit(AuditPlan(**keys, out=str(root / "report"), sign=str(root / "key.pem"))).paths.json.parent


@pytest.fixture
def copy(bundle, tmp_path):
    """The bundle, to be spoilt."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in bundle.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def checked(folder, **keys):
    result = audit(AuditPlan(verify=str(folder), **keys))
    return result, result.verified


def test_a_whole_bundle_holds_and_its_finding_is_computed_anew(bundle):
    result, found = checked(bundle, checks=("duplicates",))
    assert result.exit_code == 0
    assert not found.failed
    for words in ("follows its schema", "sums of 4 files", "chain of 1 audits", "signature", "duplicates computed anew"):
        assert any(words in line for line in found.passed)
    assert "holds: duplicates computed anew" in result.text()
    json.dumps(result.as_json())


def test_empty_forms_are_written_and_nothing_is_audited(tmp_path):
    result = audit(AuditPlan(features="nowhere.parquet", out=str(tmp_path), gate="new", declaration="new"))
    assert result.report is None
    assert result.exit_code == 0
    assert result.text().count("fill in") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["declaration.yaml", "policy.yaml"]
    written = (tmp_path / "policy.yaml").read_text().splitlines()
    (tmp_path / "set.yaml").write_text("\n".join(line[2:] for line in written if line.startswith("# ")))
    assert read_policy(tmp_path / "set.yaml") == Policy()  # what it calls defaults are the defaults


def test_a_report_that_was_altered_is_not_judged(copy, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: mine")
    plan = AuditPlan(report=str(copy), gate=str(policy))
    assert audit(plan).exit_code == 4  # most of what is needed was not asked for
    whole = (copy / "audit.json").read_text()
    (copy / "audit.json").write_text(whole.replace("NOT_ASSESSABLE", "CLEAR_WITHIN_LIMITS"))
    with pytest.raises(UserError, match="was altered"):
        audit(plan)
    (copy / "audit.json").write_text(whole)
    with pytest.raises(UserError, match="was made for internal_use"):
        audit(replace(plan, decision="release_weights"))


def test_inputs_that_moved_are_given_with_verify(copy, files, tmp_path):
    moved = shutil.copy(files[0]["features"], tmp_path / "moved.parquet")
    body = json.loads((copy / "audit.json").read_text())
    body["plan"]["inputs"]["features"] = "nowhere.parquet"
    (copy / "audit.json").write_text(json.dumps(body))
    assert any("computed anew" in line for line in checked(copy, checks=("duplicates",), features=str(moved))[1].passed)
    with pytest.raises(UserError, match="nowhere"):
        checked(copy, checks=("duplicates",))


def test_an_altered_page_is_noticed(copy):
    (copy / "audit.html").write_text("all is well")
    result, found = checked(copy)
    assert result.exit_code == 1
    assert found.failed == ("altered or missing: audit.html",)


def test_a_report_with_new_sums_is_given_away_by_signature_and_finding(copy):
    body = json.loads((copy / "audit.json").read_text())
    body["findings"][0]["estimate"]["value"] = 0.5
    (copy / "audit.json").write_text(json.dumps(body))
    sums = subprocess.run(["sha256sum", "audit.html", "audit.json", "audits.jsonl", "card.md"], cwd=copy, capture_output=True, check=True)
    (copy / "SHA256SUMS").write_bytes(sums.stdout)
    _, found = checked(copy, checks=("duplicates",))
    assert any("signature is not that of" in line for line in found.failed)
    assert any(line.startswith("duplicates: value") for line in found.failed)


def test_a_verdict_that_was_rewritten_with_new_sums_is_noticed(copy):
    body = json.loads((copy / "audit.json").read_text())
    body["findings"][0] |= {"verdict": "CLEAR_WITHIN_LIMITS", "answer": "Nothing here."}
    (copy / "audit.json").write_text(json.dumps(body))
    sums = subprocess.run(["sha256sum", "audit.html", "audit.json", "audits.jsonl", "card.md"], cwd=copy, capture_output=True, check=True)
    (copy / "SHA256SUMS").write_bytes(sums.stdout)
    assert any("not those that the audit was named by" in line for line in checked(copy)[1].failed)


def test_a_finished_report_is_overwritten_only_when_told(files, bundle, copy):
    with pytest.raises(UserError, match="holds a finished report"):
        audit(AuditPlan(**files[0], out=str(bundle)))
    before = (copy / "audit.json").read_bytes()
    audit(AuditPlan(**files[0] | {"seed": 1}, out=str(copy), overwrite=True))
    assert (copy / "audit.json").read_bytes() != before


def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(files, tmp_path):
    with pytest.raises(UserError, match=r"audit\.sign"):
        audit(AuditPlan(**files[0], out=str(tmp_path / "report"), sign=str(tmp_path / "none.pem")))
    assert not list(tmp_path.iterdir())


def test_formats_that_cannot_be_written_are_refused_before_the_audit_counts(files, tmp_path):
    with pytest.raises(UserError, match="cells need longitude"):
        audit(AuditPlan(**files[0], out=str(tmp_path / "report"), formats=("cells",)))
    assert not list(tmp_path.iterdir())


def test_a_chain_without_this_audit_is_noticed(copy):
    lines = (copy / "audits.jsonl").read_text()
    (copy / "audits.jsonl").write_text(lines.replace('"decision":"internal_use"', '"decision":"release_weights"'))
    _, found = checked(copy)
    assert any("does not hold this audit" in line for line in found.failed)


def test_an_unsigned_report_is_said_to_be_so(copy, files):
    (copy / "SHA256SUMS.sig").unlink()
    assert checked(copy)[1].open == ("the report is not signed",)
    assert "the report is not signed" in checked(copy, key=str(copy / "SHA256SUMS.pub"))[1].failed


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checked(tmp_path)
    assert AuditPlan(verify=str(tmp_path)).out is None


def test_a_second_audit_counts_and_other_thresholds_are_told(files, tmp_path):
    keys, _ = files
    keys = {**keys, "checks": ("declaration",)}
    audit(AuditPlan(**keys, out=str(tmp_path / "one")))
    policy = tmp_path / "policy.yaml"
    policy.write_text("thresholds: {tau_flag: 0.9}\nrequired: []\n")
    second = audit(AuditPlan(**keys, out=str(tmp_path / "two"), gate=str(policy)))
    assert second.report.history.words() == "audit 2 of this checkpoint; policy fixed after first results; thresholds changed once"
    assert second.exit_code == 0
    assert second.report.gate.asked
    assert "audit 2 of these features" in second.paths.html.read_text("utf-8").lower()


def test_the_command_of_a_finding_is_a_plan_again():
    inputs = {"features": "/data/a b/f.parquet", "attributes": ["sex", 'age "years", recorded'], "seed": 3, "decision": "deploy:triage"}
    words = shlex.split(command("attribute", inputs | {"permutations": 400}, "out again"))
    assert words[:2] == ["dinodomain", "audit"]
    plan = make_plan(VERBS["audit"], split_words(words[2:]))
    assert plan.attributes == ("sex", 'age "years", recorded')
    assert (plan.features, plan.seed, plan.checks, plan.permutations) == ("/data/a b/f.parquet", 3, ("attribute",), 400)
    assert (plan.out, plan.decision) == ("out again", "deploy:triage")
