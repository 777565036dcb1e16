from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dinodomain_medical
from dinodomain.domain import Domain
from dinodomain_medical import ct, mri, xray


def test_domains_are_what_the_contract_asks(any_domain):
    assert isinstance(any_domain, Domain)
    assert any_domain.personal
    assert any_domain.extra == "medical"
    assert len(any_domain.view_policy().axes) == any_domain.ndim
    assert "LR" not in any_domain.view_policy().flip
    assert not any_domain.view_policy().quarter_turns
    assert all(probe.unit == "patient" and probe.source for probe in any_domain.probes())
    assert pickle.loads(pickle.dumps(any_domain)) == any_domain


def test_default_ranges_and_modes():
    assert (ct.channels["ct"].unit, ct.channels["ct"].low, ct.channels["ct"].high) == ("HU", -1024.0, 3071.0)
    assert [domain.view_policy().default_mode for domain in (ct, mri, xray)] == ["domain", "source", "source"]
    assert [domain.layout for domain in (ct, mri, xray)] == ["window", "window", "whole"]


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "pydicom", "nibabel", "SimpleITK")
    code = f"import sys, dinodomain_medical; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_package_lists_every_file():
    folder = Path(dinodomain_medical.__file__).parent
    for path in folder.glob("*.py"):
        assert path.name == "__init__.py" or f"``{path.name}``" in (dinodomain_medical.__doc__ or ""), path.name


def test_one_image_under_two_scales_gives_equal_network_input():
    torch = pytest.importorskip("torch")
    from dinodomain.types import TileInfo

    def info(scale: float, offset: float) -> TileInfo:
        one = torch.tensor([[1.0]])
        return TileInfo(
            scale=one * scale, offset=one * offset, nodata=one * float("nan"), low=one * -1024, high=one * 3071,
            spacing=torch.ones(1, 3), valid_box=torch.zeros(1, 3, 2, dtype=torch.int64),
        )  # fmt: skip

    hounsfield = np.arange(-1000, 1000, 4, dtype=np.int16).reshape(1, 1, 5, 10, 10)
    shifted = ((hounsfield + 1024) // 2).astype(np.uint16)
    first = ct.to_float(torch.from_numpy(hounsfield), info(1, 0))
    second = ct.to_float(torch.from_numpy(shifted), info(2, -1024))
    torch.testing.assert_close(first, second)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
