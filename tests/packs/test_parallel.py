from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from packs_kit import padded, read_back, write

from holdfast.ids import Digest
from holdfast.packs.format import TRAILER_BYTES
from holdfast.packs.parallel import Pace, run_threads
from holdfast.packs.verify import verify_pack

linux = pytest.mark.skipif(sys.platform != "linux", reason="priorities are per thread on Linux alone")
MIB = 1 << 20


def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class Items:
    """Work that notes who did it; ``then`` is called with the number of items done."""

    def __init__(self, count, then=lambda done: None):
        self.left, self.then = iter(range(count)), then
        self.lock = threading.Lock()
        self.nices = []

    def run(self, stop):
        while not stop.is_set():
            with self.lock:
                if next(self.left, None) is None:
                    return
                self.nices.append(priority())
                self.then(len(self.nices))


@pytest.fixture
def hurry():
    return threading.Event()


@linux
@pytest.mark.parametrize("count", [1, 4])
def test_threads_lower_their_own_priority_and_nobody_elses(count, hurry):
    items = Items(100)
    before = priority()
    run_threads(count, items.run, Pace(before + 7, hurry))
    assert items.nices == [before + 7] * 100
    assert priority() == before


@linux
@pytest.mark.parametrize("count", [1, 4, 16])
def test_when_it_is_urgent_fresh_threads_do_the_rest(count, hurry):
    items = Items(100, lambda done: hurry.set() if done == 40 else None)
    before = priority()
    run_threads(count, items.run, Pace(before + 7, hurry))
    assert items.nices[:40] == [before + 7] * 40
    assert len(items.nices) == 100
    assert items.nices.count(before) >= 60 - (count - 1), "each thread ends after the item at hand"


class Fickle(threading.Event):
    """Urgent for so many looks, and then no more."""

    def __init__(self, *looks):
        super().__init__()
        self.looks = iter(looks)

    def is_set(self):
        return next(self.looks, False)


@pytest.mark.parametrize("looks", [(True,), (False, True), (False, False, True)])
def test_what_was_urgent_for_a_moment_is_done_all_the_same(looks):
    """The thread ended because it was urgent, and then nobody did the rest, for it was so no more."""
    items = Items(5)
    run_threads(1, items.run, Pace(0, Fickle(*looks)))
    assert len(items.nices) == 5


@linux
def test_if_it_is_urgent_from_the_start_nothing_is_lowered(hurry):
    hurry.set()
    items = Items(20)
    run_threads(2, items.run, Pace(priority() + 7, hurry))
    assert items.nices == [priority()] * 20


@linux
def test_a_priority_is_never_raised(hurry):
    """A caller that is nicer than the pace stays so, even if it had the privilege."""
    code = """
import os, threading
from holdfast.packs.format import TRAILER_BYTES
from holdfast.packs.parallel import Pace, run_threads
os.nice(9)
nices = []
run_threads(1, lambda stop: nices.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())),
            Pace(3, threading.Event()))
print(nices)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[{min(19, priority() + 9)}]"


def test_a_priority_that_cannot_be_set_stops_nothing(monkeypatch, hurry):
    """Seccomp profiles forbid it in some containers."""

    def forbidden(*_):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", forbidden)
    items = Items(10)
    run_threads(2, items.run, Pace(19, hurry))
    assert len(items.nices) == 10


@pytest.mark.parametrize("urgent", [False, True])
def test_an_error_ends_all_threads_and_is_raised(hurry, urgent):
    def fail(done):
        if done == 30:
            if urgent:
                hurry.set()
            raise ValueError("as told")

    items = Items(10_000_000, fail)
    with pytest.raises(ValueError, match="as told"):
        run_threads(3, items.run, Pace(priority(), hurry))


@linux
def test_a_write_that_becomes_urgent_misses_nothing(heap, hurry, rng):
    segments = [padded(rng.randbytes(MIB)) for _ in range(24)] + [rng.randbytes(5000) for _ in range(300)]
    raw = [bytes(segment.data) if hasattr(segment, "data") else segment for segment in segments]
    nices = []

    def known(_):
        nices.append(priority())
        if len(nices) == 10:
            hurry.set()
        return False

    written = write(heap, segments, known=known, threads=3, pace=Pace(priority() + 5, hurry))
    assert written.digests == [Digest.of(data) for data in raw]
    assert read_back(heap, written, map(len, raw)) == raw
    assert set(nices) == {priority(), priority() + 5}
    assert nices[:10] == [priority() + 5] * 10


@linux
@pytest.mark.parametrize("at", [1, 2, 10_000])
def test_a_check_that_becomes_urgent_finds_what_the_slow_one_finds(heap, hurry, at, rng):
    (pack,) = write(heap, [rng.randbytes(5 * MIB) for _ in range(5)]).packs
    for place in (7 * MIB, 17 * MIB):
        heap.objects[pack.name][place] ^= 1
    seen = []

    def progress(length):
        seen.append((length, priority()))
        if len(seen) == at:
            hurry.set()

    found = verify_pack(heap, pack.name, progress, Pace(priority() + 4, hurry))
    assert found == verify_pack(heap, pack.name)
    assert len(found) == 2
    assert sum(length for length, _ in seen) == pack.size - TRAILER_BYTES
    assert [nice for _, nice in seen] == [priority() + 4] * min(at, len(seen)) + [priority()] * (len(seen) - at)
