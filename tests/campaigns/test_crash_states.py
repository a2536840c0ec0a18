"""Power cuts in the middle of everything that writes or deletes, in every state that they may leave on a disk.

Kills prove nothing about syncs, for the page cache survives them. So the file
operations of real work are recorded and replayed with every legal loss of what
was not synced (hazards 12), and each store that comes out is opened, checked,
resumed and cleaned up.
"""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import pytest
from crash_kit import (
    STORE,
    WORKS,
    Promise,
    broken,
    promises,
    recorded,
    syncs,
    truth_of,
    unresumed,
    unsound,
    unusable,
)

from holdfast.testing.crashes import CrashState, Trace, crash_states, materialise, without_sync

SEED = 20_260_101

SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]

SPARE = {
    "the name of a hold": "it speaks for a process, and that ends with the power",
    "the removal of a hold": "if it comes back it is that of a dead process, and nobody waits for it",
    "the name of a sweep": "it speaks for a process, and that ends with the power",
    "the removal of a sweep": "if it comes back it is that of a dead process, and means nothing",
    "the name of the folder holds": "nothing in it outlives the power",
    "the name of the folder sweeps": "nothing in it outlives the power",
}
"""Syncs that no power cut of the host needs. A server of files that loses its memory while its clients live does."""

NEEDED = """
"""

KINDS = [kind for kind in NEEDED.splitlines() if kind]


@pytest.fixture(scope="module")
def trace_of(tmp_path_factory: pytest.TempPathFactory):
    """A function: the trace of a work, recorded once."""
    return cache(lambda name: recorded(name, tmp_path_factory.mktemp("works") / name))


class Disk:
    """A folder that holds one state after the other."""

    def __init__(self, root: Path) -> None:
        self._place = root / "disk"

    def store(self, state: CrashState) -> Path:
        shutil.rmtree(self._place, ignore_errors=True)
        materialise(state, self._place)
        return self._place / STORE


def first_harm(trace: Trace, promised: list[Promise], disk: Disk, limit: int) -> str | None:
    """What is wrong in the first state in which anything is: by names and bytes, else by what the library says."""
    truth = truth_of(trace)
    for state in crash_states(trace, seed=SEED, limit=limit):
        if found := broken(state, promised[len(state.notes)], truth):
            return f"{found}, after step {state.position}: {state.story}"
    for state in crash_states(trace, seed=SEED, limit=limit):
        if found := unsound(disk.store(state), promised[len(state.notes)]):
            return f"{found}, after step {state.position}: {state.story}"
    return None


@pytest.mark.parametrize("most", [150, pytest.param(10**9, marks=SOAK)])
@pytest.mark.parametrize("work", WORKS)
def test_no_power_cut_loses_what_anybody_was_told_of(tmp_path: Path, trace_of, work: str, most: int) -> None:
    """Hazards 12: it opens, every checkpoint is whole, a resume picks the newest, and it can be worked with."""
    trace = trace_of(work)
    promised, truth, disk = promises(trace), truth_of(trace), Disk(tmp_path)
    states = list(crash_states(trace, seed=SEED, limit=20 * len(trace.steps)))
    chosen = random.Random(SEED).sample(states, min(most, len(states)))
    print(f"\n{work}: {len(trace.steps)} steps, {trace.barriers} syncs, {len(states)} states, {len(chosen)} in full")
    for state in states:
        assert broken(state, promised[len(state.notes)], truth) is None, state.story
    for number, state in enumerate(chosen):
        promise, store = promised[len(state.notes)], disk.store(state)
        where = f"seed {SEED}, after step {state.position}: {state.story}"
        assert unsound(store, promise) is None, where
        if number % 4 == 0:
            assert unusable(store, promise) is None, where
        if number % 16 == 0:
            run = "new" if work == "save" else "second"
            assert unresumed(store, run, tmp_path / "report") is None, where
            assert unsound(store, Promise(there=frozenset(), gone=frozenset())) is None, where


def of_kind(trace: Trace, kind: str) -> list[int]:
    return [number for number, found in syncs(trace).items() if found == kind]


def test_every_kind_of_sync_is_in_the_next_tests(trace_of) -> None:
    found = {kind for work in WORKS for kind in syncs(trace_of(work)).values()}
    assert found == {*KINDS, *SPARE}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=SOAK)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_this_sync_something_is_lost(tmp_path: Path, trace_of, kind: str, every: bool) -> None:
    """The deliberate break: the same look at the same work finds the harm. The short form drops one of each kind."""
    dropped = 0
    for work in WORKS:
        trace = trace_of(work)
        for number in of_kind(trace, kind):
            found = first_harm(without_sync(trace, number), promises(trace), Disk(tmp_path), 20 * len(trace.steps))
            assert found, f"sync {number} of {work} is not needed"
            dropped += 1
            if not every:
                print(f"\n{work} without {kind}: {found[:200]}")
                return
    print(f"\nwithout {kind}: harm in each of {dropped} works")
    assert dropped


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", SPARE)
def test_these_syncs_are_for_others_than_this_host(tmp_path: Path, trace_of, kind: str) -> None:
    """Why each of them may be lost in a power cut is said in ``SPARE``; that it may is proven here."""
    for work in WORKS:
        trace = trace_of(work)
        for number in of_kind(trace, kind):
            harm = first_harm(without_sync(trace, number), promises(trace), Disk(tmp_path), 20 * len(trace.steps))
            assert harm is None, f"{work}: {harm}"
