"""Kill -9 at each file event of everything but a save: rm, gc, repack, tag, untag, fork, pin, unpin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from crash_kit import Promise, unsound
from lived_kit import STORE, WORKS, Refused, objects_of, prepared, typed
from toy_training import KILLED, ended, finished, forked, with_files

import holdfast
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.naming.tags import read_tags
from holdfast.errors import NameTaken, UnknownReference
from holdfast.testing.faults import CountedFiles, KillAt

LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]

COMMANDS = [name for name in WORKS if not name.startswith("save")]


def steps(store: Path, run: int) -> list[int]:
    return [record.step for record in holdfast.open(store).run(run).records()]


def tags(store: Path) -> set[str]:
    return {tag.tag for tag in read_tags(holdfast.open(store)).tags}


def pins(store: Path, step: int) -> int:
    opened = holdfast.open(store)
    return len(read_record_marks(opened, resolve(opened, f"run-001@{step}").address).pins)


def repacked(store: Path) -> bool:
    """Whether one pack of the run is left besides the copies of what was live in the other."""
    packs = store / "data/runs/003"
    return len(list(packs.glob("*.pack"))) == 1 and len(list(packs.glob("repacked/*.pack"))) == 1


DONE: dict[str, Callable[[Path], bool]] = {
    "rm": lambda store: steps(store, 1) == [2, 3],
    "gc": lambda store: steps(store, 3) == [3] and repacked(store),
    "repack": lambda store: repacked(store),
    "tag": lambda store: tags(store) == {"paper", "best-so-far"},
    "untag": lambda store: tags(store) == set(),
    "fork": lambda store: any(info.name == "third" and info.forked_from for info in holdfast.open(store).runs()),
    "pin": lambda store: pins(store, 1) >= 1,
    "unpin": lambda store: pins(store, 3) == 0,
}
"""When each is through."""

SAID = {"rm": UnknownReference, "tag": NameTaken, "untag": UnknownReference}
"""What the second execution may say if the first had come far enough before it was killed."""


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory):
    """A function: the store on which a work begins, made once."""
    return cache(lambda name: prepared(tmp_path_factory.mktemp("commands") / name, WORKS[name][0]))


def copied(store: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(store, to / STORE)
    return to / STORE


def undisturbed(store: Path, name: str, report: Path) -> tuple[int, Promise]:
    """How many file events a work has, and what it leaves alone."""
    before, counter = objects_of(store), CountedFiles()

    def work() -> int:
        WORKS[name][1](store)
        return len(counter.seen)

    events = int(finished(with_files(counter, work), report))
    assert DONE[name](store)
    return events, Promise(there=before & objects_of(store), gone=frozenset())


def again(store: Path, name: str) -> None:
    """The second execution; an error that says that it was done already is as good."""
    try:
        WORKS[name][1](store)
    except Refused as refused:
        if name not in SAID or refused.code != SAID[name].exit_code:
            raise


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=LONG)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_killed_hurts_nothing_and_can_be_repeated(
    tmp_path: Path, place_of, name: str, every: bool
) -> None:
    """Hazards 5 and 30. The short form kills before and after the event by turns, and not at all of many."""
    store = place_of(name)
    events, kept = undisturbed(copied(store, tmp_path / "whole"), name, tmp_path / "report")
    stride = 1 if every or events < 20 else 3 if events < 50 else 8
    cases = [(number, after) for number in range(1, events + 1, stride) for after in (False, True)]
    cases = cases if every else [case for at, case in enumerate(cases) if at // 2 % 2 == at % 2]
    for number, after in cases:
        where = f"killed {'after' if after else 'before'} event {number} of {events} of {name}"
        hit = copied(store, tmp_path / "hit")
        assert ended(forked(with_files(KillAt(number, after=after), lambda hit=hit: WORKS[name][1](hit)))) == KILLED, (
            where
        )
        assert unsound(hit, kept) is None, where
        again(hit, name)
        assert DONE[name](hit), where
        typed("gc")(hit)
        assert unsound(hit, Promise(there=frozenset(filter(is_named, kept.there)), gone=frozenset())) is None, where
        left = [str(path) for pattern in (".tmp-*", "sweeps/*", "holds/*") for path in hit.rglob(pattern)]
        assert left == [], where
    print(f"\n{name}: {events} file events, {len(cases)} kills")


def is_named(name: str) -> bool:
    """Whether a gc leaves it alone, whatever else has happened."""
    return any(part in name for part in ("/records/", "/tags/", "run.json", "/launches/", "/journal/"))


def test_every_command_is_among_them() -> None:
    assert set(COMMANDS) == DONE.keys()
