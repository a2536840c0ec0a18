"""How much memory may still be taken before the kernel ends somebody, and how much of it staging gets.

Shared memory counts against the cgroup of whoever touches it first, so a
container's limit is hit long before the machine is full, and the trainer would
be killed for it. What a cgroup can still take is its limit less its usage, of
which the page cache may be given back: file pages that nobody has mapped and
that need no writing. Limits above a container's own cgroup cannot be seen.
Sources: the kernel's pages on cgroup-v2 (memory.max, memory.high, memory.stat)
and cgroup-v1 memory; proc_meminfo(5) for MemAvailable.

Example:
    >>> available = Limit(bytes=16 << 30, why="16.0 GiB are available on this machine")
    >>> print(budget(None, available).why)
    half of what may be taken: 16.0 GiB are available on this machine
    >>> budget("4GiB", available).bytes == 4 << 30
    True
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from holdfast.errors import InvalidInput
from holdfast.policy.numbers import plain
from holdfast.policy.sizes import parse_size, show_size
from holdfast.saver.cgroups import Cgroup, cgroups, number, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How many bytes may still be taken, and what sets the limit."""

    bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many bytes staging may take, and why so many."""

    bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUse:
    """Of the memory of a cgroup, in bytes."""

    needed: int
    """In use, without page cache that the kernel gives back at once."""
    most: int
    """Allowed, by the tightest of its limits."""
    file: Path
    """Which says so."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The files of one version of cgroups, and the counters in its ``memory.stat``."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]
    in_use: tuple[str, ...]


# Beyond memory.high nobody is killed, but everybody in the cgroup is slowed down until it is well below again.
_VERSION_2 = _Names(
    ("memory.max", "memory.high"),
    "memory.current",
    ("active_file", "inactive_file"),
    ("file_mapped", "file_dirty", "file_writeback"),
)
_VERSION_1 = _Names(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
    ("total_mapped_file", "total_dirty", "total_writeback"),
)


def available_memory(root: Path = Path("/")) -> Limit:
    """The smallest of what is available on the machine and what each cgroup of this process may still take.

    A snapshot: others take memory, too. Never raises ``OSError``.
    """
    return min((_machine(root), *_cgroup_limits(root)), key=lambda limit: limit.bytes)


def budget(asked: int | str | None, available: Limit | None = None) -> Budget:
    """What staging may take: ``asked`` bytes (``8_000_000_000``, ``"8GB"``, ``"8GiB"``), by default half of what is.

    Never more than what is available: memory that the kernel does not have costs the trainer its life.

    Raises:
        InvalidInput: no size, or less than one byte.
    """
    wanted = None if asked is None else _bytes(asked)
    available = available or available_memory()
    if wanted is None:
        return Budget(bytes=available.bytes // 2, why=f"half of what may be taken: {available.why}")
    if wanted > available.bytes:
        return Budget(bytes=available.bytes, why=f"{show_size(wanted)} were asked for, but {available.why}")
    return Budget(bytes=wanted, why=f"{show_size(wanted)} were asked for")


def _bytes(asked: Any) -> int:
    asked = plain(asked)
    if isinstance(asked, str):
        return _read_size(asked)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InvalidInput(f"ram_budget wants a number of bytes above 0 or a text such as '8GB', not {asked!r}")
    return asked


def _read_size(asked: str) -> int:
    try:
        return parse_size(asked)
    except InvalidInput as error:
        raise InvalidInput(f"ram_budget={asked[:40]!r}: {error}") from None


def _machine(root: Path) -> Limit:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text(root / "proc" / "meminfo"), re.MULTILINE)
    size = int(found[1]) * 1024 if found else int(psutil.virtual_memory().available)
    return Limit(bytes=size, why=f"{show_size(size)} are available on this machine")


def _cgroup_limits(root: Path) -> Iterator[Limit]:
    for one in cgroups(root):
        yield from (_left(use) for folder in one.folders if (use := cgroup_use(folder, one)))


def cgroup_use(folder: Path, cgroup: Cgroup) -> CgroupUse | None:
    """What one folder of a cgroup allows, and how much of that is in use; None: it sets no limit, or does not say.

    Version 1 has a number even where there is no limit: one that is larger than any machine.
    """
    names = _VERSION_1 if cgroup.controllers else _VERSION_2
    found = [(most, name) for name in names.limits if (most := number(folder / name)) is not None]
    used = number(folder / names.usage)
    if not found or used is None:
        return None
    most, name = min(found)
    return CgroupUse(needed=max(0, used - _reclaimable(folder, names)), most=most, file=folder / name)


def _left(use: CgroupUse) -> Limit:
    left = max(0, use.most - use.needed)
    of = f"{show_size(use.most)} that {use.file} allows ({show_size(use.needed)} in use)"
    return Limit(bytes=left, why=f"{show_size(left)} are left of the {of}")


def _reclaimable(folder: Path, names: _Names) -> int:
    """Page cache that the kernel gives back at once; what is mapped is needed, what is dirty must be written first."""
    words = (line.split() for line in text(folder / "memory.stat").splitlines())
    stat = {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdecimal()}
    cache = sum(stat.get(name, 0) for name in names.cache)
    return max(0, cache - sum(stat.get(name, 0) for name in names.in_use))
