"""Worlds of forked ranks that can be killed, rank by rank; their savers, hooked at file events; and what they leave.

No wait is without an end: what hangs longer than `OUTER` seconds is killed, and has failed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from ranks_training import Job, train
from staged_kit import Family, heard, saver_of
from toy_training import ask, forked
from worlds import free_port

import holdfast
from holdfast.catalog.verifying.verify import verify
from holdfast.records import Record
from holdfast.saver import starting

OUTER = 120.0
"""Seconds after which a rank that has not ended by itself hangs."""


@dataclass
class Ranks:
    """One launch of a job; made by `launched`."""

    job: Job
    pids: list[int]
    logs: list[Path]
    results: list[Path]
    family: Family
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.pids)

    def alive(self) -> list[int]:
        """The ranks whose trainers have not ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(self.size) if rank not in self.codes]

    def wait(self, seconds: float = OUTER) -> Ranks:
        """Until all trainers have ended by themselves."""
        self.until(lambda: not self.alive(), "all ranks end by themselves", seconds)
        return self

    def until(self, done: Callable[[], object], what: str, seconds: float = OUTER) -> None:
        """Waits; whoever hangs is killed, and the test fails."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                hanging = self.alive()
                for rank in hanging:
                    ask(self.pids[rank])
                self.stop()
                raise AssertionError(f"{what}: not within {seconds:.0f} s; rank {hanging} had not ended\n{self.text}")
            time.sleep(0.003)

    def stop(self) -> None:
        """Kills what is left of trainers, and their savers."""
        for rank in self.alive():
            os.kill(self.pids[rank], signal.SIGKILL)
        while self.alive():
            time.sleep(0.003)
        for saver in self.family.savers():
            with suppress(psutil.Error):
                saver.kill()

    def check(self) -> Ranks:
        """All have ended well."""
        assert self.codes == dict.fromkeys(range(self.size), 0), f"{self.codes}\n{self.text}"
        return self

    def digests(self) -> list[str]:
        """What each rank has come to."""
        return [path.read_text() for path in self.results]

    # Where they are

    def steps(self, rank: int) -> list[int]:
        """The completed steps with which a rank has begun its bodies."""
        return [int(words[1]) for words in self.job.notes_of(rank).read() if words[0] in ("began", "at")]

    def at(self, rank: int) -> int:
        """The number of completed steps of a rank; -1 before the first body, the last one once the loop is over."""
        words = self.job.notes_of(rank).read()
        return int(words[-1][1]) if words else -1

    def await_step(self, step: int, ranks: Collection[int] | None = None) -> None:
        """Until these ranks, or all, have come so far, or have ended."""
        wanted = range(self.size) if ranks is None else ranks
        self.until(lambda: all(self.at(one) >= step for one in wanted) or not self.alive(), f"step {step} is reached")

    def saver(self, rank: int) -> psutil.Process | None:
        """The saver that a rank has now."""
        with suppress(psutil.Error):
            return saver_of(self.pids[rank])
        return None

    def kill(self, rank: int, *, trainer: bool = True, saver: bool = False) -> bool:
        """SIGKILL to a rank's processes, as far as there are any; the saver first: it would finish. Whether any was."""
        one, any_was = self.saver(rank) if saver else None, False
        if one is not None:
            with suppress(psutil.Error):
                one.kill()
                any_was = True
        if trainer and rank in self.alive():
            os.kill(self.pids[rank], signal.SIGKILL)
            any_was = True
        return any_was

    def send(self, rank: int, number: int) -> None:
        """A signal to both processes of a rank."""
        one = self.saver(rank)
        os.kill(self.pids[rank], number)
        if one is not None:
            one.send_signal(number)

    @property
    def text(self) -> str:
        return "\n".join(f"--- rank {rank}\n{log.read_text()[-5000:]}" for rank, log in enumerate(self.logs))

    def log(self, rank: int) -> str:
        return self.logs[rank].read_text()


def launched(
    place: Path,
    job: Job,
    size: int = 2,
    *,
    family: Family | None = None,
    preludes: Mapping[int, str] | None = None,
    work: Callable[[Job], str] = train,
) -> Ranks:
    """A new launch of ``job``; ``preludes`` is what the savers of a rank run first, ``work`` what the ranks do."""
    place.mkdir(parents=True, exist_ok=True)
    job.notes.mkdir(parents=True, exist_ok=True)
    for rank in range(size):
        job.notes_of(rank).path.unlink(missing_ok=True)
    family, port = family or Family(), free_port()
    logs = [place / f"rank-{rank}.log" for rank in range(size)]
    results = [place / f"rank-{rank}.result" for rank in range(size)]
    pids = []
    for rank in range(size):
        whole = family.of(
            heard(_rank(partial(work, job), rank, size, port, logs[rank], (preludes or {}).get(rank, "")), logs[rank])
        )
        pids.append(forked(whole, results[rank]))
    return Ranks(job, pids, logs, results, family)


def _rank(work: Callable[[], str], rank: int, size: int, port: int, log: Path, prelude: str) -> Callable[[], object]:
    def run() -> str:
        said = os.open(log, os.O_WRONLY | os.O_APPEND)
        sys.stdout = sys.stderr = os.fdopen(said, "w", buffering=1, closefd=False)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        starting.prelude = prelude
        return work()

    return run


