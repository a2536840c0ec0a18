"""A disk that fails when it is told to, under a trainer or a saver process alike; and small disks that are really full.

What is to fail lies in a folder as files, so that a test can tell another process: ``write`` with ``EIO`` in it fails
all writes as long as it is there, ``write-1`` only one of them. Savers import this, so it knows no torch and no pytest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import HookedFiles, Op

MUCH = 64 * 1024
"""Bytes of a write that only packs are."""


class ToldFiles(HookedFiles):
    """Fails, or takes its time, as the files in a folder say."""

    def __init__(self, orders: Path) -> None:
        super().__init__()
        self._orders, self._slow = orders, threading.Lock()

    def around(self, event, run):
        if event.op is Op.WRITE and (event.length or 0) >= MUCH:
            (self._orders / "much-was-written").touch()
        if (found := self._told(event.op)) is not None:
            if found.startswith("sleep"):
                with self._slow:  # one after the other, whatever the number of threads
                    time.sleep(float(found.split()[1]))
                return run()
            code = getattr(errno, found)
            raise OSError(code, os.strerror(code), str(event.path or ""))
        return run()

    def _told(self, op: Op) -> str | None:
        for path in sorted(self._orders.glob(f"{op}*")):
            with contextlib.suppress(FileNotFoundError):
                text = path.read_text()
                if path.name != op:
                    path.unlink()  # it was for one event
                return text
        return None


class Faults:
    """What a test says to such disks."""

    def __init__(self, orders: Path) -> None:
        self.orders = orders
        orders.mkdir(exist_ok=True)

    def tell(self, op: Op, what: str, *, times: int | None = None) -> None:
        """Events of a kind fail with an error (``EIO``), or take so long (``sleep 0.1``); always, or so often."""
        names = [str(op)] if times is None else [f"{op}-{number}" for number in range(times)]
        for name in names:
            new = self.orders / f".{name}"
            new.write_text(what)
            new.rename(self.orders / name)  # at once: a saver that looks must not find half an order

    def clear(self) -> None:
        """All is well again."""
        for path in self.orders.iterdir():
            path.unlink(missing_ok=True)

    @property
    def much_was_written(self) -> bool:
        """Whether the bytes of any pack were written."""
        return (self.orders / "much-was-written").exists()

    def prelude(self, *more: str) -> str:
        """Code that installs such a disk in a saver process; see `holdfast.saver.starting.prelude`."""
        kits = str(Path(__file__).parent)
        lines = f"sys.path.append({kits!r})", "import failing_files", f"failing_files.install({str(self.orders)!r})"
        return "\n".join((*lines, *more))


def install(orders: str | Path) -> None:
    """Every local storage that this process opens from now on does what it is told."""
    files = ToldFiles(Path(orders))
    opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A tmpfs of its own at a folder; False where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, *, leave: int = 0) -> None:
    """Takes all the room that is left on a disk, or all but so many bytes."""
    facts = os.statvfs(path.parent)
    with path.open("ab", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(1, facts.f_bavail * facts.f_bsize - leave))
        if leave:
            return
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
