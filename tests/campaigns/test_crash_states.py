"""Power cuts in the middle of everything that writes or deletes, in every state that they may leave on a disk.

Kills prove nothing about syncs, for the page cache survives them. So the file
operations of real work are recorded and replayed with every legal loss of what
was not synced (hazards 12), and each store that comes out is opened, checked,
resumed and cleaned up.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from crash_kit import Promise, broken, promises, recorded, recorded_on, syncs, truth_of, unresumed, unsound, unusable
from lived_kit import STORE, WORKS, typed

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

NEEDED = [
    *(
        f"the bytes of {what}"
        for what in (
            "holdfast.json",
            "a run",
            "a launch",
            "a start",
            "a hold",
            "a shared pack",
            "a pack",
            "a tree",
            "a record",
            "a mark",
            "a batch of a journal",
            "a tag",
            "a sweep",
        )
    ),
    *(
        f"the name of {what}"
        for what in (
            "the folder store",
            "holdfast.json",
            "the folder catalog",
            "the folder runs",
            "the folder of a run",
            "a run",
            "the folder launches",
            "a launch",
            "a start",
            "the folder data",
            "the folder shared",
            "a shared pack",
            "the folder of a run's packs",
            "a pack",
            "the folder repacked",
            "the folder trees",
            "a tree",
            "the folder records",
            "a record",
            "the folder marks",
            "the folder of a record's marks",
            "a mark",
            "the folder journal",
            "the folder of a writer's journal",
            "a batch of a journal",
            "a tag",
        )
    ),
    *(f"the removal of {what}" for what in ("a record", "a mark", "a tree", "a pack", "a tag")),
]
"""All other syncs there are, by what they make durable."""

BEHIND_RECORDS = [
    "the bytes of a shared pack",
    "the name of a shared pack",
    "the bytes of a pack",
    "the name of a pack",
    "the bytes of a tree",
    "the name of a tree",
    "the bytes of a record",
    "the removal of a record",
]
"""Without these a checkpoint is there and cannot be loaded, whatever anybody was told."""

NOTHING = Promise(there=frozenset(), gone=frozenset())


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


@pytest.mark.parametrize("most", [40, pytest.param(10**9, marks=SOAK)])
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
            assert unsound(store, NOTHING) is None, where


def of_kind(trace: Trace, kind: str) -> list[int]:
    return [number for number, found in syncs(trace).items() if found == kind]


def test_every_kind_of_sync_is_in_the_next_tests(trace_of) -> None:
    found = {kind for work in WORKS for kind in syncs(trace_of(work)).values()}
    assert found == {*NEEDED, *SPARE}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=SOAK)])
@pytest.mark.parametrize("kind", NEEDED)
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
    print(f"\nwithout {kind}: harm, for each of {dropped} such syncs")
    assert dropped


def unsound_states(trace: Trace, number: int, disk: Disk) -> Iterator[str]:
    for state in crash_states(without_sync(trace, number), seed=SEED, limit=20 * len(trace.steps)):
        if found := unsound(disk.store(state), NOTHING):
            yield f"{found}, after step {state.position}: {state.story}"


@pytest.mark.parametrize("kind", BEHIND_RECORDS)
def test_without_this_sync_a_checkpoint_is_there_and_not_whole(tmp_path: Path, trace_of, kind: str) -> None:
    """I1, broken on purpose: the order of things on the disk, not only that they get there."""
    tried = ((trace_of(work), number) for work in WORKS for number in of_kind(trace_of(work), kind))
    assert next((found for one in tried for found in unsound_states(*one, Disk(tmp_path))), None)


@pytest.mark.parametrize(("cuts", "most"), [(3, 12), pytest.param(30, 10**9, marks=SOAK)])
@pytest.mark.parametrize("work", ["save-into", "gc"])
def test_a_second_power_cut_in_the_middle_of_the_clean_up_does_no_harm(
    tmp_path: Path, trace_of, work: str, cuts: int, most: int
) -> None:
    """Crash during recovery: the clean-up after a cut is cut off itself, everywhere."""
    seen = 0
    for state in random.Random(SEED).sample(list(crash_states(trace_of(work), seed=SEED)), cuts):
        store = Disk(tmp_path / "first").store(state)
        trace = recorded_on(store, typed("gc"))
        promised, disk = promises(trace), Disk(tmp_path / "second")
        states = list(crash_states(trace, seed=SEED))
        for again in random.Random(SEED).sample(states, min(most, len(states))):
            where = f"seed {SEED}, after step {state.position} and {again.position}: {state.story}; {again.story}"
            assert unsound(disk.store(again), promised[len(again.notes)]) is None, where
            seen += 1
    print(f"\n{cuts} cuts of {work}, {seen} of the clean-ups after them")


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
