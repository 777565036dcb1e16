"""What a reader is told to read and where to put it, and what a reader process answers. No torch, no Arrow.

Images are [C, (Z,) Y, X]; a slot holds N of them, then their bit fields where there are any, then one byte per image that tells how far
it is.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store import Address, OpenArrays

WAITING, READING, DONE = 0, 1, 2
_ALIGN = 64

READY = -1
"""Number of the reply that says that the process is up."""
LENGTH = struct.Struct("<I")
"""Precedes every message, which is a pickle."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the images of one part lie in memory.

    Attributes:
        shape: [N, C, (Z,) Y, X].
        dtype: Stored dtype.
        has_valid: Whether bit fields follow.
    """

    shape: tuple[int, ...]
    dtype: str
    has_valid: bool

    @property
    def nbytes(self) -> int:
        """Bytes that a slot needs."""
        return self._marks + self.shape[0]

    @property
    def _valid(self) -> int:
        return _aligned(math.prod(self.shape) * np.dtype(self.dtype).itemsize)

    @property
    def _marks(self) -> int:
        return self._valid + (_aligned(self.shape[0] * math.prod(self.shape[2:])) if self.has_valid else 0)

    def of(self, memory: np.ndarray) -> Images:
        """The arrays over ``memory``, [at least nbytes] uint8."""
        pixels = memory[: math.prod(self.shape) * np.dtype(self.dtype).itemsize].view(self.dtype).reshape(self.shape)
        field = (self.shape[0], *self.shape[2:])
        valid = memory[self._valid : self._valid + math.prod(field)].reshape(field) if self.has_valid else None
        return Images(pixels, valid, memory[self._marks : self._marks + self.shape[0]])


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True, slots=True)
class Images:
    """Memory of one part.

    Attributes:
        pixels: [N, C, (Z,) Y, X] in the stored dtype.
        valid: [N, (Z,) Y, X] uint8 bit fields, or None.
        marks: [N] uint8; ``WAITING``, ``READING`` or ``DONE``. They outlive the process that wrote them.
    """

    pixels: np.ndarray
    valid: np.ndarray | None
    marks: np.ndarray


@dataclass(frozen=True, slots=True)
class Task:
    """Some images of one part.

    Attributes:
        number: Tells tasks apart.
        offset: Where the part begins in the ring.
        layout: How it lies there.
        images: Which of its images are to be read.
        addresses: Where each of these begins.
        valid: The same for their bit fields; None for an image whose pixels are all valid. Empty where the layout has none.
    """

    number: int
    offset: int
    layout: Layout
    images: Sequence[int]
    addresses: Sequence[Address]
    valid: Sequence[Address | None]

    def share(self, number: int, begin: int, step: int) -> Task:
        """Every ``step``-th image from the one at ``begin``, as a task of its own."""
        every = slice(begin, None, step)
        return Task(number, self.offset, self.layout, self.images[every], self.addresses[every], self.valid[every])


@dataclass(frozen=True, slots=True)
class Reply:
    """A task has ended.

    Attributes:
        number: Its number, or ``READY``.
        error: The user's error that ended it.
        crash: Text of any other error.
    """

    number: int
    error: UserError | None = None
    crash: str = ""


def packed(message: object) -> bytes:
    """A message as it crosses the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def read_images(arrays: OpenArrays, task: Task, places: Sequence[int], images: Images) -> None:
    """Reads the images at some places of a task, but for those that were read before their last reader died.

    Raises:
        UserError: A file is damaged, or a server does not give it.
    """
    left = [place for place in places if images.marks[task.images[place]] != DONE]
    if any("://" in task.addresses[place][0] for place in left):
        _read_together(arrays, task, left, images)
        return
    for place in left:
        number = task.images[place]
        images.marks[number] = READING
        for address, out in _boxes(task, place, images):
            arrays.read(address, out)
        images.marks[number] = DONE


def _read_together(arrays: OpenArrays, task: Task, places: list[int], images: Images) -> None:
    """With the requests for all of them in flight at a time."""
    numbers = [task.images[place] for place in places]
    images.marks[numbers] = READING
    arrays.read_many([box for place in places for box in _boxes(task, place, images)])
    images.marks[numbers] = DONE


def _boxes(task: Task, place: int, images: Images) -> list[tuple[Address, np.ndarray]]:
    """What is to be read for one image; the bit field of one whose pixels are all valid is cleared here."""
    number, boxes = task.images[place], []
    if images.valid is not None:
        address = task.valid[place]
        if address is None:
            images.valid[number] = 0
        else:
            boxes.append((address, images.valid[number]))
    return [(task.addresses[place], images.pixels[number]), *boxes]


def units(task: Task, size: int, requests: int) -> list[range]:
    """Places of a task, shared into what one thread reads at a time.

    Args:
        task: The task.
        size: Places of a unit where files are local.
        requests: Places of a unit where any lies on a server.
    """
    step = requests if any("://" in location for location, _ in task.addresses) else size
    return [range(first, min(first + step, len(task.images))) for first in range(0, len(task.images), step)]
