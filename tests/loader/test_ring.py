"""Slots: handed out again only when nothing refers to them, shared without leaving anything behind."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile

import numpy as np
import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.loader.ring import BufferPool, Ring
from dinodomain.loader.task import DONE, WAITING, Layout, Task, units


def descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "view",
    [
        lambda memory: memory[10:20],
        lambda memory: memory[:64].view(np.uint16).reshape(2, 16)[1],
        lambda memory: torch.from_numpy(memory),
        lambda memory: torch.from_numpy(memory[:64].view(np.int16).reshape(4, 8))[1:].flatten(),
    ],
)
def test_a_slot_comes_back_when_the_last_view_of_it_is_gone(view):
    ring = Ring(1, 100, shared=False)
    slot = ring.take()
    kept = view(slot.memory)
    del slot
    assert ring.take() is None
    del kept
    assert ring.free == 1


def test_slots_do_not_overlap_and_end():
    ring = Ring(3, 5000, shared=False)
    assert ring.slot_bytes == 2 * mmap.PAGESIZE
    slots = [ring.take() for _ in range(3)]
    assert ring.take() is None
    for value, slot in enumerate(slots):
        slot.memory[:] = value
    assert [np.unique(slot.memory).tolist() for slot in slots] == [[0], [1], [2]]
    assert sorted(slot.offset for slot in slots) == [0, 8192, 16384]


def test_the_slot_given_back_last_is_taken_first():
    ring = Ring(8, 100, shared=False)
    places = set()
    for _ in range(20):
        places.add(ring.take().offset)
    assert len(places) == 1


def test_whoever_maps_the_descriptor_sees_the_slots():
    ring = Ring(2, 100, shared=True)
    slot = ring.take()
    other = mmap.mmap(ring.descriptor, ring.nbytes)
    other[slot.offset : slot.offset + 5] = b"seen!"
    assert slot.memory[:5].tobytes() == b"seen!"


def test_slots_outlive_their_ring():
    ring = Ring(1, 100, shared=True)
    slot = ring.take()
    slot.memory[:] = 7
    ring.close()
    del ring
    assert slot.memory.sum() == 7 * mmap.PAGESIZE


@pytest.mark.parametrize("closed", [True, False])
def test_a_ring_leaves_no_descriptor(closed):
    before = descriptors()
    ring = Ring(1, 100, shared=True)
    assert descriptors() > before
    if closed:
        ring.close()
        ring.close()
    del ring
    assert descriptors() == before


def refuse(*_):
    raise OSError(errno.ENOSYS, "not here")


@pytest.mark.parametrize("change", ["absent", "refused", "folder"])
def test_where_there_are_no_anonymous_files_a_file_without_a_name_is_used(tmp_path, monkeypatch, change):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if change == "absent":
        monkeypatch.delattr(os, "memfd_create")
    if change == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse)
    ring = Ring(2, 100, shared=True, folder=str(tmp_path) if change == "folder" else None)
    assert os.readlink(f"/proc/self/fd/{ring.descriptor}").startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    slot = ring.take()
    slot.memory[:] = 1
    assert mmap.mmap(ring.descriptor, ring.nbytes)[slot.offset] == 1


def test_a_folder_without_room_is_said_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(UserError, match=r"loader\.ring_dir: .* has no room for 3 MiB; .*lower loader\.batch"):
        Ring(3, 2**20, shared=True, folder=str(tmp_path))
    assert descriptors() == before
    with pytest.raises(UserError, match=r"loader\.ring_dir: .*nowhere: No such file or directory"):
        Ring(3, 2**20, shared=True, folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_the_system_does_not_give_is_said_with_its_size(shared):
    before = descriptors()
    with pytest.raises(UserError, match=r"loader\.batch: 2 slots of 1\.1e\+12 MiB .* \(Cannot allocate memory\); lower loader\.batch"):
        Ring(2, 2**60, shared=shared)
    assert descriptors() == before


def test_private_buffers_stay_in_use_as_long_as_a_view_of_them():
    pool = BufferPool(2)
    array = pool.take((4, 1000), "uint8")
    place, view = array.ctypes.data, torch.from_numpy(array.reshape(2, 2000)[1])
    del array
    assert pool.take((4, 1000), "uint8").ctypes.data != place
    del view
    assert place in [taken.ctypes.data for taken in [pool.take((4, 1000), "uint8") for _ in range(2)]]


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (1, 1, 4, 4, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("has_valid", [True, False])
def test_pixels_fields_and_marks_lie_apart_in_a_slot(shape, dtype, has_valid):
    layout = Layout(shape, dtype, has_valid)
    memory = np.zeros(layout.nbytes, dtype=np.uint8)
    images = layout.of(memory)
    assert images.pixels.shape == shape
    assert images.pixels.dtype == dtype
    assert images.marks.shape == shape[:1]
    images.pixels.view(np.uint8)[:] = 1
    images.marks[:] = 2
    if has_valid:
        assert images.valid.shape == (shape[0], *shape[2:])
        images.valid[:] = 3
    count = np.bincount(memory, minlength=4)
    assert count[1] == images.pixels.nbytes
    assert count[2] == shape[0]
    assert count[3] == (images.valid.nbytes if has_valid else 0)


def test_shares_of_a_task_are_all_of_it_once():
    addresses = [(f"/a{i}", (i,)) for i in range(7)]
    task = Task(0, 0, Layout((7, 1, 4, 4), "uint8", False), range(7), addresses, ())
    shares = [task.share(number, number, 3) for number in range(3)]
    assert sorted(i for share in shares for i in share.images) == list(range(7))
    for share in shares:
        assert [addresses[i] for i in share.images] == share.addresses
    assert [list(unit) for unit in units(task, 3, 100)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_images_on_a_server_are_asked_for_together():
    task = Task(0, 0, Layout((5, 1, 4, 4), "uint8", False), range(5), [("s3://b/k", (i,)) for i in range(5)], ())
    assert [len(unit) for unit in units(task, 1, 4)] == [4, 1]
    assert (WAITING, DONE) == (0, 2)
