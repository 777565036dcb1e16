import json

import pytest

from dinodomain.demo import DemoPlan, run_demo
from dinodomain.demo.clinic import AUDIT
from dinodomain.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    # timm builds its own layers with a deprecated torch.jit annotation; nothing of ours.
    "ignore:`torch.jit.*:DeprecationWarning"
)


@pytest.mark.slow
def test_the_clinic_ends_with_a_table_and_its_files_and_is_not_done_twice(tmp_path, monkeypatch):
    fewer = {"checks": ("provenance", "site", "attribute"), "permutations": 99, "bootstraps": 100}
    monkeypatch.setattr("dinodomain.demo.clinic.AUDIT", AUDIT | fewer)
    plan = DemoPlan(out=str(tmp_path), scenario="clinic", steps=2, patients=60)
    first = run_demo(plan).stories[0]
    assert {"archive", "ingested", "pretrained", "exported"} <= {what for what, _ in first.rows}
    assert "MADE-UP" in first.text()
    for name, path in first.files.items():
        assert (tmp_path / path).exists(), name
    assert "MADE-UP" in (tmp_path / "clinic" / "probe" / "probe.txt").read_text()
    audit = json.loads((tmp_path / "clinic" / "audit" / "audit.json").read_text())
    assert "MADE-UP" in audit["notice"]
    assert (tmp_path / "clinic" / "audit" / "audit.html").read_text().count("MADE-UP") >= 3
    metrics = (tmp_path / "clinic" / "run" / "metrics.jsonl").read_text()
    again = run_demo(plan).stories[0]
    assert (tmp_path / "clinic" / "run" / "metrics.jsonl").read_text() == metrics
    assert again.numbers["verdicts"] == first.numbers["verdicts"]


@pytest.mark.slow
def test_the_scene_ends_with_pictures_and_an_audit_of_place(tmp_path):
    story = run_demo(DemoPlan(out=str(tmp_path), scenario="tiles", steps=2)).stories[0]
    for name, path in story.files.items():
        assert (tmp_path / path).exists(), name
    assert {"attribute/east_half", "attribute/north_half"} <= set(story.numbers["verdicts"])
    assert story.numbers["export_max_abs_diff"] < 1e-4


def test_a_demo_too_small_to_tell_anything_is_refused():
    with pytest.raises(UserError, match=r"patients: is 10; allowed: 60 or more"):
        DemoPlan(patients=10)
