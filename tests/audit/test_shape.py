"""Five rows: each has evidence where there is some, and says so where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks.shape import Shaped, finding
from dinodomain.audit.observe.scale import kept_backbones, look_over_time
from dinodomain.audit.observe.views import look_through_operations, training_views
from dinodomain.checkpoint import save_backbone
from dinodomain.probes.scores import Interval

EFFORT = Effort(permutations=99, bootstraps=60, folds=3)
SURE = Interval(value=0.2, low=0.1, high=0.3)
NONE = Interval(value=0.0, low=-0.1, high=0.1)


def test_an_attribute_that_training_made_readable_is_warned_of_and_others_are_not():
    told = finding(Shaped(grown={"sex": SURE}, read={"sex": 0.8}), None, ("sex",), (), {})
    assert told.verdict == "NOT_ASSESSABLE"  # no row has evidence
    rows = {"left_out": {"too dark": 3}}
    assert finding(Shaped(grown={"sex": SURE}, read={"sex": 0.8}, **rows), None, ("sex",), (), {}).verdict == "WARN"
    calm = finding(Shaped(grown={"sex": NONE}, read={"sex": 0.6}, **rows), None, ("sex",), (), {})
    assert calm.verdict == "CLEAR_WITHIN_LIMITS"
    assert calm.evidence["missing"] == ["collection", "augmentations", "domains", "scale"]
    few = finding(Shaped(grown={"sex": NONE}, read={"sex": 0.6}, unread=("age",), **rows), None, ("sex", "age"), (), {})
    assert (few.verdict, few.reason_code) == ("NOT_ASSESSABLE", "n_units")


def test_operations_of_the_policy_and_kept_backbones_give_their_rows(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=72)
    run = tmp_path / "run"
    (run / "backbones").mkdir(parents=True)
    (run / "plan.yaml").write_text("{}")
    for step in (1, 4):
        save_backbone(run / "backbones" / f"step-{step:06d}.safetensors", observed.backbone, history={})
    kept = kept_backbones(str(run / "backbones" / "step-000004.safetensors"))
    assert sorted(kept) == [1, 4]
    over = look_over_time(observed, np.arange(4), kept)
    shown = next(observed.show(np.arange(4)))
    with torch.no_grad():
        np.testing.assert_allclose(over[4], observed.features(shown), atol=1e-5)
    observed = dataclasses.replace(observed, kept=kept)
    data = planted.audit_set(observed)
    data = dataclasses.replace(data, features=data.features | {"untrained": data.audited})
    asked = Asked(attributes=("sign",), domains=("coin",))
    (told,) = run_checks(data, asked=asked, effort=EFFORT, names=("shape",), observer=observed).report.findings
    assert told.evidence["missing"] == ["curation"]
    assert told.tables[1].rows[0][:3] == ("none", 1.0, 1.0)
    assert len(told.tables[1].rows) > 2
    assert told.plots[0].series[0].x == (0.0, 1.0, 4.0)


def test_an_operation_that_changes_nothing_leaves_all(planted, tmp_path):
    observed = planted.observer(tmp_path, planted.glyph, num=8)
    found = look_through_operations(observed, np.arange(8), training_views(observed, None), 0)
    for crops in found.values():
        assert -1 <= crops.kept <= 1.0001
        assert crops.plain.shape == crops.altered.shape == (8, observed.features(next(observed.show(np.arange(8)))).shape[1])
