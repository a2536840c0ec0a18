"""The watch sees what a process holds, and what grows."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from memory_watch import Held, MemoryWatch, held, held_together, trend

MIB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No garbage of other tests is collected between two looks."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def grown(before, after):
    return {name: getattr(after, name) - getattr(before, name) for name in Held.__slots__}


def test_private_memory_is_seen():
    before = held()
    block = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * len(block))
    more = grown(before, held())
    block.close()
    for name in ("rss", "anonymous"):
        assert 30 * MIB < more[name] < 40 * MIB, name
    assert more["pss"] > 30 * MIB, "and what others shared and let go of meanwhile"
    assert more["shared_memory"] < MIB


def test_shared_memory_is_seen_once_it_is_touched_and_its_descriptor_too():
    before = held()
    descriptor = os.memfd_create("watched")
    os.ftruncate(descriptor, 32 * MIB)
    block = mmap.mmap(descriptor, 32 * MIB)
    untouched = grown(before, held())
    block.write(b"x" * len(block))
    more = grown(before, held())
    block.close()
    os.close(descriptor)
    assert untouched["shared_memory"] < MIB
    assert more["shared_memory"] == 32 * MIB
    assert more["anonymous"] < 8 * MIB
    assert more["descriptors"] == 2  # mmap keeps one of its own
    assert grown(before, held())["descriptors"] == 0


CHILD = """
import mmap, sys
block = mmap.mmap(int(sys.argv[1]), 64 << 20)
block.read()
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_two_processes_share_is_counted_once():
    descriptor = os.memfd_create("shared")
    os.ftruncate(descriptor, 64 * MIB)
    block = mmap.mmap(descriptor, 64 * MIB)
    block.write(bytes(range(256)) * (64 * MIB // 256))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        child.stdout.readline()
        both = [held(), held(child.pid)]
        together = held_together(os.getpid(), child.pid)
    finally:
        child.communicate()
        block.close()
        os.close(descriptor)
    assert all(one.shared_memory >= 64 * MIB for one in both)
    assert together < sum(one.rss for one in both) - 60 * MIB


def test_who_has_ended_holds_nothing():
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(psutil.NoSuchProcess):
        held(child.pid)


def watched(*values):
    watch = MemoryWatch()
    zero = dict.fromkeys(Held.__slots__, 0)
    watch.seen = [Held(**(zero | value)) for value in values]
    return watch


def test_what_stays_is_flat_whatever_it_was_at_first():
    start = [{"rss": n * MIB, "descriptors": n} for n in range(20)]
    watched(*start, *[{"rss": 20 * MIB + n % 3, "descriptors": 20} for n in range(100)]).check_flat(warm=20)


def test_late_collections_of_garbage_are_no_growth():
    watched(*[{"rss": (100 + n % 7) * MIB} for n in range(60)], {"rss": 180 * MIB}).check_flat(warm=10)


@pytest.mark.parametrize(
    ("name", "step"), [("rss", MIB // 8), ("shared_memory", MIB // 20), ("descriptors", 1), ("threads", 1)]
)
def test_what_grows_a_little_with_each_save_is_found(name, step):
    with pytest.raises(AssertionError, match=name):
        watched(*[{name: 1000 + n * step} for n in range(120)]).check_flat(warm=20)


def test_a_real_leak_is_found_and_its_absence_too():
    watch, kept = MemoryWatch(), []
    for _ in range(30):
        kept.append(os.memfd_create("leak"))
        watch.look()
    with pytest.raises(AssertionError, match="descriptors"):
        watch.check_flat(warm=5)
    for descriptor in kept:
        os.close(descriptor)
    watch = MemoryWatch()
    for _ in range(30):
        os.close(os.memfd_create("no leak"))
        watch.look()
    watch.check_flat(warm=5)


def test_too_few_looks_prove_nothing():
    with pytest.raises(AssertionError, match="too few"):
        watched(*[{}] * 12).check_flat(warm=5)


def test_the_trend_is_that_of_most():
    assert trend([0, 1, 2, 100, 4, 5]) == 1.0
    assert trend([5]) == 0.0
