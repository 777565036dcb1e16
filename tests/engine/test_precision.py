from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dinodomain.engine.precision import autocast, choose_precision, choose_threads
from dinodomain.errors import UserError
from dinodomain.parallel import choose_device


def test_auto_takes_what_is_there():
    device, reason = choose_device("auto")
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "CUDA" in reason


def test_an_absent_or_unknown_device_is_refused_with_what_is_allowed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"engine\.device: 'cuda' is not on this machine; allowed: cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match=r"embed\.device: is 'gpu'"):
        choose_device("gpu", key="embed.device")


def test_auto_precision_on_a_cpu_is_exact():
    assert choose_precision("auto", "cpu")[0] == "fp32"
    assert choose_precision("bf16", "cpu")[0] == "bf16"


def test_threads_are_as_asked_else_those_of_the_run_that_goes_on_else_torchs_own():
    assert choose_threads(5)[0] == 5
    assert choose_threads(5, before=3)[0] == 5
    assert choose_threads(None, before=3)[0] == 3
    assert choose_threads(None)[0] == torch.get_num_threads()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_decides_the_dtype_of_matrix_products(precision, dtype):
    with autocast("cpu", precision):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("deterministic", "matmul"), [(False, "high"), (True, "highest")])
def test_switches_for_an_accelerator_leave_a_precision_that_rendering_can_read_and_put_back(deterministic, matmul):
    # In a process of its own: the switches are global.
    code = f"""
import torch
from dinodomain.engine.precision import apply_switches
from dinodomain.views.render import _full_precision
apply_switches(device="cuda", threads=1, deterministic={deterministic})
with _full_precision(torch.device("cpu")):
    assert torch.get_float32_matmul_precision() == "highest"
print(torch.get_float32_matmul_precision())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [matmul], done.stderr
