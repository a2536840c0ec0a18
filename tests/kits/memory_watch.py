"""What a process holds: memory, shared memory, descriptors, threads; and whether that grows over many saves.

watch = MemoryWatch(pid)
for _ in range(200):
    save()
    watch.look()
watch.check_flat(warm=20)
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """At one moment; bytes, but for the last two."""

    rss: int
    """Resident, pages that others share included."""
    pss: int
    """Resident, of shared pages its share only: this can be added up over processes."""
    anonymous: int
    """Private to it: heaps, stacks."""
    shared_memory: int
    """Resident pages of memfds, tmpfs files and shared mappings, in full."""
    descriptors: int
    threads: int


ALLOWANCES = Held(rss=8 << 20, pss=8 << 20, anonymous=8 << 20, shared_memory=1 << 20, descriptors=0, threads=0)
"""What may come on top over a whole watch: allocators and caches breathe, descriptors do not."""


def held(pid: int | None = None) -> Held:
    """What a process, by default this one, holds now. Linux only.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    process = psutil.Process(pid or os.getpid())
    with process.oneshot():
        descriptors, threads = process.num_fds(), process.num_threads()
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
    return Held(
        rss=_kib(rollup, "Rss"),
        pss=_kib(rollup, "Pss"),
        anonymous=_kib(status, "RssAnon"),
        shared_memory=_kib(status, "RssShmem"),
        descriptors=descriptors,
        threads=threads,
    )


def held_together(*pids: int) -> int:
    """Bytes that processes hold together, what they share counted once."""
    return sum(held(pid).pss for pid in pids)


def _kib(table: str, row: str) -> int:
    found = re.search(rf"^{row}:\s+(\d+) kB$", table, re.MULTILINE)
    return int(found[1]) * KIB if found else 0


class MemoryWatch:
    """Looks at one process again and again."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        self.seen: list[Held] = []

    def look(self) -> Held:
        """Look once more."""
        self.seen.append(held(self.pid))
        return self.seen[-1]

    def growth(self, *, warm: int = 0) -> dict[str, float]:
        """By how much each number has grown, by its trend, from the ``warm``-th look to the last."""
        later = [asdict(one) for one in self.seen[warm:]]
        return {name: trend([one[name] for one in later]) * (len(later) - 1) for name in later[0]}

    def check_flat(self, *, warm: int, allowances: Held = ALLOWANCES) -> None:
        """Fail if anything has grown by more than its allowance after the first ``warm`` looks."""
        assert len(self.seen) >= warm + 10, f"{len(self.seen)} looks are too few for a trend after {warm}"
        grown = self.growth(warm=warm)
        over = {name: round(grown[name]) for name, most in asdict(allowances).items() if grown[name] > most}
        assert not over, (
            f"after {warm} of {len(self.seen)} looks these still grew: {over}; the last was {self.seen[-1]}"
        )


def trend(values: list[int]) -> float:
    """How much is added from one value to the next: the median slope of all pairs (Theil and Sen).

    Single peaks, as when a collection of garbage comes late, do not move it.
    """
    pairs = itertools.combinations(range(len(values)), 2)
    return statistics.median((values[b] - values[a]) / (b - a) for a, b in pairs) if len(values) > 1 else 0.0
