"""Making files durable, cold and warm."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file, or all files and folders below a folder, and the folder that it is in: what durable means."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        _fsync(one)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop(paths: Iterable[Path]) -> None:
    """Takes files out of the page cache; dirty pages stay, so they are written first."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(paths: Iterable[Path]) -> None:
    """Reads files into the page cache."""
    piece = bytearray(1 << 23)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def files_of(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def on_disk(path: Path) -> int:
    """Bytes that the file system has given to everything below a folder."""
    return sum(one.stat().st_blocks * 512 for one in files_of(path))
