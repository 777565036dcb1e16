"""Device, number format and threads of a run: what is chosen, why, and the switches that apply it.

Weights, optimiser state, centres and losses stay float32; ``bf16`` means autocast of matrix products around the forward pass.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Literal

import torch

from dinodomain.errors import UserError

Precision = Literal["fp32", "bf16"]


def choose_precision(wanted: str, device: str) -> tuple[Precision, str]:
    """A number format the device computes fast, and the reason for it.

    Raises:
        UserError: The device has no bfloat16.
    """
    kind = torch.device(device).type
    supported = kind == "cpu" or (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if wanted == "auto":
        if kind == "cuda" and supported:
            return "bf16", "the CUDA device computes bfloat16 natively"
        return "fp32", "exact and portable; engine.precision=bf16 is faster on CPUs with bfloat16 units"
    if wanted == "bf16" and not supported:
        raise UserError("engine.precision", f"'bf16' is not supported on {device!r}", allowed="fp32, auto")
    return ("bf16" if wanted == "bf16" else "fp32"), "asked for"


def choose_threads(wanted: int | None, before: int | None = None) -> tuple[int, str]:
    """Threads for CPU arithmetic, and the reason: bit-equal resume needs the same number again, so it is frozen into the plan.

    Args:
        wanted: ``engine.threads``.
        before: Those of the run that goes on.
    """
    if wanted is not None:
        return wanted, "asked for"
    if before is not None:
        return before, "those that the run began with: another number gives other sums"
    return torch.get_num_threads(), "torch's own choice here (follows OMP_NUM_THREADS and the CPUs this process may use)"


def apply_switches(*, device: str, threads: int, deterministic: bool) -> None:
    """Sets threads, TF32 and determinism for this process.

    Determinism makes CUDA bit-equal from run to run and costs some speed; CPU arithmetic is so at a given thread count.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if torch.device(device).type == "cuda":
        # By this function alone: after ``backends.cuda.matmul.allow_tf32`` torch 2.9 and later refuse to say how precise products are,
        # which rendering asks, to put it back.
        torch.set_float32_matmul_precision("highest" if deterministic else "high")
        torch.backends.cudnn.allow_tf32 = not deterministic
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            # cuBLAS reads this when its handle is made; without it deterministic mode refuses matrix products.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call loads torch's compiler: seconds, when nothing changes
        torch.use_deterministic_algorithms(deterministic)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass in a precision that ``choose_precision`` gave."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
