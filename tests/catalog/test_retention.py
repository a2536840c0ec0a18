from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.catalog import layout
from holdfast.catalog.deleting.protections import read_retention_facts
from holdfast.catalog.deleting.retention import RetentionFacts, plan_retention
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import RecordMarks, add_mark, pin
from holdfast.catalog.naming.forks import fork
from holdfast.catalog.naming.tags import create_tag
from holdfast.health import GoodMarks, Judgement, Severity, Verdict
from holdfast.ids import Order, RecordId, RunNumber, TagName
from holdfast.records import Kind, Mark, MarkKind, Owner, Record, Sizes, StartInfo, Target, Timing

CREATED = "2026-01-01T00:00:00Z"
OWNER = Owner(host="h", boot="b", pid=1, started="1")


def keep_latest(n: int):
    return lambda line: {one.id: f"latest({n})" for one in line[:n]}


def keep_none(line):
    return {}


def record(order: Order, parent: Record | None, **metrics: float) -> Record:
    return Record(
        id=str(RecordId.derive("s", RunNumber(1), order)),
        run=1,
        **order._asdict(),
        parent=None if parent is None else Target.of(parent.address),
        created=CREATED,
        kind=Kind.REGULAR,
        reason="test",
        metrics=metrics,
        manifest="00" * 32,
        tensors=0,
        bytes=Sizes(logical=0, new=0, stored=0),
        timing=Timing(stall=0, staging=0, hashing=0, writing=0),
        codec="raw",
        owner=OWNER,
        attempt="00",
    )


def marked(one: Record, *kinds: MarkKind) -> RecordMarks:
    target = Target.of(one.address)
    return RecordMarks(
        marks=tuple(Mark(kind=kind, target=target, created=CREATED, by="t", attempt=f"{kind}") for kind in kinds)
    )


@dataclass
class Story:
    """A run that is told step by step, and the facts that follow."""

    records: list[Record] = field(default_factory=list)
    starts: list[StartInfo] = field(default_factory=list)
    marks: dict[RecordId, RecordMarks] = field(default_factory=dict)
    tags: dict[RecordId, list[str]] = field(default_factory=dict)
    forks: dict[RecordId, list[RunNumber]] = field(default_factory=dict)
    order: Order = field(default_factory=lambda: Order(1, 0, 0))
    parent: Record | None = None

    def save(self, step: int, *kinds: MarkKind, **metrics: float) -> RecordId:
        made = record(Order(self.order.launch, self.order.timeline, step), self.parent, **metrics)
        self.records.append(made)
        self.parent = made
        if kinds:
            self.marks[RecordId(made.id)] = marked(made, *kinds)
        return RecordId(made.id)

    def roll_back(self, to: RecordId) -> None:
        self.parent = next(one for one in self.records if one.id == to)
        self.order = Order(self.order.launch, self.order.timeline + 1, 0)
        start = StartInfo(
            run=1,
            launch=self.order.launch,
            timeline=self.order.timeline,
            created=CREATED,
            resumed_from=Target.of(self.parent.address),
            why="test",
            attempt="00",
        )
        self.starts.append(start)

    def facts(self, **changes) -> RetentionFacts:
        facts = RetentionFacts(
            lineage=Lineage.of(self.records, self.starts),
            marks=self.marks,
            tags=self.tags,
            forks=self.forks,
            resumed_from=self.starts[-1].resumed_from if self.starts else None,
        )
        return replace(facts, **changes)

    def steps(self, plan) -> list[int]:
        return [address.order.step for address in plan.delete]


VERIFIED, QUARANTINED, PINNED, GOOD = MarkKind.VERIFIED, MarkKind.QUARANTINED, MarkKind.PINNED, MarkKind.GOOD


def test_latest_keeps_the_newest_and_deletes_the_oldest_first():
    story = Story()
    for step in range(1, 6):
        story.save(step, VERIFIED)
    plan = plan_retention(keep_latest(2), story.facts())
    assert story.steps(plan) == [1, 2, 3]
    assert plan.explain()[-1].endswith("the head; the newest verified one; latest(2)")


def test_a_limit_of_one_does_not_delete_everything():
    """Users-ask 4: save_total_limit=1 deleted everything."""
    story = Story()
    only = story.save(1, VERIFIED)
    assert plan_retention(keep_latest(1), story.facts()).delete == ()
    assert set(plan_retention(keep_none, story.facts()).keep) == {only}


def test_nothing_is_deleted_before_anything_is_verified():
    """Users-ask 4 and 3: deletion never runs ahead of a checkpoint that has proved itself."""
    story = Story()
    for step in range(1, 6):
        story.save(step)
    assert plan_retention(keep_latest(1), story.facts()).delete == ()


