"""The chain of audits: counts, notices moved thresholds and altered lines; and the signature over the sums."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from dinodomain.audit.chain import chain_of, head_of, history_of, next_line, read_chain, write_chain
from dinodomain.audit.sign import check_signature, sign, signing_key
from dinodomain.errors import UserError


def made(tmp_path, *audits):
    """A chain of made-up audits (subject, policy, threshold), written and read again."""
    lines = []
    for number, (subject, policy, threshold) in enumerate(audits):
        report = SimpleNamespace(
            audit_id=f"id{number}", created=f"2026-01-0{number + 1}T00:00:00+00:00", subject={"weights": subject}, data={}, decision="x",
            policy={"digest": policy, "thresholds": {"tau": threshold}},
        )  # fmt: skip
        lines.append(next_line(lines, report, tmp_path / "run" / f"report{number}", tmp_path / "run" / "audits.jsonl"))
    write_chain(tmp_path / "run" / "audits.jsonl", lines)
    return read_chain(tmp_path / "run" / "audits.jsonl")


def test_the_first_audit_has_its_policy_before_results(tmp_path):
    history = history_of(made(tmp_path, ("a", "p", 1)))
    assert history.words() == "audit 1 of this checkpoint; policy fixed before first results; thresholds changed 0 times"


def test_other_checkpoints_do_not_count_and_changes_do(tmp_path):
    lines = made(tmp_path, ("a", "p", 1), ("b", "q", 7), ("a", "p2", 2), ("a", "p", 1))
    history = history_of(lines)
    assert (history.number, history.policy_fixed, history.thresholds_changed) == (3, "after", 2)
    assert history_of(lines[:3]).words().endswith("thresholds changed once")
    assert history.head == head_of(lines[-1])


def test_an_equal_policy_stays_fixed_before(tmp_path):
    assert history_of(made(tmp_path, ("a", "p", 1), ("a", "p", 1))).policy_fixed == "before"


@pytest.mark.parametrize(
    "spoil", [lambda rows: rows[1:], lambda rows: [rows[0], rows[2]], lambda rows: [rows[0].replace("id0", "id9"), *rows[1:]]]
)
def test_an_altered_or_dropped_line_is_noticed(tmp_path, spoil):
    made(tmp_path, ("a", "p", 1), ("a", "p", 1), ("a", "p", 1))
    path = tmp_path / "run" / "audits.jsonl"
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match="does not follow the line before"):
        read_chain(path)


def test_a_chain_that_is_no_json_is_refused_and_none_is_empty(tmp_path):
    assert read_chain(tmp_path / "audits.jsonl") == ()
    (tmp_path / "audits.jsonl").write_text("{")
    with pytest.raises(UserError, match="is not a chain"):
        read_chain(tmp_path / "audits.jsonl")


def test_the_chain_lies_in_the_run_or_beside_the_report(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step").mkdir(parents=True)
    for checkpoint in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step"):
        assert chain_of(str(checkpoint), tmp_path / "x" / "report") == tmp_path / "run" / "audits.jsonl"
    assert chain_of(None, tmp_path / "x" / "report") == tmp_path / "x" / "audits.jsonl"
    assert chain_of("hub:name", tmp_path / "x" / "report") == tmp_path / "x" / "audits.jsonl"


def test_the_report_is_told_relative_to_the_chain(tmp_path):
    assert made(tmp_path, ("a", "p", 1))[0]["report"] == "report0"
    assert json.loads((tmp_path / "run" / "audits.jsonl").read_text())["before"] == "0" * 64


@pytest.fixture
def key(tmp_path):
    """A fresh Ed25519 key, as openssl writes it."""
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)], check=True, capture_output=True)
    return path


def test_a_signature_holds_until_a_byte_changes(tmp_path, key):
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("ab  audit.json\n")
    _, public = sign(sums, signing_key(str(key)))
    assert check_signature(sums)
    assert check_signature(sums, str(public))
    sums.write_text("ac  audit.json\n")
    assert not check_signature(sums)


def test_keys_that_cannot_sign_are_refused_with_a_remedy(tmp_path, key):
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("ab  audit.json\n")
    with pytest.raises(UserError, match="openssl genpkey"):
        signing_key(str(tmp_path / "none.pem"))
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(UserError, match="is no key"):
        signing_key(str(tmp_path / "no.pem"))
    wrong = tmp_path / "ec.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "X25519", "-out", str(wrong)], check=True, capture_output=True)
    with pytest.raises(UserError, match="another kind of key"):
        signing_key(str(wrong))
