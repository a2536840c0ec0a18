"""Page-aligned memory of fixed size, and copies that let other threads run."""

from __future__ import annotations

import ctypes
import mmap

from holdfast.errors import InvalidInput
from holdfast.trees import SEGMENT_BYTES

_HOLD_GIL_BELOW = 64 * 1024
"""Shorter copies are over before another thread could have taken the interpreter."""


class _PyBuffer(ctypes.Structure):
    # `Py_buffer` of the stable ABI since Python 3.11.
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def aligned_buffer(size: int = SEGMENT_BYTES) -> memoryview:
    """Zeroed private memory that begins at a page; freed with its last view."""
    return memoryview(mmap.mmap(-1, size))


def flat(view: memoryview) -> memoryview:
    """The same memory as plain bytes.

    Raises:
        InvalidInput: the view is not contiguous.
    """
    if not view.c_contiguous:
        raise InvalidInput("a segment must be contiguous memory; copy it first")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def address(view: memoryview) -> int:
    """Where contiguous memory begins; read-only memory too, which ctypes alone refuses."""
    found = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    begin = found.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return int(begin)


def copy(into: memoryview, source: memoryview) -> None:
    """Copy between flat views of equal length; a long copy releases the GIL."""
    if source.nbytes < _HOLD_GIL_BELOW:
        into[:] = source
    else:
        ctypes.memmove(address(into), address(source), source.nbytes)