def test_the_newest_verified_one_stays_while_newer_ones_are_not_verified():
    """Hazards 38: a newest checkpoint that turns out rotten must leave the one before it."""
    story = Story()
    story.save(1, VERIFIED)
    proven = story.save(2, VERIFIED)
    story.save(3)
    story.save(4)
    plan = plan_retention(keep_latest(1), story.facts())
    assert story.steps(plan) == [1]
    assert "the newest verified one" in plan.never[proven]


def test_ones_that_are_not_verified_yet_do_not_use_up_the_count():
    """Users-ask 4: only committed and verified checkpoints count."""
    story = Story()
    for step in (1, 2, 3):
        story.save(step, VERIFIED)
    story.save(4)
    story.save(5)
    assert story.steps(plan_retention(keep_latest(2), story.facts())) == [1]


def test_latest_counts_on_the_line_of_the_head():
    """Hazards 2: latest(3) would delete the new 600 and keep the poisoned 800, 900 and 1000."""
    story = Story()
    healthy = story.save(500, VERIFIED)
    for step in (600, 700, 800, 900, 1000):
        story.save(step, VERIFIED)
    story.roll_back(healthy)
    clean = story.save(600, VERIFIED)
    plan = plan_retention(keep_latest(3), story.facts())
    assert {healthy, clean} <= set(plan.keep)
    assert story.steps(plan) == [600]


def test_abandoned_work_goes_only_when_it_has_been_done_again():
    """Users-ask 4: going back by hand to an older step must not cost the days that came after it."""
    story = Story()
    start = story.save(500, VERIFIED)
    for step in (600, 700, 800):
        story.save(step, VERIFIED)
    story.roll_back(start)
    assert story.steps(plan_retention(keep_latest(1), story.facts())) == []
    story.save(700)
    assert story.steps(plan_retention(keep_latest(1), story.facts())) == []
    story.marks[RecordId(story.parent.id)] = marked(story.parent, VERIFIED)
    assert story.steps(plan_retention(keep_latest(2), story.facts())) == [600, 700]


def test_what_the_newest_start_resumed_from_stays():
    """Users-ask 4: the resumed-from checkpoint was removed."""
    story = Story()
    start = story.save(100, VERIFIED)
    story.save(200, VERIFIED)
    story.roll_back(start)
    for step in (200, 300, 400):
        story.save(step, VERIFIED)
    plan = plan_retention(keep_latest(1), story.facts())
    assert "resumed from it" in plan.never[start][0]


def test_tagged_pinned_forked_and_quarantined_ones_stay():
    """Users-ask 4 and 28: a person's word is above any policy."""
    story = Story()
    ids = [story.save(step, VERIFIED) for step in range(1, 8)]
    story.tags[ids[0]] = ["v1"]
    story.forks[ids[1]] = [RunNumber(7)]
    story.marks[ids[2]] = marked(story.records[2], PINNED)
    story.marks[ids[3]] = marked(story.records[3], QUARANTINED)
    plan = plan_retention(keep_latest(1), story.facts())
    assert story.steps(plan) == [5, 6]
    assert [plan.never[id_][0] for id_ in ids[:4]] == [
        "tag v1",
        "run-007 was forked from it",
        "pinned",
        "quarantined: only a person deletes it",
    ]


def test_quarantined_ones_do_not_count():
    """Users-ask 5: a bad newest checkpoint must not push the last good one out."""
    story = Story()
    story.save(1, VERIFIED)
    good = story.save(2, VERIFIED)
    story.save(3, VERIFIED, QUARANTINED)
    story.save(4, VERIFIED, QUARANTINED)
    plan = plan_retention(keep_latest(1), story.facts())
    assert story.steps(plan) == [1]
    assert "latest(1)" in plan.keep[good]


def test_nothing_is_deleted_while_a_protection_cannot_be_read():
    story = Story()
    for step in range(1, 6):
        story.save(step, VERIFIED)
    plan = plan_retention(keep_latest(1), story.facts(unreadable=["catalog/tags/v1.json"]))
    assert plan.delete == ()
    assert "catalog/tags/v1.json cannot be read" in plan.explain()[0]


def test_an_empty_run_needs_nothing():
    plan = plan_retention(keep_latest(1), Story().facts())
    assert (plan.keep, plan.delete, plan.never) == ({}, (), {})


def test_the_facts_of_a_run_are_read_from_its_store(store, train):
    """Users-ask 4: a run's retention never looks at another run's checkpoints."""
    train("other").save(1)
    trainer = train("r")
    tagged, forked, pinned, plain, last = (trainer.save(step) for step in range(1, 6))
    create_tag(store, TagName("v1"), tagged.address)
    fork(store, f"id:{forked.id}", "tuned")
    pin(store, pinned.address, by="user")
    for one in (plain, last):
        add_mark(store, one.address, VERIFIED, by="saver")
    plan = plan_retention(keep_latest(1), read_retention_facts(trainer.run))
    assert plan.delete == (plain.address,)
    assert set(plan.keep) == {tagged.id, forked.id, pinned.id, last.id}


