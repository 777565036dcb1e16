"""Domains are found by name and only then loaded; policies and plug-ins that make no sense are refused with a clear message."""

from __future__ import annotations

import sys

import pytest
import torch

from dinodomain.domain import Domain, ViewPolicy, find_domain, installed_domains, linear_to_unit
from dinodomain.errors import UserError
from dinodomain.testing import SyntheticImages, SyntheticVolumes
from dinodomain.types import TileInfo

PLUGIN = """
from dinodomain.testing import SyntheticImages, SyntheticVolumes

ready = SyntheticImages(name="ready")


class Made(SyntheticImages):
    def __init__(self):
        super().__init__(name="made")


misnamed = SyntheticVolumes(name="other")


class Half:
    name = "half"
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed distribution with entry points, made by hand: no installer is needed."""
    (tmp_path / "plugin_for_tests.py").write_text(PLUGIN)
    info = tmp_path / "plugin_for_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-for-tests\nVersion: 1.0\n")
    targets = {"ready": "ready", "made": "Made", "misnamed": "misnamed", "half": "Half"}
    lines = [f"{name} = plugin_for_tests:{target}" for name, target in targets.items()]
    lines.append("needy = plugin_that_is_not_there:domain")
    (info / "entry_points.txt").write_text("[dinodomain.domains]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("plugin_for_tests", None)


def test_domains_are_listed_without_being_loaded(plugins):
    assert {"ready", "made", "needy"} <= set(installed_domains())
    assert "plugin_for_tests" not in sys.modules


@pytest.mark.parametrize("name", ["ready", "made"])
def test_an_entry_point_may_give_a_domain_or_its_class(plugins, name):
    found = find_domain(name)
    assert isinstance(found, Domain)
    assert found.name == name


def test_a_misspelt_name_gets_a_suggestion(plugins):
    with pytest.raises(UserError, match=r"unknown domain 'redy'; allowed: .*ready.*; did you mean 'ready'\?"):
        find_domain("redy")


def test_a_domain_under_another_name_is_refused(plugins):
    with pytest.raises(UserError, match="entry point 'misnamed' gives a domain named 'other'"):
        find_domain("misnamed")


def test_half_a_domain_is_refused(plugins):
    with pytest.raises(UserError, match="gives Half, which lacks members of a Domain"):
        find_domain("half")


def test_the_synthetic_domains_are_domains():
    assert isinstance(SyntheticImages(), Domain)
    assert isinstance(SyntheticVolumes(), Domain)


def test_a_policy_may_only_flip_axes_it_has():
    with pytest.raises(UserError, match=r"flip: names unknown axes \['LR'\]; allowed: NS, EW"):
        ViewPolicy(axes=("NS", "EW"), flip={"LR": 0.5})


def test_no_axis_is_flipped_unless_it_is_named():
    assert dict(ViewPolicy(axes=("IS", "AP", "LR")).flip) == {}


def info(scale, offset, low, high):
    rows = [torch.tensor(values, dtype=torch.float32) for values in (scale, offset, low, high)]
    empty = torch.zeros(len(scale), 2)
    return TileInfo(scale=rows[0], offset=rows[1], nodata=rows[0] * torch.nan, low=rows[2], high=rows[3], spacing=empty, valid_box=empty)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_linear_values_reach_the_unit_range_per_sample_and_channel(dtype):
    pixels = torch.tensor([[[[0.0, 50.0, 200.0]], [[0.0, 50.0, 200.0]]]]).to(dtype)
    unit = linear_to_unit(pixels, info([[1.0, 2.0]], [[0.0, -10.0]], [[0.0, -10.0]], [[100.0, 190.0]]))
    torch.testing.assert_close(unit, torch.tensor([[[[0.0, 0.5, 1.0]], [[0.0, 0.5, 1.0]]]]))
    assert unit.dtype == torch.float32


def test_the_stored_pixels_are_never_changed():
    pixels = torch.full((1, 1, 2, 2), 7.0)
    linear_to_unit(pixels, info([[1.0]], [[0.0]], [[0.0]], [[10.0]]))
    assert pixels.unique().tolist() == [7.0]


def test_volumes_broadcast_like_images():
    pixels = torch.arange(8, dtype=torch.int16).reshape(1, 1, 2, 2, 2)
    unit = linear_to_unit(pixels, info([[1.0]], [[0.0]], [[0.0]], [[7.0]]))
    torch.testing.assert_close(unit.flatten(), torch.arange(8) / 7)


def test_a_range_without_width_gives_finite_numbers():
    unit = linear_to_unit(torch.tensor([[[[3.0, 4.0]]]]), info([[1.0]], [[0.0]], [[3.0]], [[3.0]]))
    assert unit.flatten().tolist() == [0.0, 1.0]
