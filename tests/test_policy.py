"""A policy with changes of a user: every kind of value, from YAML, with all problems at once."""

from __future__ import annotations

import typing
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import pytest
import yaml

from dinodomain.domain import Blur, Gamma, Haze, Jitter, Noise, Speckle, Thickness, ViewPolicy
from dinodomain.errors import Problems, UserError
from dinodomain.policy import Operation, chances, changed, operations, parameters, without_augmentation

PLAIN = ViewPolicy(axes=("IS", "AP", "LR"), flip={"AP": 0.5}, thickness=Thickness(probability=0.4, mm=(2.0, 5.0)))
CLASSES: dict[str, type] = {
    name: item for name, kind in typing.get_type_hints(ViewPolicy).items() for item in typing.get_args(kind) if is_dataclass(item)
}


def messages(changes: Any, policy: ViewPolicy = PLAIN) -> list[str]:
    with pytest.raises(Problems) as caught:
        changed(policy, changes)
    return [str(problem) for problem in caught.value.problems]


def plain(value: Any) -> Any:
    """A policy or operation as YAML holds it."""
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


# --- every kind of value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"flip": ["IS", "AP"]}, {"flip": {"IS": 0.5, "AP": 0.5}}),
        ({"flip": []}, {"flip": {}}),
        ({"flip": {}}, {"flip": {}}),
        ({"flip": {"LR": 1}}, {"flip": {"LR": 1.0}}),
        ({"quarter_turns": True}, {"quarter_turns": True}),
        ({"global_scale": [0.5, 1]}, {"global_scale": (0.5, 1.0)}),
        ({"aspect": (1, 1)}, {"aspect": (1.0, 1.0)}),
        ({"min_valid": 0}, {"min_valid": 0.0}),
        ({"default_mode": "source"}, {"default_mode": "source"}),
        ({"noise": None}, {"noise": None}),
        ({"noise": {}}, {"noise": Noise()}),
        ({"haze": {}}, {"haze": Haze()}),
        ({"noise": {"probability": [0, 0.5, 1]}}, {"noise": Noise(probability=(0.0, 0.5, 1.0))}),
        ({"haze": {"amount": [0, 0.02]}}, {"haze": Haze(amount=(0.0, 0.02))}),  # off before: the class defaults
        ({"thickness": {"probability": 1}}, {"thickness": Thickness(probability=1.0, mm=(2.0, 5.0))}),  # on before: its own
        ({"thickness": {"axis": "LR"}}, {"thickness": Thickness(probability=0.4, axis="LR", mm=(2.0, 5.0))}),
        ({"jitter": {"per_channel": True}}, {"jitter": Jitter(per_channel=True)}),
        ({"speckle": {"scale": "power"}}, {"speckle": Speckle(scale="power")}),
        ({"gamma": Gamma(probability=0.1)}, {"gamma": Gamma(probability=0.1)}),
        ({}, {}),
    ],
)
def test_a_change_gives_the_value_meant_and_leaves_the_rest(changes, wanted):
    assert changed(PLAIN, changes) == replace(PLAIN, **wanted)


@pytest.mark.parametrize("name", CLASSES)
def test_every_operation_goes_off_and_on_and_takes_each_of_its_keys(name):
    kind = CLASSES[name]
    on = changed(PLAIN, {name: {"probability": 0.25}})
    start = getattr(PLAIN, name) or kind()
    assert getattr(on, name) == replace(start, probability=0.25)
    assert getattr(changed(on, {name: None}), name) is None
    for key, value in plain(start).items():
        assert getattr(changed(PLAIN, {name: {key: value}}), name) == start
        assert messages({name: {key: {"a": 1}}})[0].startswith(f"views.policy.{name}.{key}: {{'a': 1}} is not valid; allowed: ")


def test_every_operation_is_one_of_the_policy():
    assert set(CLASSES.values()) == set(typing.get_args(Operation))


