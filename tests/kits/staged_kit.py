"""Trainings with a saver process of their own, what they note down outside of the store, and who is left after them.

A trainer is a forked child, so a process of its own with real signals; its saver is started as users' savers are. What
the state was at each save is noted in a file that no crash of the trainer can take back, and compared with what a
relaunch finds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from toy_training import ended, forked

import holdfast
from holdfast.catalog.verifying.verify import verify
from holdfast.ids import Digest
from holdfast.records import Record

PATIENCE = 300.0
"""Seconds after which something that should happen is taken for never happening."""

_MARK = "HOLDFAST_TEST_FAMILY"
_STAGING = "/memfd:holdfast"
_LIBC = ctypes.CDLL(None, use_errno=True)


def awaited(done: Callable[[], object], what: str) -> None:
    """Waits until something happens; fails where it never does."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.005)


# What a training notes down


class Notes:
    """Lines in a file, each on the disk before the next thing is done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, *words: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[list[str]]:
        """The lines so far, as words."""
        return [line.split(" ") for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def digests(self) -> dict[int, str]:
        """What was noted of the steps."""
        return {int(words[1]): words[2] for words in self.read() if words[0] == "state"}


def digest_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Of all that is trained, to the bit."""
    tensors = list(model.state_dict().values())
    tensors += [part for one in optimizer.state_dict()["state"].values() for part in one.values()]
    flat = (tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return str(Digest.of(b"".join(flat)))


def heard(work: Callable[[], object], log: Path) -> Callable[[], object]:
    """``work`` in a process whose log goes to a file, for `toy_training.forked`."""

    log.touch()

    def run() -> object:
        logging.disable(logging.NOTSET)
        logger = logging.getLogger("holdfast")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.FileHandler(log))
        return work()

    return run


# Who belongs together


class Family:
    """A trainer, its savers and all that it forks: found by what they inherit, whoever is their parent now."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.seen: dict[int, float] = {}
        """Every process that was met, with its start time."""

    def of(self, work: Callable[[], object]) -> Callable[[], object]:
        """``work`` in a process that founds the family."""

        def run() -> object:
            os.environ[_MARK] = self.mark
            return work()

        return run

    def savers(self) -> list[psutil.Process]:
        """The saver processes that live now."""
        return [one for one in psutil.process_iter() if _marked(one, self.mark) and is_saver(one)]

    def await_savers_end(self) -> None:
        """Waits for orphaned savers to finish."""
        awaited(lambda: not self.savers(), "the saver ends after its trainer")


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False


def is_saver(process: psutil.Process) -> bool:
    """Whether a process is a saver."""
    try:
        return any("holdfast.saver.main" in part for part in process.cmdline())
    except psutil.Error:
        return False


def saver_of(pid: int) -> psutil.Process | None:
    """The saver that a trainer has now: that of a training before it may still be at its end."""
    savers = [one for one in psutil.Process(pid).children() if is_saver(one)]
    return max(savers, key=lambda one: one.create_time(), default=None)


def has_died(process: psutil.Process) -> bool:
    """Whether a child is gone with all of its threads: others end after the first, and have its sockets until then."""
    return process.status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{process.pid}/task")) == 1


def staging_memory(pid: int) -> list[str]:
    """What a process has of staging memory: mappings and descriptors; nothing, if it has ended.

    Of a forked process not what other tests have left in the one that runs the tests, which all its children have.
    """
    left = set() if pid == os.getpid() else {inode for inode, _ in _staging(os.getpid())}
    return [what for inode, what in _staging(pid) if inode not in left]


def _staging(pid: int) -> Iterator[tuple[int, str]]:
    """By the number of the file."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if _STAGING in line:
                yield int(line.split()[4]), line
    for link in [*Path(f"/proc/{pid}/fd").glob("*")]:
        with suppress(OSError):
            if _STAGING in (where := os.readlink(link)):
                yield link.stat().st_ino, where


# What is left in the store


def leftovers(store: Path) -> list[str]:
    """What no finished save leaves behind: holds, unfinished files."""
    found = [*store.glob("catalog/runs/*/holds/*.json"), *store.rglob(".tmp-*")]
    return sorted(str(path.relative_to(store)) for path in found)


def check_store(store: Path, *, killed: bool = False) -> None:
    """Every byte of every checkpoint is as it was written, and nothing is left over.

    Of who was ``killed`` at any moment, an unfinished file may be; gc removes it when it is old.
    """
    report = verify(holdfast.open(store), deep=True)
    assert report.ok, report.problems
    end = time.monotonic() + 20  # a saver may be about to end by itself
    while (left := [one for one in leftovers(store) if not (killed and ".tmp-" in one)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == [], left


def record_at(store: Path, step: int) -> Record:
    """The only checkpoint of a step."""
    (found,) = [record for record in holdfast.open(store).run(1).records() if record.step == step]
    return found


# Mounts


def in_own_mounts(work: Callable[[], object]) -> None:
    """``work`` in a child with a mount table of its own, which goes when the child does; skipped where not allowed."""

    def guarded() -> None:
        try:
            if _LIBC.unshare(0x00020000) != 0:  # CLONE_NEWNS
                raise SystemExit(77)
            if subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False).returncode:
                raise SystemExit(77)
            work()
        except SystemExit as end:
            os._exit(int(end.code or 0))

    code = ended(forked(guarded))
    if code == 77:
        pytest.skip("this user may not mount anything")
    assert code == 0


def full_shared_memory() -> None:
    """A /dev/shm of 1 MB, as small containers have it, and full; the child ends where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise SystemExit(77)
    with Path("/dev/shm/ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        for _ in _for_ever():
            file.write(bytes(4096))


def _for_ever() -> Iterator[None]:
    while True:
        yield


# Savers that wait

_GATE = """
import os, time
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import HookedFiles, Op

class Gate(HookedFiles):
    def around(self, event, run):
        is_commit = event.op in (Op.LINK, Op.RENAME_NEW) and "/records/" in str(event.target)
        while is_commit and not os.path.exists({gate!r}):
            time.sleep(0.005)
        return run()

files = Gate()
opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
"""


def gated(gate: Path) -> str:
    """For `holdfast.saver.starting.prelude`: a saver that publishes nothing before ``gate`` exists."""
    return _GATE.format(gate=str(gate))


# What happened


def resumed(store: Path, launch: int) -> tuple[int, str] | None:
    """Step and id of the record that a launch began with."""
    start = next(one for one in holdfast.open(store).run(1).starts() if one.launch == launch)
    return (start.resumed_from.step, start.resumed_from.id) if start.resumed_from else None
