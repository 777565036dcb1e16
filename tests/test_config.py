from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from dinodomain import config
from dinodomain.config import KeyMap, build
from dinodomain.errors import Problems, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """Inner keys.

    Attributes:
        num_local: Number of local
            crops.
        scale: Range, as fractions.
    """

    num_local: int = 8
    scale: tuple[float, float] = (0.1, 1.0)

    def __post_init__(self) -> None:
        if self.num_local < 0:
            raise UserError("views.num_local", f"is {self.num_local}", allowed="0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """Outer keys.

    Attributes:
        store: Folder.
    """

    store: str
    mode: Literal["a", "b"] = "a"
    threads: int | None = None
    names: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    flag: bool = False
    views: Inner = field(default_factory=Inner)


def test_a_good_mapping_becomes_the_plan():
    plan = build(
        Outer, {"store": "s", "mode": "b", "threads": 2, "names": ["x"], "weights": {"k": 1}, "flag": True, "views": {"scale": [0, 1]}}
    )
    assert plan == Outer(store="s", mode="b", threads=2, names=("x",), weights={"k": 1.0}, flag=True, views=Inner(scale=(0.0, 1.0)))


def test_all_problems_are_reported_at_once_with_did_you_mean():
    data = {"mode": "c", "threads": "two", "views": {"num_locla": 4, "scale": [1]}, "weights": {"k": "x"}, "flag": 1}
    with pytest.raises(Problems) as caught:
        build(Outer, data)
    text = str(caught.value)
    for line in (
        "store: is required; add store=...",
        "mode: 'c' is not valid; allowed: a, b",
        "threads: 'two' is not valid; allowed: a whole number",
        "views.num_locla: unknown key; did you mean 'views.num_local'?",
        "views.scale: [1] is not valid; allowed: a list of 2 values",
        "weights.k: 'x' is not valid; allowed: a number",
        "flag: 1 is not valid; allowed: true or false",
    ):
        assert line in text.splitlines(), text
    assert len(caught.value.problems) == 7


def test_a_bool_is_neither_number_nor_text():
    with pytest.raises(Problems, match="threads: True is not valid"):
        build(Outer, {"store": "s", "threads": True})
    with pytest.raises(Problems, match="store: True is not valid; allowed: text"):
        build(Outer, {"store": True})


def test_a_number_where_text_is_wanted_is_that_text():
    plan = build(Outer, {"store": 2020, "names": [4, 1.5]})
    assert (plan.store, plan.names) == ("2020", ("4", "1.5"))
    assert build(Outer, {"store": "s", "names": 4}).names == ("4",)


def test_a_rule_across_keys_is_a_problem_like_any_other():
    with pytest.raises(Problems, match=r"views.num_local: is -1; allowed: 0 or more"):
        build(Outer, {"store": "s", "views": {"num_local": -1}})


def test_a_single_name_stands_for_a_list_of_one():
    assert build(Outer, {"store": "s", "names": "x"}).names == ("x",)


def test_messages_spell_keys_as_the_user_does():
    keys = KeyMap(prefix="ingest", top=("store",), sections={"views": "crop"})
    assert keys.to_plan("ingest.mode") == "mode"
    assert keys.to_plan("crop.num_local") == "views.num_local"
    assert keys.to_user("views.num_local") == "crop.num_local"
    with pytest.raises(Problems) as caught:
        build(Outer, {"modes": "a", "views": {"num_local": "x"}}, keys)
    assert "ingest.modes: unknown key; did you mean 'ingest.mode'?" in str(caught.value)
    assert "crop.num_local: 'x' is not valid" in str(caught.value)
    assert "store: is required" in str(caught.value)


def test_help_takes_meaning_from_the_docstring():
    keys = {key: entry for key, entry, _ in config.plan_keys(Outer)}
    assert keys["views.num_local"].meaning == "Number of local crops."
    assert keys["views.num_local"].default == "8"
    assert keys["store"].default == "required"
    assert keys["mode"].kind == "a|b"


def test_configs_are_found():
    assert (config.config_dir() / "pretrain.yaml").is_file()
