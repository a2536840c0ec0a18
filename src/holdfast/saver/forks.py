"""What forked children of the trainer must not keep: its saver's memory, sockets and wakeup descriptor.

A loader worker outlives a trainer that was killed, for as long as its sample
takes. With what it inherited it would hold the staging memory of a training
that is gone, while the next one takes its own; and a child that gets a signal
would tell the saver of it in the trainer's name.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Parent(Protocol):
    """What stays with the process that made it."""

    def left_behind(self) -> None:
        """Called in a forked child: lets go of everything, and of nothing that the parent needs."""


_parents: weakref.WeakSet[Parent] = weakref.WeakSet()


def stays_with_parent(parent: Parent) -> None:
    """From now on `Parent.left_behind` is called in every forked child of this process, as long as ``parent`` lives."""
    _parents.add(parent)


def is_over(parent: Parent) -> None:
    """It has nothing any more that a child could inherit; idempotent."""
    _parents.discard(parent)


def _in_child() -> None:
    for parent in tuple(_parents):
        with suppress(OSError):
            parent.left_behind()
    _parents.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_in_child)


def blind(descriptors: Iterable[int]) -> None:
    """Lets descriptors lead nowhere; their numbers stay taken, so that whoever closes them later closes nothing else.

    Raises:
        OSError: /dev/null cannot be opened.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def same_file(descriptor: int) -> Iterator[int]:
    """All descriptors of this process that lead where ``descriptor`` does: Python's mmap keeps one of its own."""
    wanted = os.fstat(descriptor)
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(link.name)), wanted):
                yield int(link.name)
