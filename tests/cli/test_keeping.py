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
from holdfast.errors import InvalidPolicy
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


def test_why_says_what_a_limit_takes_away_and_what_that_frees(place, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = cli(place, "why", "gpt", "--keep", "latest(3) | at_most('1B')")
    assert 'delete  latest(3), but at_most("1B") leaves no room' in found.out
    assert "the limit is not reached, for protected ones need them" in found.out.splitlines()[-1]
    document = cli(place, "why", "gpt", "--keep", "latest(3) | at_most('1B')", "--json").document
    sizes = sum(path.stat().st_size for path in (place / "data/runs/001").rglob("*.pack"))
    assert document["room"]["limit"] == 1
    assert 0 < document["room"]["kept"] < document["room"]["wanted"] < sizes
    assert len(document["cut"]) == 2
    assert len(document["delete"]) == 3


def test_why_names_the_policy_for_each_checkpoint(place, cli):
    found = cli(place, "why", "gpt", "--keep", "at(steps=[2]) | newer(hours=1) | latest(1)").out
    assert "at(steps=[2]); newer(hours=1)" in " ".join(found.split())


def test_why_names_the_newest_good_one(place, cli):
    add_mark(open_store(place), open_store(place).run(1).records()[1].address, MarkKind.GOOD, by="health")
    document = cli(place, "why", "gpt", "--keep", "latest(1)", "--json").document
    assert ["the newest good one"] in document["keep"].values()


def test_what_gc_says_it_would_do_is_what_it_does(place, cli):
    """The plan that is printed is the one that runs: by a limit, too, and byte by byte."""
    keep = "latest(3) | at_most('1B')"
    said = cli(place, "gc", "gpt", "--keep", keep, "--dry-run", "--json").document["sweeps"]
    before = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    done = cli(place, "gc", "gpt", "--keep", keep, "--json")
    gone = before - {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert [{**one, "dry_run": False} for one in said] == done.document["sweeps"]
    assert gone == {name for one in said for name in one["objects"]}
    assert "run-001: at_most" in done.err
    assert cli(place, "gc", "gpt", "--keep", keep, "--dry-run", "--json").document["sweeps"][0]["checkpoints"] == []


def test_what_rm_says_it_would_do_is_what_it_does(place, cli):
    said = cli(place, "rm", "gpt@2", "--dry-run", "--json").document
    before = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    done = cli(place, "rm", "gpt@2", "--json").document
    gone = before - {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert {**said, "dry_run": False} == done
    assert gone == set(said["objects"])


def test_a_policy_that_only_says_when_to_save_is_refused_for_keeping(place, cli):
    found = cli(place, "why", "gpt", "--keep", "auto()")
    assert found.code != 0
    assert "when to save, not what to keep" in found.err


UNREADABLE = "latest(1) | oldest(3)"
"""As a newer holdfast, or an older one without a limit on length, may have written."""


@pytest.fixture
def mixed(place):
    """Beside run 1 stands run 2, whose policy cannot be read, and which has two checkpoints."""
    run = open_store(place).create_run("other")
    launch = begin_launch(run, deadline=0, policies={"save": UNREADABLE, "keep": UNREADABLE})
    for step in (1, 2):
        with begin_save(launch, 0, step) as attempt:
            add_mark(
                run.store,
                attempt.publish(fill(attempt, step, [bytes([step]) * 50])).address,
                MarkKind.VERIFIED,
                by="test",
            )
    begin_launch(open_store(place).run(1), deadline=0, policies={"keep": "latest(2)"})
    return place


def steps(place, number: int) -> list[int]:
    return [record.step for record in open_store(place).run(number).records()]


def test_a_policy_that_cannot_be_read_blocks_gc_for_its_own_run_only(mixed, cli):
    """It ended gc for the whole store, before anything was freed."""
    done = cli(mixed, "gc")
    assert done.code == 0, done.err
    assert "run-002: no checkpoint is deleted, the keep policy is not known" in done.err
    assert (steps(mixed, 1), steps(mixed, 2)) == ([3, 4], [1, 2])


@pytest.mark.parametrize("words", ["gc other", "gc other --dry-run", "why other", "plan --over other --save never()"])
def test_a_policy_that_cannot_be_read_is_an_error_for_the_run_that_is_named(mixed, cli, words):
    done = cli(mixed, *words.split())
    assert done.code == InvalidPolicy.exit_code
    assert "the keep policy of run-002" in done.err
    assert "give one with --keep" in done.err
    assert steps(mixed, 2) == [1, 2]


def test_a_policy_that_is_typed_stands_in_for_one_that_cannot_be_read(mixed, cli):
    assert cli(mixed, "gc", "other", "--keep", "latest(1)").code == 0
    assert steps(mixed, 2) == [2]


@pytest.mark.parametrize(
    "words", ["gc gpt --keep", "why gpt --keep", "plan --over gpt --save", "plan --over gpt --save never() --keep"]
)
def test_an_empty_policy_is_not_the_one_on_record(mixed, cli, words):
    """An unset variable of the shell: gc deleted by a policy that nobody had typed."""
    done = cli(mixed, *words.split(), "")
    assert done.code == InvalidPolicy.exit_code
    assert "an empty text is no policy" in done.err
    assert steps(mixed, 1) == [1, 2, 3, 4]