def test_a_policy_survives_yaml():
    everything = replace(PLAIN, quarter_turns=True, **{name: kind() for name, kind in CLASSES.items() if getattr(PLAIN, name) is None})
    assert set(operations(everything)) == set(CLASSES)
    data = {name: value for name, value in plain(everything).items() if name not in ("axes", "wavelengths_nm")}
    again = yaml.safe_load(yaml.safe_dump(data))
    assert changed(ViewPolicy(axes=PLAIN.axes), again) == everything
    assert changed(everything, again) == everything
    assert asdict(changed(ViewPolicy(axes=PLAIN.axes), again)) == asdict(everything)
    nothing = without_augmentation(PLAIN)
    data = yaml.safe_load(yaml.safe_dump({name: value for name, value in plain(nothing).items() if name not in ("axes", "wavelengths_nm")}))
    assert changed(PLAIN, data) == nothing


def test_the_policy_that_is_changed_stays_as_it_was():
    before = asdict(PLAIN)
    changed(PLAIN, {"flip": ["LR"], "noise": None, "gamma": {"exponent": [0.5, 2]}})
    assert asdict(PLAIN) == before


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gama": {}}, "views.policy.gama: unknown key; did you mean 'gamma'?"),
        ({"noise": {"sdt": [0, 1]}}, "views.policy.noise.sdt: unknown key; did you mean 'std'?"),
        ({"noise": {"zzzz": 1}}, "views.policy.noise.zzzz: unknown key; allowed: probability, shot, std"),
        ({"noise": {True: 1}}, "views.policy.noise.True: unknown key; allowed: probability, shot, std"),  # YAML's bare ``on``
        ({1: 1}, "views.policy.1: unknown key; allowed: aspect, bias_field, blur,"),
        ({"flip": "AP"}, "views.policy.flip: 'AP' is not valid; allowed: a list of axis names ([] for none), or {axis: probability}"),
        ({"flip": None}, "views.policy.flip: None is not valid; allowed: a list of axis names"),
        ({"flip": [["AP"]]}, "views.policy.flip: [['AP']] is not valid; allowed: a list of axis names"),
        ({"flip": [1]}, "views.policy.flip: [1] is not valid; allowed: a list of axis names"),
        ({"flip": {"AP": "often"}}, "views.policy.flip: {'AP': 'often'} is not valid; allowed: a list of axis names"),
        ({"flip": {"AP": True}}, "views.policy.flip: {'AP': True} is not valid; allowed: a list of axis names"),
        ({"flip": ["PA"]}, "views.policy.flip: names unknown axes ['PA']; allowed: IS, AP, LR"),
        ({"flip": {"AP": 1.5}}, "views.policy.flip.AP: is 1.5; allowed: a probability, 0 to 1"),
        ({"flip": {"AP": float("nan")}}, "views.policy.flip.AP: is nan; allowed: a probability, 0 to 1"),
        ({"quarter_turns": 1}, "views.policy.quarter_turns: 1 is not valid; allowed: true or false"),
        ({"global_scale": 0.5}, "views.policy.global_scale: 0.5 is not valid; allowed: a list of 2 numbers"),
        ({"global_scale": [0.5, 1, 1]}, "views.policy.global_scale: [0.5, 1, 1] is not valid; allowed: a list of 2 numbers"),
        ({"global_scale": [0.5, True]}, "views.policy.global_scale: [0.5, True] is not valid; allowed: a list of 2 numbers"),
        ({"global_scale": [0.9, 0.5]}, "views.policy.global_scale: is (0.9, 0.5); allowed: two fractions with 0 < smallest <= largest"),
        ({"aspect": [1, float("inf")]}, "views.policy.aspect: is (1.0, inf); allowed: two ratios with 0 < smallest <= largest"),
        ({"min_valid": "half"}, "views.policy.min_valid: 'half' is not valid; allowed: a number"),
        ({"min_valid": 2}, "views.policy.min_valid: is 2.0; allowed: a share, 0 to 1"),
        ({"default_mode": "sorce"}, "views.policy.default_mode: 'sorce' is not valid; allowed: domain, store, source"),
        ({"default_mode": ["store"]}, "views.policy.default_mode: ['store'] is not valid; allowed: domain, store, source"),
        ({"noise": True}, "views.policy.noise: True is not valid; allowed: null (off), or a mapping of keys to change"),
        ({"noise": Blur()}, "views.policy.noise: Blur("),
        ({"noise": {"probability": "often"}}, "views.policy.noise.probability: 'often' is not valid; allowed: a number or a list of 3"),
        ({"noise": {"probability": [0, 1]}}, "views.policy.noise.probability: [0, 1] is not valid; allowed: a number or a list of 3"),
        ({"noise": {"probability": [0, 1, 2]}}, "views.policy.noise.probability: is (0.0, 1.0, 2.0); allowed: 0 to 1, once or three times"),
        ({"noise": {"std": [-1, 1]}}, "views.policy.noise.std: is (-1.0, 1.0); allowed: two numbers, smallest first, none below 0"),
        ({"noise": {"std": None}}, "views.policy.noise.std: None is not valid; allowed: a list of 2 numbers"),
        ({"bias_field": {"nodes": 1}}, "views.policy.bias_field.nodes: is 1; allowed: 2 to "),
        ({"bias_field": {"nodes": 4.5}}, "views.policy.bias_field.nodes: 4.5 is not valid; allowed: a whole number"),
        ({"speckle": {"scale": "dB"}}, "views.policy.speckle.scale: 'dB' is not valid; allowed: db, power, amplitude"),
        ({"thickness": {"axis": "SI"}}, "views.policy.thickness.axis: is 'SI'; allowed: IS, AP, LR"),
        ({"thickness": {"axis": 0}}, "views.policy.thickness.axis: 0 is not valid; allowed: text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_full_key(changes, text):
    (message,) = messages(changes)
    assert message.startswith(text)


@pytest.mark.parametrize("name", ["axes", "wavelengths_nm"])
def test_what_the_domain_alone_knows_is_no_key(name):
    (message,) = messages({name: plain(getattr(PLAIN, name))})
    assert message.startswith(f"views.policy.{name}: unknown key")


def test_all_problems_are_told_at_once_those_of_names_types_and_ranges():
    found = messages(
        {
            "flip": ["PA"], "min_valid": 2, "nose": {}, "gamma": {"exponent": [2, 1], "probabilty": 1},
            "noise": {"std": "a", "shot": [3, 2]}, "blur": 3, "default_mode": 1,
        }
    )  # fmt: skip
    keys = ["flip", "min_valid", "nose", "gamma.exponent", "gamma.probabilty", "noise.std", "noise.shot", "blur", "default_mode"]
    assert sorted(message.split(":")[0] for message in found) == sorted(f"views.policy.{key}" for key in keys)
    assert len(found) == len(keys)


def test_a_class_says_what_is_wrong_with_a_domains_own_policy():
    with pytest.raises(UserError, match=r"thickness\.axis: is 'IS'; allowed: NS, EW"):
        ViewPolicy(axes=("NS", "EW"), thickness=Thickness())
    with pytest.raises(Problems) as caught:
        ViewPolicy(axes=("NS", "EW"), flip={"AP": 2}, local_scale=(0.0, 1.0), gamma=Gamma(exponent=(0.0, 1.0)))
    assert [problem.place for problem in caught.value.problems] == ["flip", "flip.AP", "local_scale", "gamma.exponent"]


# --- what a policy tells ---------------------------------------------------------------------------------------------


def test_chances_and_parameters_of_operations():
    assert chances(Noise(probability=0.3)) == (0.3, 0.3, 0.3)
    assert chances(Blur(probability=(1.0, 0.1, 0.5))) == (1.0, 0.1, 0.5)
    found = {item.name: (item.low, item.high, item.log) for item in parameters(Speckle(looks=(2.0, 8.0)))}
    assert found == {"looks": (2.0, 8.0, True)}
    for kind in CLASSES.values():
        assert all(item.low <= item.high for item in parameters(kind()))
        assert all(item.low > 0 for item in parameters(kind()) if item.log)


def test_blur_has_the_rates_of_the_papers():
    """DINOv2's published code applies one minus these."""
    assert chances(Blur()) == (1.0, 0.1, 0.5)
