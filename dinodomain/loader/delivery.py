"""From the memory of readers to the memory of the consumer: not a copy on a CPU, one on a stream of its own for CUDA.

Pixels are [B, T, C, (Z,) Y, X], bit fields [B, T, (Z,) Y, X].
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dinodomain.loader.ring import BufferPool, Ring
from dinodomain.loader.task import Images
from dinodomain.types import Batch, TileInfo

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Landed:
    """A part where its consumer works.

    Attributes:
        pixels: [n, T, C, (Z,) Y, X].
        valid: [n, T, (Z,) Y, X], or None.
    """

    pixels: Tensor
    valid: Tensor | None


class Delivery(Protocol):
    """Brings parts to their consumer."""

    def land(self, images: Images, dates: int) -> Landed:
        """Brings one part, whose images are all read; the slot stays taken for as long as that needs it."""
        ...

    def join(self, parts: Sequence[Landed], *, kept: bool) -> Landed:
        """The parts one after the other; without a copy where there is one that is not ``kept`` for other batches."""
        ...

    def hand(self, batch: Batch) -> Batch:
        """A whole batch, whose pixels have landed, ready for the consumer."""
        ...

    def reclaim(self, *, wait: bool) -> bool:
        """Gives slots back whose content has been copied; waits for the next one if asked to. Whether any came back."""
        ...

    def close(self) -> None:
        """Lets go of all memory."""
        ...


class Host:
    """Batches for a CPU: tensors over the slots themselves. For a device of another make, plain copies of these.

    Args:
        ring: Where parts lie.
        spare: Batches that private memory is kept for.
        device: The device.
    """

    def __init__(self, ring: Ring, spare: int, device: torch.device) -> None:
        self._ring, self._pool, self._device, self._told = ring, BufferPool(2 * spare), device, False

    def land(self, images: Images, dates: int) -> Landed:
        """See ``Delivery``."""
        return _tensors(images, dates)

    def join(self, parts: Sequence[Landed], *, kept: bool) -> Landed:
        """See ``Delivery``. A consumer that keeps so many batches that readers would have no slot left is given copies."""
        if len(parts) == 1 and not kept:
            if self._ring.free:
                return parts[0]
            if not self._told:
                self._told = True
                _log.info("batches are kept while others are read: those for which the ring has no room are copied")
        pixels = self._joined([part.pixels for part in parts])
        return Landed(pixels, None if parts[0].valid is None else self._joined([part.valid for part in parts if part.valid is not None]))

    def _joined(self, parts: list[Tensor]) -> Tensor:
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        whole = self._pool.take(shape, str(parts[0].dtype).removeprefix("torch."))
        np.concatenate([part.numpy() for part in parts], out=whole)
        return torch.from_numpy(whole)

    def hand(self, batch: Batch) -> Batch:
        """See ``Delivery``."""
        return batch if self._device.type == "cpu" else _moved(batch, self._device, behind=False)

    def reclaim(self, *, wait: bool) -> bool:
        """See ``Delivery``: slots come back by themselves."""
        return False

    def close(self) -> None:
        """See ``Delivery``."""


class Cuda:
    """Batches for a CUDA device. A stream of its own lets the copy run while earlier steps still compute.

    The ring is page-locked once (``cudaHostRegister``), so that copies run beside the host. Where the system does not allow that, each part
    goes through page-locked memory of torch's own cache, at the price of one more copy on the host.

    Args:
        ring: Where parts lie.
        device: The device.
    """

    def __init__(self, ring: Ring, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch
        self._memory = ring.whole()
        self._copying: deque[tuple[torch.cuda.Event, Images]] = deque()
        self._registered = lock_pages(self._memory, device)

    def land(self, images: Images, dates: int) -> Landed:
        """See ``Delivery``."""
        source = _tensors(images, dates)
        with torch.cuda.stream(self._stream):
            pixels = self._copied(source.pixels)
            valid = None if source.valid is None else self._copied(source.valid)
            if self._registered:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch
                event.record(self._stream)
                self._copying.append((event, images))
        self.reclaim(wait=False)
        return Landed(pixels, valid)

    def _copied(self, source: Tensor) -> Tensor:
        if not self._registered:
            source = torch.empty_like(source, pin_memory=True).copy_(source)
        return source.to(self._device, non_blocking=True)

    def join(self, parts: Sequence[Landed], *, kept: bool) -> Landed:
        """See ``Delivery``."""
        if len(parts) == 1 and not kept:
            return parts[0]
        with torch.cuda.stream(self._stream):
            pixels = _concatenated([part.pixels for part in parts])
            valid = None if parts[0].valid is None else _concatenated([part.valid for part in parts if part.valid is not None])
        return Landed(pixels, valid)

    def hand(self, batch: Batch) -> Batch:
        """See ``Delivery``."""
        with torch.cuda.stream(self._stream):
            moved = _moved(batch, self._device, behind=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _all_tensors(moved):
            tensor.record_stream(current)
        return moved

    def reclaim(self, *, wait: bool) -> bool:
        """See ``Delivery``."""
        before = len(self._copying)
        if wait and self._copying:
            self._copying[0][0].synchronize()
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call] # torch
            self._copying.popleft()
        return len(self._copying) < before

    def close(self) -> None:
        """See ``Delivery``."""
        self._stream.synchronize()
        self._copying.clear()
        if self._registered:
            unlock_pages(self._memory)
            self._registered = False


def _concatenated(parts: list[Tensor]) -> Tensor:
    """By copies, which work for every dtype on every device; ``torch.cat`` does not for uint16."""
    whole = torch.empty((sum(len(part) for part in parts), *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
    done = 0
    for part in parts:
        whole[done : done + len(part)].copy_(part)
        done += len(part)
    return whole


def lock_pages(memory: np.ndarray, device: torch.device) -> bool:
    """Page-locks memory; False, told in the log, where the system refuses."""
    with torch.cuda.device(device):
        code = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))  # type: ignore[no-untyped-call] # torch
        if code == 0:
            return True
        _log.info("the ring of batches cannot be page-locked (CUDA error %d): batches go through a buffer that is", code)
        try:
            # The error stays behind in the runtime, and would be raised by whatever the consumer does next.
            torch.zeros(1, device=device).add_(1)
        except RuntimeError:
            _log.debug("cleared", exc_info=True)
        return False


def unlock_pages(memory: np.ndarray) -> None:
    """Undoes ``lock_pages``."""
    torch.cuda.cudart().cudaHostUnregister(memory.ctypes.data)  # type: ignore[no-untyped-call] # torch


def _tensors(images: Images, dates: int) -> Landed:
    """Tensors over the memory of a part."""
    pixels = images.pixels.reshape(-1, dates, *images.pixels.shape[1:])
    valid = None if images.valid is None else torch.from_numpy(images.valid.reshape(-1, dates, *images.valid.shape[1:]))
    return Landed(torch.from_numpy(pixels), valid)


def _moved(batch: Batch, device: torch.device, *, behind: bool) -> Batch:
    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=behind)
        if isinstance(value, TileInfo):
            return TileInfo(**{item.name: move(getattr(value, item.name)) for item in fields(value)})  # type: ignore[arg-type]
        return value

    return Batch(**{item.name: move(getattr(batch, item.name)) for item in fields(batch)})  # type: ignore[arg-type]


def _all_tensors(record: Batch | TileInfo) -> list[Tensor]:
    found: list[Tensor] = []
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, TileInfo):
            found.extend(_all_tensors(value))
    return found
