"""Stores that have lived, and the works that are recorded or killed on them.

All of it happens in forked children: whoever held anything is dead when the
store is looked at, as after a real crash. Trainings save in line, for it is
the file operations of the child that are recorded, counted and failed.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from toy_training import KILLED, ended, finished, forked, with_files

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.marks import add_mark, pin, unpin
from holdfast.catalog.naming.forks import fork
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.naming.tags import create_tag
from holdfast.cli.app import run as command
from holdfast.ids import TagName
from holdfast.records import MarkKind
from holdfast.storage.files import Files
from holdfast.testing.faults import HookedFiles, Op

STORE = "store"


class Toy(nn.Module):
    """A frozen base, a tensor that never changes, and a larger one that is another one at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.arange(600.0), requires_grad=False)
        self.slow = nn.Parameter(torch.arange(1100.0))
        self.fast = nn.Parameter(torch.zeros(1500))
        self.small = nn.Parameter(torch.zeros(3))

    def be_at(self, step: int) -> None:
        with torch.no_grad():
            self.fast.copy_(torch.arange(1500.0) + 10_000 * step)
            self.small.fill_(step)

    def is_at(self, step: int) -> bool:
        other = Toy()
        other.be_at(step)
        return all(
            torch.equal(mine, others) for mine, others in zip(self.parameters(), other.parameters(), strict=True)
        )


def train(store: Path, run: str, to: int, keep=None) -> None:
    """Trains on to a step, with a checkpoint at every step."""
    torch.set_num_threads(1)
    model = Toy()
    options = {"save": every(steps=1), "keep": keep or latest(9), "saver": "inline"}
    with Checkpointer(store, run=run, state={"model": model}, **options) as ckpt:
        for step in ckpt.steps(to):
            model.be_at(step + 1)
            ckpt.log(loss=1 / (step + 1))


def make_lived(store: Path) -> None:
    """Two runs of which one is a fork of the other, a frozen base, tags, marks, notes, journals, several packs."""
    train(store, "first", 3)
    opened = holdfast.open(store)
    one, two, three = (resolve(opened, f"run-001@{step}") for step in (1, 2, 3))
    create_tag(opened, TagName("paper"), two.address, note="figure 2")
    add_mark(opened, one.address, MarkKind.GOOD, by="health", data={"steps": 50})
    pin(opened, three.address, by="user", why="keep")
    fork(opened, "run-001@2", "second")
    train(store, "second", 4)


class Refused(Exception):
    """A command ended with another code than 0."""

    def __init__(self, words: tuple[str, ...], code: int) -> None:
        super().__init__(f"holdfast {' '.join(words)} ended with {code}")
        self.code = code


def typed(*words: str) -> Callable[[Path], None]:
    """Work that is one command."""

    def run(store: Path) -> None:
        code = command([*words, "--store", str(store), "--json"])
        if code:
            raise Refused(words, code)

    return run


class KillBefore(HookedFiles):
    """Kills this process when it is about to do ``op`` to an object with ``part`` in its name."""

    def __init__(self, op: Op, part: str) -> None:
        super().__init__()
        self._op, self._part = op, part

    def around(self, event, run):
        if event.op is self._op and self._part in str(event.target or event.path):
            os.kill(os.getpid(), signal.SIGKILL)
        return run()


def cut_off(files: Files, work: Callable[[], object]) -> None:
    """Does ``work`` in a process that does not survive it."""
    assert ended(forked(with_files(files, work))) == KILLED


def make_cut_off(store: Path) -> None:
    """As `make_lived`, with the hold of a save and the tombstones of a deletion that were killed at work."""
    make_lived(store)
    cut_off(KillBefore(Op.LINK, "/records/"), lambda: train(store, "second", 5))
    cut_off(KillBefore(Op.UNLINK, "/records/"), lambda: typed("rm", "run-001@1")(store))


def make_wasteful(store: Path) -> None:
    """As `make_lived`, and all that a gc is for: a policy, a pack that will be mostly dead, a save that was killed."""
    make_lived(store)
    train(store, "third", 3)
    with Checkpointer(store, run="third", state={"model": Toy()}, keep=latest(1), saver="inline") as ckpt:
        ckpt.restore()
    cut_off(KillBefore(Op.LINK, "/records/"), lambda: train(store, "second", 5))


def make_sparse(store: Path) -> None:
    """As `make_lived`, with a pack that is under half live."""
    make_lived(store)
    train(store, "third", 3)
    typed("rm", "run-003@1", "run-003@2")(store)


WORKS: dict[str, tuple[Callable[[Path], None] | None, Callable[[Path], object]]] = {}
"""By name: what is done before, unrecorded, and the work itself."""


def work(name: str, before: Callable[[Path], None] | None):
    def keep(function):
        WORKS[name] = (before, function)
        return function

    return keep


@work("save", None)
def saves(store: Path) -> None:
    """Three of a new store, so that reuse and retention play."""
    train(store, "new", 3, keep=latest(2))


@work("save-into", make_lived)
def saves_into(store: Path) -> None:
    """A restart of a run that is there."""
    train(store, "second", 5, keep=latest(2))


work("rm", make_lived)(typed("rm", "run-001@1"))
work("gc", make_wasteful)(typed("gc"))
work("repack", make_sparse)(typed("gc"))
work("tag", make_lived)(typed("tag", "run-001@3", "best-so-far"))
work("untag", make_lived)(typed("tag", "--delete", "paper"))
work("fork", make_lived)(typed("fork", "run-001@1", "third"))


@work("pin", make_lived)
def pins(store: Path) -> None:
    opened = holdfast.open(store)
    pin(opened, resolve(opened, "run-001@1").address, by="user", why="keep")


@work("unpin", make_lived)
def unpins(store: Path) -> None:
    opened = holdfast.open(store)
    unpin(opened, resolve(opened, "run-001@3").address, by="user")


def objects_of(store: Path) -> frozenset[str]:
    """All that lasts: holds and tombstones come and go with the work that they stand for."""
    names = (str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return frozenset(name for name in names if not re.search(r"/holds/|/sweeps/|/\.tmp-", name))


def prepared(place: Path, before: Callable[[Path], None] | None) -> Path:
    """The store in the folder ``place`` on which a work begins; made in a process that is dead afterwards."""
    place.mkdir(parents=True)
    store = place / STORE
    if before is not None:
        finished(lambda: before(store), place.parent / "said")
    return store
