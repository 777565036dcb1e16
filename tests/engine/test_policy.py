"""``views.policy``: changes of a domain's policy, how they are refused, recorded, and kept for resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dinodomain.domain import Gamma, Haze, ViewPolicy
from dinodomain.engine import EnginePlan, Facts, PretrainPlan, pretrain, resolve
from dinodomain.engine.build import build
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.policy import changed, operations
from dinodomain.views import ViewsPlan, effective_policy

POLICY = ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5}, haze=Haze(), wavelengths_nm={"a": 490.0}, default_mode="source")
FACTS = Facts(ndim=2, channels=("a",), extents={(256, 256): 1000}, policy=POLICY)


def plan(**views):
    return PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"), views=ViewsPlan(**views))


CHANGES = {"flip": ["EW"], "haze": None, "gamma": {"exponent": [0.9, 1.1]}, "global_scale": [0.5, 0.9], "default_mode": "domain"}


def test_the_resolved_plan_holds_every_number_of_the_policy_in_force():
    resolved = resolve(plan(policy=CHANGES), FACTS)
    views = resolved.plan.views
    assert (views.global_scale, views.normalise) == ((0.5, 0.9), "domain")
    assert views.policy["gamma"] == {"probability": 0.8, "exponent": [0.9, 1.1]}
    assert (views.policy["flip"], views.policy["haze"]) == ({"EW": 0.5}, None)
    assert changed(POLICY, views.policy) == effective_policy(POLICY, plan(policy=CHANGES).views)
    assert json.loads(json.dumps(to_json(resolved.plan)))["views"]["policy"] == views.policy
    assert "views.policy = that of domain 'x' with another flip, haze, gamma, global_scale, default_mode: asked for" in resolved.reasons
    assert resolve(resolved.plan, FACTS).plan == resolved.plan


def test_an_unchanged_policy_is_recorded_without_a_word_and_classes_count_as_their_values():
    resolved = resolve(plan(), FACTS)
    assert changed(POLICY, resolved.plan.views.policy) == POLICY
    assert not any("views.policy" in reason for reason in resolved.reasons)
    assert resolve(plan(policy={"gamma": Gamma()}), FACTS).plan == resolved.plan


def test_without_augmentation_the_policy_on_record_has_no_operation():
    resolved = resolve(plan(augment=False), FACTS)
    assert not operations(changed(POLICY, resolved.plan.views.policy))
    assert "views.augment = False: crops only, no operation acts" in resolved.reasons


def test_axes_that_the_domain_lacks_are_reported_with_all_other_problems():
    with pytest.raises(UserError, match=r"views\.policy\.flip: names unknown axes \['AP'\]; allowed: NS, EW\nviews\.global_size: is 100"):
        resolve(plan(policy={"flip": ["AP"]}, global_size=100), FACTS)


def test_the_lineage_has_the_policy_with_what_no_user_may_change(make_plan, images):
    setup = build(make_plan(views={"policy": {"gamma": None}}), images)
    assert setup.training.policy.gamma is None
    recorded = setup.record("run", 0)["plan"]["views"]["policy"]
    assert recorded == to_json(setup.training.policy)
    assert recorded["axes"] == ["NS", "EW"]


def test_a_changed_policy_acts_and_does_not_resume_another_run(make_plan, images, tmp_path, monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: None)
    plain = make_plan(engine={"steps": 2})
    first = pretrain(plain, domain=images)
    other = replace(plain, views=replace(plain.views, policy={"gamma": {"exponent": [0.5, 0.6], "probability": 1}}))
    with pytest.raises(UserError, match=r"policy\.gamma\.exponent was \[0\.8, 1\.25\], now \[0\.5, 0\.6\].*old values"):
        pretrain(other, domain=images)
    elsewhere = pretrain(replace(other, out=str(tmp_path / "other")), domain=images)
    assert elsewhere.metrics()[0]["loss"] != first.metrics()[0]["loss"]
    assert elsewhere.plan["views"]["policy"]["gamma"] == {"probability": 1.0, "exponent": [0.5, 0.6]}
    assert elsewhere.plan["views"]["policy"]["noise"] == first.plan["views"]["policy"]["noise"]
    same = replace(plain, views=replace(plain.views, policy=first.plan["views"]["policy"]))
    assert pretrain(same, domain=images).step == 2


def test_a_scale_of_the_policy_is_told_as_asked_for():
    reasons = resolve(plan(policy={"global_scale": [0.5, 0.9]}), FACTS).reasons
    assert "views.global_scale = (0.5, 0.9): asked for in views.policy" in reasons
    assert any(reason.startswith("views.local_scale = (0.05, 0.32): the policy of domain") for reason in reasons)
