"""Products of float32 matrices as float32 has them, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Keeps TF32 (10 bits of mantissa) out of the products inside; ``engine`` allows it everywhere else.

    Backward passes run later and outside. While a program is traced for export or compiled nothing is switched: the switch is no part of
    a program, and who runs one chooses it.
    """
    if torch.compiler.is_compiling():
        yield
        return
    # By this function alone: mixed with ``backends.cuda.matmul.allow_tf32`` torch 2.9 and later refuse to say how precise products are.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