def test_a_damaged_tag_run_or_start_stops_deletion(store, train, damage):
    """What cannot be read may be what protects a checkpoint."""
    trainer = train("r")
    first = trainer.save(1)
    add_mark(store, trainer.save(2).address, VERIFIED, by="saver")
    create_tag(store, TagName("v1"), trainer.parent.address)
    forked = fork(store, "r", "tuned")
    trainer.roll_back(trainer.parent)
    assert plan_retention(keep_latest(1), read_retention_facts(trainer.run)).delete == (first.address,)
    start = layout.start(trainer.run.number, trainer.launch, trainer.timeline)
    for name in (layout.tag(TagName("v1")), layout.run_info(forked.number), start):
        whole = store.storage.read(name)
        damage(store, name)
        assert plan_retention(keep_latest(1), read_retention_facts(trainer.run)).delete == ()
        store.storage.delete([name])
        store.storage.create(name, whole)


def test_what_another_run_resumed_from_by_hand_is_kept(store, train):
    """It is no fork: only the newest start of the other run says so."""
    trainer = train("r")
    first, second, last = (trainer.save(step) for step in (1, 2, 3))
    add_mark(store, last.address, VERIFIED, by="saver")
    other = train("other")
    other.roll_back(second)
    plan = plan_retention(keep_latest(1), read_retention_facts(trainer.run))
    assert plan.delete == (first.address,)
    assert plan.never[RecordId(second.id)] == ("the newest start of run-002 resumed from it",)
    other.roll_back(first)
    plan = plan_retention(keep_latest(1), read_retention_facts(trainer.run))
    assert plan.delete == (second.address,)


def test_while_the_newest_start_of_another_run_is_damaged_nothing_is_deleted(store, train, damage):
    trainer = train("r")
    trainer.save(1)
    add_mark(store, trainer.save(2).address, VERIFIED, by="saver")
    other = train("other")
    other.roll_back(None)
    damage(store, layout.start(other.run.number, other.launch, other.timeline))
    assert plan_retention(keep_latest(1), read_retention_facts(trainer.run)).delete == ()
    other.roll_back(None)
    assert len(plan_retention(keep_latest(1), read_retention_facts(trainer.run)).delete) == 1


def test_a_damaged_record_is_neither_counted_nor_deleted(store, train, damage):
    """Users-ask 9: damage is never cleaned away in silence."""
    trainer = train("r")
    records = [trainer.save(step) for step in (1, 2, 3, 4)]
    for one in records:
        add_mark(store, one.address, VERIFIED, by="saver")
    damage(store, records[2].name)
    plan = plan_retention(keep_latest(2), read_retention_facts(trainer.run))
    assert plan.delete == (records[0].address,)
    assert set(plan.keep) == {records[1].id, records[3].id}


@st.composite
def stories(draw) -> Story:
    story, step = Story(), 0
    for _ in range(draw(st.integers(0, 25))):
        if story.records and draw(st.integers(0, 6)) == 0:
            story.roll_back(RecordId(draw(st.sampled_from(story.records)).id))
            step = story.parent.step
            continue
        step += draw(st.integers(1, 3))
        kinds = draw(st.sets(st.sampled_from([VERIFIED, VERIFIED, VERIFIED, QUARANTINED, PINNED]), max_size=2))
        saved = story.save(step, *sorted(kinds))
        if draw(st.integers(0, 9)) == 0:
            story.tags[saved] = ["t"]
        if draw(st.integers(0, 9)) == 0:
            story.forks[saved] = [RunNumber(2)]
    return story


def line_of(story: Story) -> list[Record]:
    """The model: parent links from the newest state, by hand."""
    if not story.records:
        return []
    by_id = {one.id: one for one in story.records}
    newest_start = story.starts[-1] if story.starts else None
    last = max(story.records, key=lambda one: one.address.order)
    at = last
    if newest_start and (newest_start.launch, newest_start.timeline) > (last.launch, last.timeline):
        at = by_id[newest_start.resumed_from.id]
    line = []
    while at is not None:
        line.append(at)
        at = None if at.parent is None else by_id[at.parent.id]
    return line


def has(story: Story, one: Record, what: str) -> bool:
    marks = story.marks.get(RecordId(one.id))
    return marks is not None and getattr(marks, what)


