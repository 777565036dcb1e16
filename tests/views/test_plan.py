from __future__ import annotations

import dataclasses
import re

import pytest

from dinodomain.config import attribute_docs, build
from dinodomain.domain import Gamma, ViewPolicy
from dinodomain.errors import Problems
from dinodomain.views import ViewsPlan


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"gama": None}, r"views\.policy\.gama: unknown key; did you mean 'gamma'\?"),
        ({"axes": ["AP"]}, r"views\.policy\.axes: unknown key"),
        ({"gamma": {"exponnt": 1}}, r"views\.policy\.gamma\.exponnt: unknown key; did you mean 'exponent'\?"),
        ({"gamma": 3}, r"views\.policy\.gamma: 3 is not valid; allowed: null \(off\), or a mapping"),
        ({"gamma": {"exponent": [2, 1]}}, r"views\.policy\.gamma\.exponent: is \(2\.0, 1\.0\); allowed: two numbers, smallest first"),
        ({"flip": "AP"}, r"views\.policy\.flip: 'AP' is not valid; allowed: a list of axis names"),
        ({"flip": {"AP": 2}}, r"views\.policy\.flip\.AP: is 2\.0; allowed: a probability"),
        ({"speckle": {"scale": "dB"}}, r"views\.policy\.speckle\.scale: 'dB' is not valid; allowed: db, power, amplitude"),
        ({"haze": Gamma()}, r"views\.policy\.haze: Gamma\(.*is not valid"),
    ],
)
def test_changes_of_the_policy_are_judged_without_a_domain_by_full_key(policy, message):
    with pytest.raises(Problems, match=message):
        ViewsPlan(policy=policy)


def test_all_problems_of_views_come_at_once():
    with pytest.raises(Problems, match=r"unknown key(.|\n)*") as caught:
        build(ViewsPlan, {"policy": {"gama": 1, "flip": "AP"}, "num_global": 0, "global_depth": [3, 1]})
    places = [problem.place for problem in caught.value.problems]
    assert places == ["num_global", "global_depth", "views.policy.gama", "views.policy.flip"] or places == [
        "views.num_global", "views.global_depth", "views.policy.gama", "views.policy.flip",
    ]  # fmt: skip


def test_any_axis_name_passes_until_the_domain_is_known():
    plan = ViewsPlan(policy={"flip": {"XY": 0.3}, "thickness": {"axis": "Q"}})
    assert plan.policy["flip"] == {"XY": 0.3}


def test_the_help_of_the_policy_names_every_key_that_may_be_changed():
    text = attribute_docs(ViewsPlan)["policy"]
    names = {item.name for item in dataclasses.fields(ViewPolicy)} - {"axes", "wavelengths_nm"}
    listed = text[text.index("Keys:") :]
    assert names <= set(re.findall(r"\w+", listed))
