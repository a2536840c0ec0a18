"""Where the cgroups of a process lie among the files: its own and, above it, all that can be seen from here.

``/proc/<pid>/cgroup`` names the process's place in each hierarchy, and
``/proc/<pid>/mountinfo`` says which part of a hierarchy is mounted where: in a
container often just the container's own part, so that limits above it cannot be
seen. Sources: cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Cgroup(NamedTuple):
    """The place of a process in one hierarchy."""

    controllers: frozenset[str]
    """Of version 1, such as ``memory`` or ``name=systemd``; empty for the one hierarchy of version 2."""
    path: str
    """From the root of the hierarchy, or of the cgroup namespace."""
    folders: tuple[Path, ...]
    """Its own first, then those above it as far as they are mounted; empty where nothing is mounted."""


class _Mount(NamedTuple):
    controllers: frozenset[str]
    part: str
    folder: Path


def cgroups(root: Path = Path("/"), process: str = "self") -> tuple[Cgroup, ...]:
    """The cgroups of a process; none where there is no such process or no such thing.

    Args:
        root: where ``proc`` and ``sys`` lie.
        process: its folder in ``proc``.
    """
    mounts = list(_mounts(root, text(root / "proc" / process / "mountinfo")))
    lines = (line.split(":", 2) for line in text(root / "proc" / process / "cgroup").splitlines())
    return tuple(_cgroup(fields[1], fields[2], mounts) for fields in lines if len(fields) == 3)


def text(path: Path) -> str:
    """The text of a small file; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The number in a small file; None where there is none, as in ``max``."""
    found = text(path)
    return int(found) if found.isdecimal() else None


def _cgroup(controllers: str, path: str, mounts: list[_Mount]) -> Cgroup:
    names = frozenset(controllers.split(",")) - {""}
    # Two controllers that are mounted together are named in both places, but mount options have others, too.
    mount = next(
        (mount for mount in mounts if names <= mount.controllers and bool(names) == bool(mount.controllers)), None
    )
    return Cgroup(names, path, _folders(path, mount) if mount else ())


def _folders(path: str, mount: _Mount) -> tuple[Path, ...]:
    inside = _below(path, mount.part)
    own = mount.folder.joinpath(*inside)
    found = [own, *list(own.parents)[: len(inside)]]
    return tuple(folder for folder in found if _is_folder(folder))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _below(path: str, part: str) -> list[str]:
    """The way from the mounted part to the process's cgroup; none where that is not inside of it."""
    own, mounted = ([name for name in one.split("/") if name] for one in (path, part))
    # Else a container's own cgroup was mounted for it under names of its own.
    return own[len(mounted) :] if own[: len(mounted)] == mounted and ".." not in own else []


def _mounts(root: Path, table: str) -> Iterator[_Mount]:
    for line in table.splitlines():
        place, _, kind = line.partition(" - ")
        fields, facts = place.split(), kind.split()
        if len(fields) < 5 or len(facts) < 3 or facts[0] not in ("cgroup", "cgroup2"):
            continue
        options = frozenset(facts[2].split(",")) if facts[0] == "cgroup" else frozenset[str]()
        yield _Mount(options, _plain(fields[3]), root / _plain(fields[4]).lstrip("/"))


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
