"""Memory by address: copies that let other threads run, and of read-only memory too."""

from __future__ import annotations

import ctypes

from holdfast.errors import InvalidInput

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


def joined(first: memoryview, length: int) -> memoryview:
    """The ``length`` bytes that begin where ``first`` does, as one view; the caller keeps what lies there alive."""
    return memoryview((ctypes.c_char * length).from_address(address(first))).cast("B")


def copy(into: memoryview, source: memoryview) -> None:
    """Copy between flat views of equal length; a long copy releases the GIL."""
    if source.nbytes < _HOLD_GIL_BELOW:
        into[:] = source
    else:
        ctypes.memmove(address(into), address(source), source.nbytes)
