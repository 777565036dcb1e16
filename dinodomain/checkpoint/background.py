"""Takes the disk off a run's critical path: the state is copied to the host, then one thread writes it while training goes on.

The step waits for the copy only. One save is in flight: whoever starts the next waits for it first, and learns then what became of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dinodomain.checkpoint.state import TrainState
from dinodomain.errors import UserError


class HostCopy:
    """Copies states into host memory that is kept from one to the next: page-locked for what lies on a CUDA device.

    Fresh memory would be faulted in page by page for every save, and page-locking costs more than the copy.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}

    def take(self, state: TrainState) -> TrainState:
        """The state with its own tensors on the host; they are overwritten by the next call."""
        tensors = {part: {name: self._copy((part, name), tensor) for name, tensor in own.items()} for part, own in state.tensors.items()}
        for device in {tensor.device for own in state.tensors.values() for tensor in own.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return replace(state, tensors=tensors)

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[key] = held
        return held.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


class Background:
    """Runs one job at a time beside the caller.

    Args:
        threaded: False runs every job at once, in the caller's thread; its outcome is told in the same way.
    """

    def __init__(self, *, threaded: bool) -> None:
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begins a job; the one before must have been waited for."""
        assert self._thread is None, "a job is in flight"
        assert self._error is None, "nobody asked what became of the last job"
        # A daemon: a process that is told to stop for the third time does not stay for its disk. Else ``wait`` sees to the end.
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        if self._threaded:
            self._thread.start()
        else:
            self._thread.run()

    def wait(self) -> UserError | None:
        """Waits for the job in flight, if there is one; returns why it failed, once. Any other error is raised: it is ours."""
        if self._thread is not None and self._threaded:
            self._thread.join()
        error, self._error, self._thread = self._error, None, None
        if error is not None and not isinstance(error, UserError):
            raise error
        return error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # told by ``wait``
            self._error = error
