"""A limit cuts down what policies want, and nothing else; bytes are counted as a deletion frees them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import pytest

from holdfast.catalog import layout
from holdfast.catalog.deleting.protections import read_retention_facts
from holdfast.catalog.deleting.retention import RetentionFacts, plan_retention
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.marks import RecordMarks, add_mark
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy import at_most, best, every, latest, newer
from holdfast.records import Mark, MarkKind, Record, Sizes, Target

from .test_retention import CREATED, GOOD, PINNED, QUARANTINED, VERIFIED, Story, keep_latest, record


@dataclass
class Sized(Story):
    """A story whose checkpoints have packs."""

    packs: dict[str, int] = field(default_factory=dict)

    def put(
        self, step: int, *, packs: dict[str, int], kinds=(VERIFIED,), stored: int | None = None, **metrics
    ) -> RecordId:
        id_ = self.save(step, *kinds, **metrics)
        self.packs |= packs
        size = sum(packs.values()) if stored is None else stored
        made = msgspec.structs.replace(
            self.records[-1], packs=[*packs], bytes=Sizes(logical=size, new=size, stored=size)
        )
        self.records[-1] = self.parent = made
        return id_

    def plan(self, policy, *, sizes: bool = True, **changes):
        facts = self.facts(packs=self.packs if sizes else {}, **changes)
        return plan_retention(policy.kept, facts, policy.limit)


def pack(name: str) -> str:
    return f"{layout.private_packs(RunNumber(1))}{name}.pack"


def equal(count: int, size: int = 10) -> Sized:
    """So many checkpoints, each with one pack of its own."""
    story = Sized()
    for step in range(1, count + 1):
        story.put(step, packs={pack(str(step)): size}, loss=abs(step - 2.0))
    return story


def test_alone_a_limit_keeps_as_many_of_the_newest_as_fit():
    """Users-ask 28: a byte budget, beside last, best and milestones."""
    story = equal(6)
    plan = story.plan(at_most("35"))
    assert story.steps(plan) == [1, 2, 3]
    assert plan.keep[RecordId(story.records[3].id)] == ('at_most("35")',)
    assert (plan.room.wanted, plan.room.kept, plan.room.limit) == (60, 30, 35)


def test_a_limit_that_is_not_reached_changes_nothing():
    story = equal(6)
    assert story.plan(latest(3) | at_most("30")).delete == story.plan(latest(3)).delete
    assert story.plan(latest(3) | at_most("30")).cut == {}


def test_the_least_wanted_goes_first_and_of_equals_the_oldest():
    """Milestones before the newest, the newest before the best: what nothing could make again goes last."""
    story = equal(10)
    policy = latest(3) | best("loss") | every(steps=4)
    assert story.steps(story.plan(policy)) == [1, 3, 5, 6, 7]
    assert story.steps(story.plan(policy | at_most("40"))) == [1, 3, 4, 5, 6, 7]
    assert story.steps(story.plan(policy | at_most("30"))) == [1, 3, 4, 5, 6, 7, 8]
    assert story.steps(story.plan(policy | at_most("20"))) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert story.steps(story.plan(at_most("20") | every(steps=4) | best("loss") | latest(3))) == [1, *range(3, 10)]


def test_what_two_policies_want_goes_when_the_firmer_one_has_to_give():
    story = equal(8)
    policy = newer(hours=1) | latest(2)
    assert story.steps(story.plan(policy | at_most("30"))) == [1, 2, 3, 4, 5]
    assert "newer(hours=1); latest(2)" in story.plan(policy | at_most("30")).keep[RecordId(story.records[6].id)][0]


def test_why_something_was_cut_is_said():
    story = equal(3)
    cut = story.plan(latest(3) | at_most("20")).cut
    assert cut == {RecordId(story.records[0].id): 'latest(3), but at_most("20") leaves no room'}


def test_what_is_protected_is_never_cut_and_the_plan_says_what_is_missing():
    story = equal(6)
    story.tags[RecordId(story.records[0].id)] = ["v1"]
    story.marks[RecordId(story.records[1].id)] = _marked(story.records[1], PINNED, VERIFIED)
    plan = story.plan(latest(6) | at_most("15"))
    assert story.steps(plan) == [3, 4, 5]
    assert plan.room.kept == 30 > plan.room.limit
    assert str(plan.room).startswith('at_most("15") is not reached: 30 bytes are kept')


def test_nothing_younger_than_the_newest_verified_one_is_cut():
    story = equal(3)
    story.put(4, packs={pack("4"): 10}, kinds=())
    story.put(5, packs={pack("5"): 10}, kinds=())
    assert story.steps(story.plan(at_most("1"))) == [1, 2]


def test_a_quarantined_one_counts_and_stays():
    story = equal(3)
    story.marks[RecordId(story.records[0].id)] = _marked(story.records[0], QUARANTINED)
    plan = story.plan(at_most("20"))
    assert story.steps(plan) == [2]
    assert plan.room.kept == 20


def test_a_deletion_that_frees_nothing_is_not_made():
    """Hazards 30: one base for all; deleting the checkpoints that share everything would not make room."""
    story = Sized()
    base = {pack("base"): 100}
    for step in range(1, 5):
        story.put(step, packs=base | ({pack("4"): 5} if step == 4 else {}))
    plan = story.plan(at_most("50"))
    assert plan.delete == ()
    assert plan.room.kept == 105


def test_a_shared_pack_counts_once_and_goes_with_the_last_that_names_it():
    story = Sized()
    for step in range(1, 6):
        base = pack("a") if step < 4 else pack("b")
        story.put(step, packs={base: 100, pack(str(step)): 1})
    assert story.plan(at_most("205")).delete == ()
    assert story.steps(story.plan(at_most("204"))) == [1]
    assert story.steps(story.plan(at_most("202"))) == [1, 2, 3]


def test_what_no_record_names_counts_and_cannot_be_freed():
    """A repack has moved segments there, or a save in flight has written it."""
    story = equal(3)
    story.packs[pack("repacked")] = 15
    plan = story.plan(at_most("35"))
    assert story.steps(plan) == [1]
    assert plan.room.kept == 35


def test_packs_that_all_runs_share_do_not_count():
    story = Sized()
    for step in range(1, 4):
        story.put(step, packs={f"{layout.SHARED_PACKS}base.pack": 1000, pack(str(step)): 10})
        story.packs.pop(f"{layout.SHARED_PACKS}base.pack", None)
    assert story.steps(story.plan(at_most("20"))) == [1]


@pytest.mark.parametrize(("limit", "gone"), [("60", []), ("59", [1]), ("21", [1, 2, 3, 4]), ("9", [1, 2, 3, 4, 5])])
def test_without_sizes_what_records_have_stored_counts(limit, gone):
    story = equal(6)
    assert story.steps(story.plan(at_most(limit), sizes=False)) == gone


def test_without_sizes_a_reused_pack_counts_for_the_first_that_names_it():
    story = Sized()
    story.put(1, packs={pack("base"): 0, pack("1"): 0}, stored=101)
    for step in (2, 3):
        story.put(step, packs={pack("base"): 0, pack(str(step)): 0}, stored=1)
    plan = story.plan(at_most("60"), sizes=False)
    assert plan.room.wanted == 103
    assert story.steps(plan) == [1]


def test_of_two_limits_the_lower_one_counts():
    story = equal(6)
    assert story.steps(story.plan(at_most("40") | at_most("20") | latest(6))) == [1, 2, 3, 4]


def test_the_newest_good_one_is_never_deleted():
    """Users-ask 4: it is what a rollback goes back to; latest(1) would leave only ones that nobody has found good."""
    story = Story()
    for step in range(1, 8):
        story.save(step, VERIFIED, *([GOOD] if step in (2, 4) else []))
    plan = plan_retention(keep_latest(1), story.facts())
    assert story.steps(plan) == [1, 2, 3, 5, 6]
    assert plan.never[RecordId(story.records[3].id)] == ("the newest good one",)


def test_a_good_one_that_is_quarantined_protects_nothing():
    story = Story()
    for step in range(1, 5):
        story.save(step, VERIFIED, *([GOOD] if step < 3 else []), *([QUARANTINED] if step == 2 else []))
    plan = plan_retention(keep_latest(1), story.facts())
    assert "the newest good one" in plan.never[RecordId(story.records[0].id)]


def test_the_newest_good_one_of_the_line_counts_before_one_that_was_left_behind():
    story = Story()
    first = story.save(1, VERIFIED, GOOD)
    left = story.save(2, VERIFIED, GOOD)
    story.roll_back(first)
    for step in (2, 3, 4):
        story.save(step, VERIFIED)
    plan = plan_retention(keep_latest(1), story.facts(resumed_from=None))
    assert "the newest good one" in plan.never[first]
    assert left not in plan.keep


def test_where_nothing_of_the_line_is_good_the_newest_good_one_of_all_stays():
    story = Story()
    first = story.save(1, VERIFIED)
    left = story.save(2, VERIFIED, GOOD)
    story.roll_back(first)
    for step in (2, 3, 4):
        story.save(step, VERIFIED)
    assert plan_retention(keep_latest(1), story.facts()).never[left] == ("the newest good one",)


def test_what_is_deleted_for_a_limit_frees_what_the_plan_says(store, saver):
    """The plan's bytes are those of the packs that the sweep then deletes."""
    training = saver("r")
    records = [training.save(step, {"w": bytes([step]) * 5000}, frozen={"base": b"b" * 9000}) for step in range(1, 6)]
    for one in records:
        add_mark(store, one.address, VERIFIED, by="saver")
    run, folder = training.run, layout.private_packs(training.run.number)
    sizes = {str(one.name): one.size for one in store.storage.list(folder)}
    policy = at_most(2 * max(sizes.values()) + 10)
    plan = plan_retention(policy.kept, replace(read_retention_facts(run), packs=sizes), policy.limit)
    assert [address.order.step for address in plan.delete] == [1, 2, 3]
    execute(store, plan_sweep(store, run, plan.delete), run=run)
    assert sum(one.size for one in store.storage.list(folder)) == plan.room.kept


def _marked(one: Record, *kinds: MarkKind) -> RecordMarks:
    target = Target.of(one.address)
    marks = (Mark(kind=kind, target=target, created=CREATED, by="t", attempt=f"{kind}") for kind in kinds)
    return RecordMarks(marks=tuple(marks))


def test_facts_without_records_have_room_for_everything():
    plan = plan_retention(latest(1).kept, RetentionFacts(lineage=Story().facts().lineage), at_most("1").limit)
    assert (plan.delete, plan.room.kept) == ((), 0)


def test_a_record_of_no_bytes_is_never_cut():
    story = Story()
    for step in range(1, 5):
        story.records.append(record(Order(1, 0, step), story.parent))
        story.parent = story.records[-1]
        story.marks[RecordId(story.parent.id)] = _marked(story.parent, VERIFIED)
    assert plan_retention(latest(4).kept, story.facts(), (latest(4) | at_most("1")).limit).delete == ()
