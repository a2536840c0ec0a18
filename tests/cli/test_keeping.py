"""Which keep policy gc and why go by."""

from __future__ import annotations

import msgspec
import pytest
from holds_kit import fill

from holdfast.catalog import layout
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.marks import add_mark
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import open_store
from holdfast.cli.keeping import retention
from holdfast.ids import RunNumber
from holdfast.records import MarkKind, Target


@pytest.fixture
def place(tmp_path):
    """Launch 1 wanted to keep one checkpoint, launch 2 a hundred; four are there, all verified."""
    store = open_store(tmp_path, create=True)
    run = store.create_run("gpt")
    begin_launch(run, deadline=0, policies={"keep": "latest(1)"})
    launch = begin_launch(run, deadline=0, policies={"keep": "latest(100)"})
    parent = None
    for step in range(1, 5):
        with begin_save(launch, 0, step) as attempt:
            record = fill(attempt, step, [bytes([step]) * 100])
            parent = attempt.publish(msgspec.structs.replace(record, parent=parent and Target.of(parent.address)))
        add_mark(store, parent.address, MarkKind.VERIFIED, by="test")
    return tmp_path


NEWEST = layout.launch(RunNumber(1), 2)


def spoil(place, how: str) -> None:
    path = place / NEWEST
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data) if how == "damaged" else path.unlink()


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_gc_does_not_go_by_an_older_launch_when_the_newest_one_cannot_be_read(place, cli, how):
    """The older policy may keep less: three of four checkpoints would go."""
    spoil(place, how)
    done = cli(place, "gc")
    assert done.code == 0
    assert "run-001: no checkpoint is deleted, the keep policy is not known" in done.err
    assert "000002.json" in done.err
    assert [record.step for record in open_store(place).run(1).records()] == [1, 2, 3, 4]


def test_why_says_that_the_policy_cannot_be_read(place, cli):
    spoil(place, "damaged")
    assert "launch 2 has it and cannot be read" in cli(place, "why", "gpt").out


def test_a_policy_that_is_typed_needs_no_launch(place):
    spoil(place, "damaged")
    kept = retention(open_store(place).run(1), "latest(2)")
    assert [address.order.step for address in kept.plan.delete] == [1, 2]


def test_the_policy_of_the_newest_launch_is_taken(place):
    kept = retention(open_store(place).run(1))
    assert (kept.policy, kept.source, kept.plan.delete) == ("latest(100)", "launch 2", ())
