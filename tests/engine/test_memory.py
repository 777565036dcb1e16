from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinodomain.engine import PretrainPlan, build, train_step
from dinodomain.engine.build import facts_of
from dinodomain.engine.memory import (
    backbone_parameters,
    does_not_fit,
    estimate,
    head_parameters,
    is_out_of_memory,
    memory_errors,
    smallest_accumulation,
)
from dinodomain.engine.recipe import replace_key
from dinodomain.errors import UserError
from dinodomain.loader import find_tiles


class Peak(TorchDispatchMode):
    """Most bytes of tensors alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out

    def add(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key)

    def free(self, key):
        self.now -= self.alive.pop(key)


def measured(setup) -> int:
    training, batch = setup.training, next(iter(setup.loader))
    train_step(training, batch)
    training.optimizer.zero_grad(set_to_none=True)
    peak = Peak()
    moments = [value for state in training.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    for tensor in (*training.pair.parameters(), *training.objective.buffers(), *moments, batch.pixels):
        peak.add(tensor)
    with peak:
        train_step(training, batch)
    return peak.peak


WIDE = {"model": {"dim": 96, "depth": 3, "drop_path": 0.0}, "views": {"global_size": 32, "local_size": 16, "num_local": 4}}


@pytest.mark.parametrize(
    "changes",
    [
        {**WIDE, "loader": {"batch": 8, "threads": 0}},
        {**WIDE, "loader": {"batch": 8, "threads": 0}, "engine": {"accumulate": 4}},
        {**WIDE, "loader": {"batch": 8, "threads": 0}, "engine": {"checkpointing": True}},
        {**WIDE, "loader": {"batch": 8, "threads": 0}, "engine": {"precision": "bf16"}},
        {"loader": {"batch": 8, "threads": 0}, "objective": {"prototypes": 4096, "bottleneck": 32, "centering": "sinkhorn"}},
    ],
)
def test_the_model_is_within_forty_percent_of_a_measured_peak(make_plan, images, changes):
    setup = build(make_plan(**changes), images)
    told = estimate(setup.training.plan, ndim=2, channels=len(setup.training.normalisation.channels))
    assert 1 / 1.4 < told.total / measured(setup) < 1.4, str(told)


@pytest.mark.parametrize("model", [{}, {"mlp": "swiglu", "layer_scale": 0.0}, {"registers": 3, "dim": 32}])
def test_parameters_are_counted_to_the_percent(make_plan, images, model):
    setup = build(make_plan(model=model, objective={"patch_head": "separate", "patch_prototypes": 40}), images)
    plan, student = setup.training.plan, setup.training.pair.student
    counted = backbone_parameters(plan.model, ndim=2, channels=len(setup.training.normalisation.channels), size=16)
    assert counted == pytest.approx(sum(one.numel() for one in student.backbone.parameters()), rel=0.02)
    heads = [*student.head.parameters(), *student.patch_head.parameters()]
    assert head_parameters(plan) == sum(one.numel() for one in heads)


def big() -> PretrainPlan:
    return replace_key(PretrainPlan(domain="x", store="s", out="o"), "loader.batch", 96)


def test_micro_batches_are_the_fewest_that_fit_and_keep_two_samples_for_koleo():
    plan = big()
    whole = estimate(plan, ndim=2, channels=3).total
    count = smallest_accumulation(plan, whole // 3, ndim=2, channels=3)
    assert count is not None
    parts = [replace_key(plan, "engine.accumulate", value) for value in range(1, count + 1) if 96 % value == 0]
    fits = [estimate(part, ndim=2, channels=3).total <= whole // 3 for part in parts]
    assert fits == [False] * (len(parts) - 1) + [True]
    assert smallest_accumulation(plan, 1, ndim=2, channels=3) is None


def test_sharing_weights_checkpointing_and_smaller_parts_take_less():
    plan = big()
    whole = estimate(plan, ndim=2, channels=3, world=4)
    sharded = estimate(replace_key(plan, "engine.distribute", "fsdp2"), ndim=2, channels=3, world=4)
    assert (sharded.moments, sharded.activations) == (pytest.approx(whole.moments / 4, rel=0.01), whole.activations)
    assert estimate(replace_key(plan, "engine.checkpointing", True), ndim=2, channels=3).activations < whole.activations * 4 / 3


def test_the_refusal_names_the_key_that_helps_first():
    assert str(does_not_fit(big(), "2 GiB", 2**30)).startswith(
        "engine.accumulate: a step needs 2 GiB, the device has 1.0 GiB; take engine.accumulate=2 (the same step in smaller parts)"
    )
    single = replace_key(big(), "loader.batch", 2)
    assert does_not_fit(single, "2 GiB", 2**30).place == "engine.checkpointing"
    assert does_not_fit(replace_key(single, "engine.checkpointing", True), "2 GiB", 2**30).place == "loader.batch"


def test_running_out_of_memory_becomes_that_refusal_and_other_errors_stay():
    real = torch.empty
    with pytest.raises(UserError, match=r"engine\.accumulate: a step needs more memory than there is"), memory_errors(big()):
        real(2**60, dtype=torch.uint8)
    with pytest.raises(UserError), memory_errors(big()):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(big()):
        raise RuntimeError("shapes differ")
    assert not is_out_of_memory(KeyError("x"))


def test_crops_are_held_of_one_micro_batch_and_tiles_of_all():
    plan, sizes = big(), {"ndim": 2, "channels": 3}
    crops, tiles = estimate(plan, **sizes).views, 96 * 1000
    parts = replace_key(plan, "engine.accumulate", 4)
    assert estimate(parts, **sizes).views == crops / 4
    assert estimate(parts, **sizes, tile=1000).views == crops / 4 + tiles
    anchored = estimate(replace_key(parts, "gram.weight", 1.0), **sizes).views
    assert anchored - crops / 4 == 24 * 2 * 448**2 * (4 * 3 + 1)


def test_what_is_read_for_a_sample_is_told_by_the_store(make_plan, images):
    setup = build(make_plan(), images)
    plan, store = setup.training.plan, setup.store
    tiles = find_tiles(store, plan.loader)
    facts = facts_of(store, tiles, plan, images)
    read = max(np.dtype(one.dtype).itemsize * len(one.channels) * math.prod(one.extent) + math.prod(one.extent) for one in tiles.buckets)
    assert facts.step_sizes(plan) == {"ndim": 2, "channels": len(facts.channels), "world": 1, "tile": read}
    paired = replace_key(replace_key(plan, "loader.dates", 2), "loader.pairs", "dates")
    assert facts.step_sizes(paired)["tile"] == 2 * read
