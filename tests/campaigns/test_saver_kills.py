"""Kill -9 of the saver at every file event of its: the training goes on, and so does what it was saving."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from staged_kit import Family, check_store, heard, leftovers
from tiny_training import expected, launched, records_of, steps_of
from toy_training import STACKS, TELL, ended, finished, forked

import holdfast
from holdfast import Checkpointer, latest
from holdfast.catalog.marks import read_marks
from holdfast.catalog.naming.tags import read_tags
from holdfast.cli.app import run as command
from holdfast.saver import starting

TOTAL = 8
LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]

_FIRST = """
import atexit, faulthandler, os
faulthandler.register({tell}, file=open({once!r} + {stacks!r}, "w"))
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import CountedFiles, KillAt

def is_first():
    try:
        os.close(os.open({once!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def report():
    with open({once!r}, "w") as file:
        file.write(str(len(files.seen)))

if is_first():
    files = {files}
    opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
    atexit.register(report)
"""


def first_saver_with(files: str, once: Path, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` in a trainer whose first saver does all file events through ``files``; later ones are left alone.

    ``once`` exists as soon as there was a saver, and tells, if that has ended by itself, how many events there were.
    """

    def run() -> object:
        starting.prelude = _FIRST.format(files=files, once=str(once), tell=int(TELL), stacks=STACKS)
        return work()

    return run


def train(store: Path, keep: int) -> str:
    """Four saves, one of them with a name and metrics that come after it; gives the digest of the weights."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 4:
            ckpt.save(tag="named")

    return launched(store, TOTAL, then=then, keep=latest(keep), saver="process").digest


def check(store: Path, keep: int, where: str) -> None:
    """All that was saved is there, and the store is as if nobody had been killed."""
    kept = {2, 4, 5, 6, 8} if keep > TOTAL else {5, 6, 8}
    assert set(steps_of(store)) == kept, where
    (named,) = read_tags(holdfast.open(store)).tags
    assert (named.tag, named.target.step) == ("named", 5), where
    newest = records_of(store)[-1]
    assert read_marks(holdfast.open(store), newest.address.run)[newest.address.id].verified, where
    with redirect_stdout(StringIO()):
        assert command(["gc", "--store", str(store), "--json"]) == 0
    assert set(steps_of(store)) == kept, where
    check_store(store)


@pytest.mark.parametrize("keep", [99, 2])
@pytest.mark.parametrize("stride", [47, pytest.param(1, marks=LONG)])
def test_a_saver_that_is_killed_at_any_file_event_is_replaced_and_nothing_is_lost(
    tmp_path: Path, keep: int, stride: int
) -> None:
    """By turns before and after the event; the long form takes every single one."""
    counted = tmp_path / "counted"
    whole = first_saver_with("CountedFiles()", counted, lambda: train(tmp_path / "whole", keep))
    assert finished(whole, tmp_path / "result") == expected()[TOTAL]
    total, ends = int(counted.read_text()), Counter[bool]()
    begin = random.SystemRandom().randrange(1, stride + 1)
    print(f"\n{total} file events, every {stride}. from number {begin} on")
    for number in range(begin, total + 1, stride):
        store, log, where = tmp_path / f"k{number}", tmp_path / f"k{number}.log", f"event {number} of {total}"
        once, family = tmp_path / f"k{number}.once", Family()
        print(where)
        files = f"KillAt({number}, after={number % 2 == 0})"
        work = first_saver_with(files, once, heard(lambda store=store: train(store, keep), log))
        assert ended(forked(family.of(work), tmp_path / "result")) == 0, where
        assert (tmp_path / "result").read_text() == expected()[TOTAL], where
        family.await_savers_end()
        was_killed = once.read_text() == ""
        ends[was_killed] += 1
        assert bool(re.search("has died.*: SIGKILL", log.read_text())) == was_killed, where
        check(store, keep, where)
    print(f"{ends[True]} kills, {ends[False]} came too late")
    assert ends[True] >= 0.8 * ends.total()
    assert leftovers(tmp_path / "whole") == []
