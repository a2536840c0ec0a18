"""What an exception that ends a training says about the state that is left behind.

Sources: CUDA's error codes (cuda runtime API, "cudaError_t"): after some the context is corrupt and "any further CUDA
work will return the same error", while a failed allocation leaves everything as it was. torch raises the first as
`torch.AcceleratorError` or a RuntimeError "CUDA error: ...", the second as `torch.OutOfMemoryError`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import torch

from holdfast.errors import HoldfastError, InvalidInput


class Cause(enum.StrEnum):
    """What has ended a training, as an exception tells."""

    FAILURE = "failure"
    """Of the program: the state is what the program has left."""
    OUT_OF_MEMORY = "out of memory"
    """Of a device or the host: what is there can still be read."""
    DEVICE_LOST = "device lost"
    """A sticky error: nothing on the device can be read any more, and to try is an error or a hang."""
    WORKER_EXITED = "worker exited"
    """A worker of a data loader has ended: a failure, or a signal to the whole job."""
    OURS = "ours"
    """Our own: a save has failed, a peer is lost, a newer launch has taken over."""
    ON_PURPOSE = "on purpose"
    """A second Ctrl-C, `sys.exit`, a generator that is closed: no failure."""


_MEMORY = re.compile(r"(CUDA|HIP|XPU|MPS|NPU).{0,12}out of memory|out of memory \(os error|ALLOC_FAILED", re.IGNORECASE)
_DEVICE = re.compile(r"(CUDA|HIP|XPU) error:|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_\w+|unspecified launch failure")
_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device ordinal",
    "no kernel image is available",
    "invalid device function",
    "too many resources requested",
    "initialization error",
    "no CUDA-capable device",
    "driver version is insufficient",
    "peer access",
    "stream is capturing",
    "NOT_SUPPORTED",
    "INVALID_VALUE",
    "BAD_PARAM",
)
"""Errors of a call, after which the device is as it was. Whatever is not among them may have lost it."""
_WORKER = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal|exited with exit code)", re.S)


def cause_of(error: BaseException) -> Cause:
    """What has happened, looking at the causes of ``error`` too: a wrapper may hide a device that is lost.

    Example:
        >>> cause_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")).value
        'out of memory'
        >>> cause_of(RuntimeError("CUDA error: device-side assert triggered")).value
        'device lost'
        >>> cause_of(KeyboardInterrupt()).value, cause_of(ValueError("shape")).value
        ('on purpose', 'failure')
    """
    chain = list(_causes(error))
    if any(_lost(one) for one in chain):
        return Cause.DEVICE_LOST
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return Cause.ON_PURPOSE
    if isinstance(error, HoldfastError) and not isinstance(error, InvalidInput):
        return Cause.OURS
    if any(isinstance(one, RuntimeError) and _WORKER.search(str(one)) for one in chain):
        return Cause.WORKER_EXITED
    return Cause.OUT_OF_MEMORY if any(_memory(one) for one in chain) else Cause.FAILURE


def _memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


def _lost(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or _memory(error):
        return False
    text = str(error)
    of_device = isinstance(error, _ACCELERATOR) or bool(_DEVICE.search(text))
    return of_device and not any(harmless in text for harmless in _HARMLESS)


_ACCELERATOR: tuple[type[BaseException], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()  # torch 2.8 and newer
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
