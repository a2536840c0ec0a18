"""What follows for the training from what becomes of its saves, with somebody else who makes them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from holdfast.catalog.naming.tags import create_tag
from holdfast.catalog.store import create_store
from holdfast.clock import utc_now
from holdfast.errors import Fenced, NameTaken, SaveFailed, StorageUnavailable
from holdfast.ids import Order, RecordAddress, RecordId, RunNumber, TagName
from holdfast.policy.tolerance import tolerance_of, tolerate
from holdfast.records import Kind, Owner, Record, Sizes, Target, Timing
from holdfast.recovery.handover.outcomes import Committed, Followed, GivenUp
from holdfast.recovery.ranks.group import Alone
from holdfast.recovery.saving import checkpoints as module
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.saver import SaveRequest
from holdfast.storage.memory import memory_storage

RUN = RunNumber(1)
GONE = StorageUnavailable("the disk is gone")


class FakeSaves:
    """Makes no checkpoints: a test says what becomes of them."""

    survives, reserves = "process", True

    def __init__(self):
        self.requests, self.prepared, self.metrics, self.tags, self.rescued = [], 0, [], [], []
        self.coming, self.at_drain, self.stuck, self.refuses = [], [], False, None
        self.closed, self.asides = None, self

    def prepare(self, snapshot):
        self.prepared += 1
        if self.refuses:
            raise self.refuses

    def save(self, snapshot, request, *, urgent):
        self.requests.append(request)
        if self.refuses:
            raise self.refuses

    def reserve(self, snapshot, request):
        if self.refuses:
            raise self.refuses

    def outcomes(self):
        found, self.coming = self.coming, []
        return found

    def drain(self, seconds):
        self.coming, self.at_drain = self.coming + self.at_drain, []
        return not self.stuck

    def add_metrics(self, target, metrics):
        self.metrics.append((target.step, dict(metrics)))

    def add_tag(self, target, tag):
        self.tags.append((target.step, tag))

    def rescue(self, kind, reason):
        self.rescued.append((kind, reason))

    def restored(self):
        self.coming = []

    def close(self, seconds):
        self.closed = seconds


class FakeAfter:
    """Remembers what it is told."""

    def __init__(self):
        self.metrics, self.notes = {}, []

    def measured(self, target, metrics):
        self.metrics.setdefault(target.id, {}).update(metrics)

    def committed(self, record):
        self.metrics.setdefault(record.id, {}).update(record.metrics)

    def gone(self, ids):
        for id_ in ids:
            self.metrics.pop(str(id_), None)

    def note(self, kind, message, **data):
        self.notes.append((kind, message))

    def resumed(self, record):
        self.notes.append(("resumed", str(record.address)))


class World:
    """`Checkpoints`, and everything around them that a test looks at."""

    def __init__(self, bears=None):
        self.store = create_store(memory_storage())
        self.session = SimpleNamespace(store=self.store, timeline=0, parent=None, address=self.address, group=Alone())
        self.saves, self.after = FakeSaves(), FakeAfter()
        self.checkpoints = Checkpoints(self.session, self.saves, self.after, tolerance_of(bears))

    def address(self, step, timeline=0):
        order = Order(1, timeline, step)
        return RecordAddress(RUN, order, RecordId.derive(self.store.info.id, RUN, order))

    def target(self, step):
        return Target.of(self.address(step))

    def record(self, step, *, timeline=0, anomalies=()):
        return Record(
            **Target.of(self.address(step, timeline)).fields(),
            parent=None,
            created=utc_now(),
            kind=Kind.REGULAR,
            reason="every(steps=1)",
            manifest="0" * 64,
            tensors=1,
            bytes=Sizes(logical=9, new=9, stored=9),
            anomalies=list(anomalies),
            timing=Timing(stall=0.1, staging=0.1, hashing=0.1, writing=0.1),
            codec="raw",
            owner=Owner(host="h", boot="b", pid=1, started="1"),
            attempt="a" * 16,
        )

    def save(self, step, *, urgent=False, **metrics):
        request = SaveRequest(
            timeline=0,
            step=step,
            epoch=None,
            parent=None,
            kind=Kind.REGULAR,
            reason="every(steps=1)",
            metrics=metrics,
            attempt="a" * 16,
            began=0.0,
        )
        self.checkpoints.save(object(), request, urgent=urgent)
        return self.target(step)

    def hears(self, *outcomes):
        self.saves.coming += outcomes
        self.checkpoints.listen()

    def committed(self, step, **fields):
        return Committed(record=self.record(step, **fields))

    def failed(self, step, error=GONE, *, on_purpose=False):
        return GivenUp(target=self.target(step), error=type(error)(str(error)), on_purpose=on_purpose)


@pytest.fixture
def world():
    return World()


# What there is


def test_a_checkpoint_is_here_from_the_moment_at_which_it_is_handed_over(world):
    assert world.checkpoints.here(3) is None
    target = world.save(3)
    assert world.checkpoints.here(3) == target
    assert world.checkpoints.here(4) is None
    assert world.checkpoints.in_flight
    assert world.checkpoints.last is None


def test_it_is_the_last_one_once_it_is_durable_and_the_next_one_follows_it(world):
    world.save(3)
    world.hears(world.committed(3))
    assert world.checkpoints.last.step == 3
    assert world.session.parent == world.address(3)
    assert not world.checkpoints.in_flight


def test_one_that_failed_is_not_here_and_may_be_made_again(world):
    world.save(3)
    world.hears(world.failed(3))
    assert world.checkpoints.here(3) is None
    assert not world.checkpoints.in_flight
    assert world.checkpoints.failure


def test_a_failure_that_comes_late_does_not_concern_the_newer_one(world):
    world.save(3)
    world.save(4)
    world.hears(world.failed(3))
    assert world.checkpoints.here(4) is not None


def test_an_older_one_that_becomes_durable_late_does_not_make_up_for_a_newer_failure(world):
    """The end of a training would look good, and the last checkpoint would be missing."""
    world.save(3)
    world.save(4)
    world.hears(world.failed(4))
    world.hears(world.committed(3))
    assert world.checkpoints.failure
    with pytest.raises(StorageUnavailable):
        world.checkpoints.check()


def test_nor_one_that_is_heard_of_while_the_newer_one_is_refused():
    world = World("raise")
    world.save(3)
    world.saves.refuses = SaveFailed("no memory for the staged state")
    world.saves.coming = [world.committed(3)]
    with pytest.raises(SaveFailed, match="no memory"):
        world.save(4)
    assert world.checkpoints.last.step == 3


def test_the_same_one_or_a_later_one_does_also_after_a_restore(world):
    world.save(3)
    world.hears(world.failed(3))
    world.save(3)
    world.hears(world.committed(3))
    assert not world.checkpoints.failure
    world.save(5)
    world.hears(world.failed(5))
    world.session.timeline = 1
    world.hears(world.committed(2, timeline=1))
    assert not world.checkpoints.failure


def test_what_is_not_handed_over_for_any_reason_is_not_here(world):
    world.saves.refuses = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.save(3)
    assert world.checkpoints.here(3) is None
    assert not world.checkpoints.in_flight


def test_one_that_was_staged_before_a_restore_is_not_what_the_line_goes_on_from(world):
    world.save(3)
    world.session.timeline = 1
    world.hears(world.committed(3))
    assert world.checkpoints.last is None
    assert world.session.parent is None


def test_after_a_restore_the_line_goes_on_from_the_other_record(world):
    world.save(3)
    world.hears(world.committed(3))
    world.checkpoints.resumed(world.record(1))
    assert world.checkpoints.last.step == 1
    assert world.checkpoints.here(3) is None
    assert ("resumed", str(world.address(1))) in world.after.notes


# Memory is set aside once


def test_memory_is_set_aside_at_the_first_boundary_and_not_again(world):
    asked = []
    for _ in range(3):
        world.checkpoints.prepare(lambda: asked.append(None))
    assert (world.saves.prepared, len(asked)) == (1, 1)


def test_that_it_cannot_be_set_aside_is_no_failure_of_a_save(world, caplog):
    world.saves.refuses = SaveFailed("no memory")
    world.checkpoints.prepare(object)
    world.checkpoints.reserve(object(), SimpleNamespace(step=7))
    assert "no memory" in caplog.text
    assert "step 7 is not kept in reserve" in caplog.text
    assert not world.checkpoints.failure


# Failures


def test_failures_are_borne_up_to_the_limit_and_the_one_beyond_it_is_raised(caplog):
    world = World(2)
    for step in (1, 2):
        world.save(step)
        world.hears(world.failed(step))
    world.save(3)
    with pytest.raises(StorageUnavailable, match="the disk is gone") as ended:
        world.hears(world.failed(3))
    assert ended.value.__notes__ == [
        "holdfast ends the training: 3 saves in a row have failed, and tolerate(failures=2) bears 2"
    ]
    assert caplog.text.count("has failed: the disk is gone; there is no checkpoint yet") == 3
    assert [kind for kind, _ in world.after.notes] == ["save failed"] * 3


def test_a_good_save_begins_the_count_anew(world):
    for step in range(1, 9):
        world.save(step)
        world.hears(world.failed(step) if step % 4 else world.committed(step))
    assert not world.checkpoints.failure


def test_a_good_save_behind_too_many_failures_makes_up_for_them(world):
    """They were heard of together: there is a checkpoint, so nothing is lost by going on."""
    for step in range(1, 6):
        world.save(step)
    world.hears(*(world.failed(step) for step in range(1, 5)), world.committed(5))
    assert world.checkpoints.last.step == 5


def test_what_was_heard_behind_a_failure_that_ends_the_training_is_not_lost():
    world = World("raise")
    world.save(1)
    world.save(2)
    with pytest.raises(StorageUnavailable):
        world.hears(world.committed(1), world.failed(2), Followed(record=None, problem=None, deleted=["x" * 16]))
    assert world.checkpoints.last.step == 1
    assert world.saves.coming == []


def test_a_save_that_cannot_be_handed_over_is_a_failure_like_any_other():
    world = World(1)
    world.saves.refuses = SaveFailed("no place")
    world.save(1)
    with pytest.raises(SaveFailed, match="no place"):
        world.save(2)


def test_failures_for_too_long_a_time_end_the_training(monkeypatch):
    world = World(tolerate(minutes=10))
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    world.save(1)
    world.hears(world.committed(1))
    now += 500
    world.save(2)
    world.hears(world.failed(2))
    now += 500
    world.save(3)
    with pytest.raises(StorageUnavailable):
        world.hears(world.failed(3))


def test_a_newer_launch_ends_the_training_whatever_is_borne():
    world = World("warn")
    world.save(1)
    with pytest.raises(Fenced):
        world.hears(world.failed(1, Fenced("a newer launch owns the run")))


def test_making_way_for_a_newer_save_is_no_failure(caplog):
    world = World("raise")
    world.save(1)
    world.checkpoints.add_tag(world.target(1), TagName("mine"))
    world.save(2, urgent=True)
    world.hears(world.failed(1, SaveFailed("given up for a newer one"), on_purpose=True))
    assert not world.checkpoints.failure
    assert "there is no tag mine" in caplog.text
    assert ("skipped", "given up for a newer one") in world.after.notes


# Waiting


def test_waiting_for_a_checkpoint_gives_its_record(world):
    target = world.save(3)
    world.saves.at_drain = [world.committed(3)]
    assert world.checkpoints.await_durable(target).step == 3


def test_waiting_for_one_that_fails_raises_why_even_where_it_is_borne(world):
    target = world.save(3)
    world.saves.at_drain = [world.failed(3)]
    with pytest.raises(StorageUnavailable, match="the disk is gone"):
        world.checkpoints.await_durable(target)


def test_waiting_for_one_of_which_nothing_is_heard_ends(world):
    target = world.save(3)
    world.saves.stuck = True
    with pytest.raises(SaveFailed, match="nothing was heard of it for 600 s"):
        world.checkpoints.await_durable(target)


def test_waiting_for_one_of_which_nobody_knows_anything_ends(world):
    target = world.save(3)
    with pytest.raises(SaveFailed, match="nobody knows what became of"):
        world.checkpoints.await_durable(target)


def test_waiting_for_one_that_turns_out_to_be_damaged_is_no_success(world):
    target = world.save(3)
    committed = world.committed(3)
    world.saves.at_drain = [committed, Followed(record=committed.record, problem="a bit is another one")]
    with pytest.raises(SaveFailed, match="was damaged when it was read back"):
        world.checkpoints.await_durable(target)


# The end


def test_an_end_after_a_good_save_is_good(world):
    world.save(1)
    world.hears(world.committed(1), Followed(record=world.record(1), problem=None))
    world.checkpoints.check()


def test_an_end_without_any_save_is_good(world):
    world.checkpoints.check()


def test_an_end_after_a_save_that_failed_is_not(world):
    world.save(1)
    world.hears(world.committed(1))
    world.save(2)
    world.hears(world.failed(2))
    with pytest.raises(StorageUnavailable):
        world.checkpoints.check()


def test_an_end_with_a_save_in_flight_is_not(world, caplog):
    world.save(1)
    world.saves.stuck = True
    world.checkpoints.drain()
    assert "without any progress" in caplog.text
    with pytest.raises(SaveFailed, match="the last save, is not durable yet"):
        world.checkpoints.check()


def test_an_end_with_a_damaged_checkpoint_is_not(world):
    world.save(1)
    world.hears(world.committed(1), Followed(record=world.record(1), problem="a bit is another one"))
    with pytest.raises(SaveFailed, match="the last checkpoint, was damaged"):
        world.checkpoints.check()
    assert ("damaged", f"{world.address(1)}: a bit is another one") in world.after.notes


def test_an_old_pack_that_is_rotten_damages_the_last_checkpoint_until_the_next_one_is_good(world):
    world.save(1)
    world.hears(world.committed(1), Followed(record=world.record(1), problem=None))
    world.hears(Followed(record=None, problem="a bit is another one"))
    with pytest.raises(SaveFailed, match="the last checkpoint, was damaged"):
        world.checkpoints.check()
    world.save(2)
    world.hears(world.committed(2), Followed(record=world.record(2), problem=None))
    world.checkpoints.check()


def test_a_training_that_crashes_saves_its_reserve_and_says_what_stands(world, caplog):
    caplog.set_level(logging.WARNING)
    world.save(1)
    world.hears(world.committed(1))
    world.checkpoints.interrupted("ValueError", 7, "; and so on")
    assert world.saves.rescued == [(Kind.FAILED, "the training ended with ValueError")]
    assert f"the training ended with ValueError at step 7; the last checkpoint is {world.address(1)}; and so on" in (
        caplog.text
    )


def test_a_crash_is_not_hidden_by_a_save_that_fails_at_the_same_time(caplog):
    world = World("raise")
    world.save(1)
    world.saves.at_drain = [world.failed(1)]
    world.checkpoints.interrupted("ValueError", 7, "")
    assert "the disk is gone" in caplog.text


def test_what_the_saver_says_last_is_heard(world, caplog):
    world.save(1)
    world.saves.coming = [world.failed(1)]
    world.checkpoints.close(5.0)
    assert world.saves.closed == 5.0
    assert "has failed" in caplog.text


# Metrics, tags, anomalies


def test_metrics_that_come_late_are_added_and_known_to_best(world):
    target = world.save(1, loss=1.0)
    world.checkpoints.add_metrics(target, {"accuracy": 0.5})
    assert world.saves.metrics == [(1, {"accuracy": 0.5})]
    assert world.after.metrics[target.id] == {"loss": 1.0, "accuracy": 0.5}


def test_late_metrics_of_a_save_that_failed_go_into_the_next_one_of_that_boundary(world):
    target = world.save(1, loss=1.0)
    world.checkpoints.add_metrics(target, {"accuracy": 0.5})
    world.checkpoints.add_metrics(target, {"loss": 0.9, "f1": 0.1})
    world.hears(world.failed(1))
    assert target.id not in world.after.metrics, "best() would count a checkpoint that does not exist"
    world.save(1, loss=0.8)
    assert world.saves.requests[-1].metrics == {"accuracy": 0.5, "f1": 0.1, "loss": 0.8}


def test_late_metrics_of_another_boundary_do_not(world):
    world.checkpoints.add_metrics(world.save(1), {"accuracy": 0.5})
    world.save(2)
    assert world.saves.requests[-1].metrics == {}


def test_a_tag_of_a_save_that_fails_is_said_to_be_missing(world, caplog):
    target = world.save(1)
    world.checkpoints.add_tag(target, TagName("mine"))
    assert world.saves.tags == [(1, "mine")]
    world.hears(world.failed(1))
    assert "there is no tag mine" in caplog.text


def test_a_tag_for_a_save_that_has_failed_already_is_not_asked_for(world, caplog):
    target = world.save(1)
    world.hears(world.failed(1))
    world.checkpoints.add_tag(target, TagName("mine"))
    assert world.saves.tags == []
    assert "there is no tag mine" in caplog.text


def test_a_name_that_is_taken_is_refused_before_anything_else(world):
    world.store.storage.create(world.record(1).name, b"{}")
    create_tag(world.store, TagName("mine"), world.address(1))
    with pytest.raises(NameTaken):
        world.checkpoints.check_tag(TagName("mine"))
    world.checkpoints.check_tag(TagName("yours"))


def test_anomalies_are_warned_of(world, caplog):
    world.save(1)
    world.hears(world.committed(1, anomalies=["NaN inside: model/a"]))
    assert f"{world.address(1)}: NaN inside: model/a" in caplog.text


def test_records_that_retention_removes_are_forgotten_by_best(world):
    target = world.save(1, loss=1.0)
    world.hears(world.committed(1), Followed(record=world.record(1), problem=None))
    world.hears(Followed(record=None, problem=None, deleted=[target.id]))
    assert target.id not in world.after.metrics