# What the savers are made to do

_STRIKE = """
import os, signal
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import CountedFiles

def is_first():
    try:
        os.close(os.open({once!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

trainer = os.getppid()

class Strike(CountedFiles):
    number = 0

    def at(self, number, event, run):
        found = not {part!r} or (event.op in ("link", "rename_new") and {part!r} in str(event.target))
        with self._lock:
            self.number += found
            hit = found and self.number == {number}
        if hit and not {after}:
            self.strike(event)
        try:
            return run()
        finally:
            if hit and {after}:
                self.strike(event)

    def strike(self, event):
        with open({once!r}, "w") as file:
            file.write(f"{{event.op}} {{event.target or event.path or ''}}")
        alone = [trainer] if os.getppid() == trainer else []  # else it has ended
        pids = [int(pid) for pid in open({job!r}).read().split()] if {whom!r} == "job" else alone
        for pid in pids if {whom!r} != "saver" else ():
            os.kill(pid, {signal})
        if {whom!r} in ("saver", "node"):
            os.kill(os.getpid(), {signal})

if is_first():
    files = Strike()
    opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
"""


@dataclass(frozen=True, kw_only=True)
class Strike:
    """What the first saver of a rank does at one of its own file events."""

    once: Path
    """Exists as soon as there was a saver; tells of the event once it has struck."""
    number: int
    whom: str = "saver"
    """The saver, its trainer, both (``node``), or all trainers of the ``job``."""
    after: bool = False
    part: str | None = None
    """Only creations of objects with this in their names count."""
    signal: int = signal.SIGKILL

    def prelude(self) -> str:
        """For `launched`."""
        return _STRIKE.format(
            once=str(self.once),
            number=self.number,
            whom=self.whom,
            after=self.after,
            part=self.part,
            signal=int(self.signal),
            job=str(self.job),
        )

    @property
    def job(self) -> Path:
        """Where the pids of all trainers are."""
        return self.once.with_suffix(".pids")

    @property
    def struck(self) -> str:
        """At what it has struck; empty: not (yet)."""
        return self.once.read_text() if self.once.exists() else ""


_STOP = """
import os, signal
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import HookedFiles

class Stop(HookedFiles):
    places = {places!r}

    def around(self, event, run):
        if self.places and event.op in self.places[0][0] and self.places[0][1] in str(event.target or event.path):
            del self.places[0]
            open({stopped!r}, "a").write(str(event.op) + " ")
            os.kill(os.getpid(), signal.SIGSTOP)
        return run()

files = Stop()
opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
"""
CREATE, REMOVE = ("link", "rename_new"), ("unlink",)


@dataclass(frozen=True)
class Stops:
    """A saver that stops itself (SIGSTOP) right before events, one after the other."""

    stopped: Path
    """Tells of the events at which it has stopped."""
    places: list[tuple[tuple[str, ...], str]]
    """The kinds of event, and a part of the name."""

    def prelude(self) -> str:
        return _STOP.format(places=self.places, stopped=str(self.stopped))

    @property
    def count(self) -> int:
        """How often it has stopped."""
        return len(self.stopped.read_text().split()) if self.stopped.exists() else 0


_COUNT = """
import atexit
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import CountedFiles

def report():
    with open({report!r}, "w") as file:
        file.write(str(len(files.seen)))

files = CountedFiles()
opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
atexit.register(report)
"""


def counted(place: Path, job: Job, size: int) -> list[int]:
    """How many file events the saver of each rank makes in a training that nobody touches."""
    reports = [place / f"rank-{rank}.events" for rank in range(size)]
    preludes = {rank: _COUNT.format(report=str(report)) for rank, report in enumerate(reports)}
    world = launched(place, job, size, preludes=preludes).wait().check()
    world.family.await_savers_end()
    return [int(report.read_text()) for report in reports]


# What they leave


def launches_of(store: Path) -> list[int]:
    """The launches that there were."""
    return list(holdfast.open(store).run(1).launch_numbers())


def records_of(store: Path) -> list[Record]:
    """All checkpoints of the run, oldest first; none if there is no run yet."""
    with suppress(holdfast.errors.NotFound):
        return sorted(holdfast.open(store).run(1).records(), key=lambda record: record.address.order)
    return []


def parts_of(store: Path) -> list[str]:
    """What ranks have contributed and nobody has removed; unfinished files are no objects, and go with the next gc."""
    folder = store / "catalog" / "runs" / "001" / "parts"
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".tmp-"))
    return sorted(str(path.relative_to(folder)) for path in found)


def problems_of(store: Path) -> list[str]:
    """What ``holdfast verify --deep`` finds."""
    return [str(one) for one in verify(holdfast.open(store), deep=True).problems]


def resumed_from(store: Path, launch: int) -> int:
    """The step with which a launch began, which is that of the newest checkpoint that was there: none came later."""
    start = next(one for one in holdfast.open(store).run(1).starts() if one.launch == launch and one.timeline == 0)
    older = [record for record in records_of(store) if record.address.order.launch < launch]
    wanted = (older[-1].step, older[-1].id) if older else (0, None)
    found = start.resumed_from
    assert ((found.step, found.id) if found else (0, None)) == wanted, f"launch {launch}: {start}, not {wanted}"
    return wanted[0]
