from __future__ import annotations

import threading

import pytest
import torch

from dinodomain.checkpoint import Background, HostCopy, TrainState
from dinodomain.errors import UserError


def test_a_job_runs_beside_its_caller_and_is_waited_for():
    background, go, done = Background(threaded=True), threading.Event(), []
    background.start(lambda: (go.wait(), done.append(threading.current_thread().name)))
    assert not done
    go.set()
    assert background.wait() is None
    assert done == ["checkpoint"]


@pytest.mark.parametrize("threaded", [False, True])
def test_why_a_job_failed_is_told_once(threaded):
    background = Background(threaded=threaded)
    problem = UserError("x", "full")

    def fail():
        raise problem

    background.start(fail)
    assert background.wait() is problem
    assert background.wait() is None
    background.start(lambda: None)
    assert background.wait() is None


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_that_is_ours_is_raised(threaded):
    background = Background(threaded=threaded)
    background.start(lambda: [][1])
    with pytest.raises(IndexError):
        background.wait()


def test_a_copy_stays_while_training_goes_on_and_its_memory_is_used_again():
    weight, count = torch.arange(4.0), torch.tensor(3)
    host = HostCopy()
    state = TrainState(step=1, tensors={"student": {"w": weight, "t": weight.view(2, 2).T, "n": count}})
    first = host.take(state)
    weight += 1
    assert torch.equal(first.tensors["student"]["w"], torch.arange(4.0))
    assert torch.equal(first.tensors["student"]["t"], torch.arange(4.0).view(2, 2).T)
    second = host.take(state)
    assert second.tensors["student"]["w"].data_ptr() == first.tensors["student"]["w"].data_ptr()
    assert torch.equal(second.tensors["student"]["w"], weight)
    assert all(tensor.is_contiguous() for tensor in second.tensors["student"].values())


def test_a_part_that_changes_its_shape_gets_memory_of_its_own():
    host = HostCopy()
    for size in (3, 5):
        taken = host.take(TrainState(step=1, tensors={"anchor": {"w": torch.ones(size)}}))
        assert torch.equal(taken.tensors["anchor"]["w"], torch.ones(size))
