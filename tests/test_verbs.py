"""Keys of the verbs: where each lies for the user, and that every spelling leads back to the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dinodomain import config
from dinodomain.errors import UserError
from dinodomain.verbs import VERBS, Verb

SCORED = {"checkpoint", "store", "labels", "join", "target", "group", "out", "seed"}


def keys_of(verb: Verb) -> list[str]:
    return [key for key, _, _ in config.plan_keys(verb.plan_class())]


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key as YAML nests it."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_plan_key_has_one_spelling_of_its_own_that_leads_back(verb):
    spelt = {key: verb.keys.to_user(key) for key in keys_of(verb)}
    assert len(set(spelt.values())) == len(spelt)
    assert {verb.keys.to_plan(typed): typed for typed in spelt.values()} == spelt


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_key_reaches_its_place_in_the_plan_from_yaml_and_as_a_path(verb):
    for key in keys_of(verb):
        typed, value = verb.keys.to_user(key), object()
        assert at(verb.to_plan_data(nested(typed, value), []), key) is value
        assert at(verb.to_plan_data({}, [(typed, value)]), key) is value


TOP = {
    "probe": SCORED | {"secret"},
    "finetune": SCORED | {"task", "secret"},
    "audit": SCORED | {"metadata", "features", "gate", "report", "secret", "verify", "against"},
    "embed": {"checkpoint", "store", "out"},
    "export": {"checkpoint", "format", "out", "audit", "waive_audit"},
    "ingest": {"domain", "source", "store", "withdraw"},
}


@pytest.mark.parametrize("name", TOP)
def test_what_scripts_rely_on_is_at_top_level_and_the_rest_under_the_verbs_name(name):
    verb = VERBS[name]
    for key in keys_of(verb):
        typed, head = verb.keys.to_user(key), key.partition(".")[0]
        if head in TOP[name]:
            assert typed == key
        elif head not in verb.keys.sections:
            assert typed == f"{name}.{key}"
    assert TOP[name] <= {item.name for item in dataclasses.fields(verb.plan_class())}


@pytest.mark.parametrize(
    ("name", "keys"),
    {
        "ingest": "ingest.include ingest.exclude ingest.metadata ingest.join ingest.group ingest.cell ingest.max_side ingest.audit_holdout "
        "ingest.secret ingest.strict store.chunk",
        "pretrain": "domain store out recipe resume seed engine.steps checkpoint.every optim.lr loader.min_valid views.normalise",
        "audit": "audit.attributes audit.task gate labels metadata join group target",
        "finetune": "task labels target join group finetune.labels_per_class",
        "probe": "labels target join group probe.labels_per_class",
        "views": "store out domain views.normalise loader.min_valid",
        "doctor": "run",
    }.items(),
)
def test_the_keys_of_the_documentation_are_there(name, keys):
    assert set(keys.split()) <= {VERBS[name].keys.to_user(key) for key in keys_of(VERBS[name])}


def test_one_key_under_two_spellings_is_refused_in_any_order():
    with pytest.raises(UserError, match=r"finetune\.steps: is also set as steps; keep one"):
        VERBS["finetune"].to_plan_data({"steps": 3, "finetune": {"steps": 4}}, [])
    for data in ({"storage": {"chunk": 64}, "store": {"chunk": 32}}, {"store": {"chunk": 32}, "storage": {"chunk": 64}}):
        with pytest.raises(UserError, match="is also set as"):
            VERBS["ingest"].to_plan_data(data, [("store", "folder")])


def test_a_folder_and_a_section_may_share_a_name():
    placed = VERBS["ingest"].to_plan_data({"store": {"chunk": 32}, "ingest": {"workers": 0}}, [("store", "folder")])
    assert placed == {"store": "folder", "storage": {"chunk": 32}, "workers": 0}


def test_a_path_in_a_section_stands_beside_the_sections_other_keys():
    data = {"loader": {"batch": 8, "weights": {"a": 2.0}}}
    placed = VERBS["pretrain"].to_plan_data(data, [("loader.ring_dir", "/dev/shm")])
    assert placed == {"loader": {"batch": 8, "weights": {"a": 2.0}, "ring_dir": "/dev/shm"}}


def test_a_path_on_the_command_line_wins_over_the_one_in_a_file():
    assert VERBS["pretrain"].to_plan_data({"out": "a", "seed": 1}, [("out", "b")]) == {"out": "b", "seed": 1}


def test_usage_names_the_verb_and_only_keys_it_has():
    for verb in VERBS.values():
        words = verb.usage.replace("[", " ").replace("]", " ").split()
        assert words[0] == verb.name
        typed = {verb.keys.to_user(key) for key in keys_of(verb)} | set(config.groups_of(verb.name))
        assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= typed