@given(stories(), st.integers(0, 4))
def test_no_plan_deletes_what_is_protected(story, n):
    plan = plan_retention(keep_latest(n), story.facts())
    deleted = {address.id for address in plan.delete}
    line = line_of(story)
    proven = next((one for one in line if has(story, one, "verified") and not has(story, one, "quarantined")), None)
    protected = {*story.tags, *story.forks} | {one.id for one in line[:1]} | ({proven.id} if proven else set())
    protected |= {one.id for one in story.records if has(story, one, "pinned") or has(story, one, "quarantined")}
    protected |= {story.starts[-1].resumed_from.id} if story.starts else set()
    assert not deleted & protected
    assert not deleted or proven is not None
    assert all(one.address.order < proven.address.order for one in story.records if one.id in deleted and one in line)
    assert deleted | set(plan.keep) == {one.id for one in story.records}
    assert not deleted & set(plan.keep)
    assert set(plan.never) <= set(plan.keep)


@given(stories(), st.integers(1, 4))
def test_latest_n_leaves_at_least_n_intact_ones_of_the_line(story, n):
    plan = plan_retention(keep_latest(n), story.facts())
    intact = [one.id for one in line_of(story) if not has(story, one, "quarantined")]
    assert len([id_ for id_ in intact if id_ in plan.keep]) >= min(n, len(intact))


@given(stories(), st.integers(1, 4))
def test_keeping_more_never_deletes_more(story, n):
    fewer = set(plan_retention(keep_latest(n), story.facts()).delete)
    assert set(plan_retention(keep_latest(n + 1), story.facts()).delete) <= fewer


@given(stories(), st.data())
def test_a_tag_only_ever_saves(story, data):
    before = set(plan_retention(keep_latest(1), story.facts()).delete)
    if not story.records:
        return
    tagged = RecordId(data.draw(st.sampled_from(story.records)).id)
    after = set(plan_retention(keep_latest(1), story.facts(tags={**story.tags, tagged: ["new"]})).delete)
    assert after == {address for address in before if address.id != tagged}


@given(stories(), st.integers(0, 3))
def test_a_plan_that_was_executed_leaves_nothing_more_to_delete(story, n):
    """The head and the line survive their own retention."""
    plan = plan_retention(keep_latest(n), story.facts())
    gone = set(plan.delete)
    left = replace(
        story.facts(), lineage=Lineage.of([one for one in story.records if one.address not in gone], story.starts)
    )
    assert left.lineage.head == story.facts().lineage.head
    assert plan_retention(keep_latest(n), left).delete == ()


def test_a_plan_is_never_made_by_wall_clock_or_name(store):
    """Users-ask 20: the same facts in another creation order give the same plan."""
    story = Story()
    for step in (9, 10, 100):
        story.save(step, VERIFIED)
    shuffled = replace(story.facts(), lineage=Lineage.of(reversed(story.records), []))
    assert plan_retention(keep_latest(1), shuffled) == plan_retention(keep_latest(1), story.facts())


@pytest.mark.parametrize("n", [1, 3])
def test_policies_of_the_policy_package_fit(n):
    from holdfast.policy import best, every, latest

    story = Story()
    for step in range(1, 11):
        story.save(step, VERIFIED, loss=float(abs(step - 4)))
    plan = plan_retention((latest(n) | best("loss") | every(steps=5)).kept, story.facts())
    kept = {address.order.step for address in {one.address for one in story.records} - set(plan.delete)}
    assert kept == {4, 5, 10} | set(range(11 - n, 11))


@pytest.mark.parametrize("doubted", [(), (55,), (555,), (55, 300, 777)])
@pytest.mark.parametrize("distances", [(10,), (10, 3, 10, 40)])
def test_checkpoints_become_good_again_after_a_doubt(doubted, distances):
    """What a doubt has passed over stood in the only protected place, for the gap behind it grew with each save."""
    story, good, last = Story(), GoodMarks(good_after=100), {}
    upcoming, saves = 10, 0
    for step in range(1, 1501):
        verdicts = [Verdict(check="c", message="m", severity=Severity.DOUBT, step=step, first=step, last=step)]
        for earned in good.observed(Judgement(step=step, tested=True, verdicts=verdicts if step in doubted else ())):
            last[earned] = step
            one = next(one for one in story.records if one.step == earned)
            story.marks[RecordId(one.id)] = marked(one, VERIFIED, GOOD)
        if step == upcoming:
            upcoming, saves = step + distances[saves % len(distances)], saves + 1
            story.save(step, VERIFIED)
            good.saved(step)
            gone = story.steps(plan_retention(keep_latest(3), story.facts(good_after=100)))
            story.records = [one for one in story.records if one.step not in gone]
            for each in gone:
                good.dropped(each)
    marks = [0, *sorted(last.values()), 1500]
    assert max(later - earlier for earlier, later in pairwise(marks)) <= 350 + 100 * bool(doubted)
