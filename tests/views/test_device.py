"""Views on an accelerator, as far as a CPU can tell: nothing waits for the device, and few things are launched.

The ``meta`` device runs the accelerator's path without numbers: whatever asks for one (``item``, ``bool``, ``nonzero``) raises.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinodomain.domain import Blur, Gain, Jitter, ViewPolicy, Window, linear_to_unit
from dinodomain.policy import Operation, Speckle, operations
from dinodomain.types import Batch, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, matmul, render

META = torch.device("meta")
PLANE = (ViewsPlan(), (256, 256))
VOLUME = (ViewsPlan(global_size=96, local_size=48), (128, 128, 128))


def moved(batch: Batch, device: torch.device) -> Batch:
    """All tensors of a batch on another device."""

    def own(item):
        found = {f.name: getattr(item, f.name) for f in fields(item)}
        return {name: value.to(device) for name, value in found.items() if isinstance(value, torch.Tensor)}

    return replace(batch, info=TileInfo(**own(batch.info)), **own(batch))


def common(ndim: int) -> ViewPolicy:
    """What domains use for most images, everything of it on."""
    axes = ("IS", "AP", "LR")[-ndim:]
    return ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), blur=Blur(), gain=Gain(), window=Window(), jitter=Jitter(per_channel=True))


def everything(ndim: int) -> ViewPolicy:
    """Every operation that exists."""
    axes = ("IS", "AP", "LR")[-ndim:]
    kinds = {kind.__name__.lower(): kind for kind in Operation.__args__}
    own = {f.name: kinds[f.name.replace("_", "")]() for f in fields(ViewPolicy) if f.name.replace("_", "") in kinds}
    assert len(own) == len(kinds)
    own["speckle"] = Speckle(scale="power")
    if ndim == 2:
        del own["thickness"]
    wavelengths = {"band 0": 490.0, "band 1": 665.0}
    return ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True, wavelengths_nm=wavelengths, **own)


class Launches(TorchDispatchMode):
    """Counts calls that would launch something, all but views and allocations; and those that take a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.from_host: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [item.alias_info for item in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if not view and "empty" not in func._schema.name:
            self.found[func._schema.name] += 1
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        if any(item.device.type == "cpu" and item.ndim for item in given):
            self.from_host[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def run(batch: Batch, policy: ViewPolicy, plan: ViewsPlan, normalisation):
    params = draw_batch(policy, plan, batch, seed=0, normalisation=normalisation)
    return params, render(batch, params, to_float=linear_to_unit, normalisation=normalisation, patch_size=8)


@pytest.mark.parametrize(("plan", "extent"), [PLANE, VOLUME], ids=["2-D", "3-D"])
@pytest.mark.parametrize(("masked", "split"), [(False, False), (True, True)])
def test_nothing_waits_for_the_device(make_batch, normalisation, monkeypatch, plan, extent, masked, split):
    monkeypatch.setattr(matmul, "splits", lambda _: split)
    valid = torch.zeros(2, 1, *extent, dtype=torch.uint8) if masked else None
    batch = make_batch(2, 2, extent, torch.float32 if masked else torch.uint16, valid=valid)
    policy = everything(len(extent))
    own = normalisation(batch)
    windows = replace(own, channels=("a", "b", "c"), sources=("band 1", "band 0", "band 1"), **{
        name: getattr(own, name)[:1] * 3 for name in ("low", "high", "mean", "std")
    })  # fmt: skip
    for norm in (own, windows):
        run(moved(batch, META), policy, plan, norm)  # constants reach the device once
        with Launches() as launches, monkeypatch.context() as patched:
            patched.setattr(torch, "tensor", _copies)
            _, views = run(moved(batch, META), policy, plan, norm)
        # Lists as indexes are copied from the host, too.
        assert not {"aten::index", "aten::index_put_"} & set(launches.found)
    _, views = run(moved(batch, META), policy, plan, own)
    assert [tuple(group.pixels.shape[:2]) for group in views.groups] == [(4, 2), (16, 2)]
    assert all(group.pixels.device == META for group in views.groups)
    assert len(operations(policy)) >= 15


def _copies(*values, **options):
    raise AssertionError(f"torch.tensor{values} is a copy from the host in every step")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_a_real_device(make_batch, normalisation):
    for plan, extent in (PLANE, VOLUME):
        batch = make_batch(2, 2, extent, torch.uint16, valid=torch.zeros(2, 1, *extent, dtype=torch.uint8))
        there = moved(batch, torch.device("cuda"))
        run(there, everything(len(extent)), plan, normalisation(batch))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(there, everything(len(extent)), plan, normalisation(batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_meta_device_does_tell():
    with pytest.raises(RuntimeError):
        bool(torch.ones(3, device=META).all())


@pytest.mark.parametrize(
    ("plan", "extent", "channels", "dtype", "masked", "most"),
    [(*PLANE, 3, torch.uint8, False, 450), (*PLANE, 12, torch.uint16, True, 540), (*VOLUME, 1, torch.int16, False, 450)],
    ids=["photograph", "bands with a mask", "volume"],
)
def test_a_batch_takes_few_launches(make_batch, normalisation, plan, extent, channels, dtype, masked, most):
    valid = torch.zeros(4, 1, *extent, dtype=torch.uint8) if masked else None
    batch = moved(make_batch(4, channels, extent, dtype, valid=valid), META)
    own = normalisation(batch)
    run(batch, common(len(extent)), plan, own)  # constants reach the device once
    with Launches() as launches:
        run(batch, common(len(extent)), plan, own)
    assert launches.found.total() <= most, launches.found
    assert not launches.from_host  # a copy from the host in every step makes it wait


def test_launches_do_not_grow_with_samples_or_views(make_batch, normalisation):
    counts = []
    for samples, local in ((2, 2), (16, 8)):
        batch = moved(make_batch(samples, 3, (256, 256), torch.uint8), META)
        plan = ViewsPlan(num_local=local)
        run(batch, common(2), plan, normalisation(batch))
        with Launches() as launches:
            run(batch, common(2), plan, normalisation(batch))
        counts.append(launches.found)
    assert counts[0] == counts[1]
