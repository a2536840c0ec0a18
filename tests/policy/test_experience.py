"""What a run learns from its past: pure, and on the safe side where it cannot be told."""

from __future__ import annotations

import pytest

from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy.experience import RECENT, Experience, experience_of, untold
from holdfast.records import Kind, LaunchInfo, Owner, Record, Sizes, StartInfo, Timing

OWNER = Owner(host="h", boot="b", pid=1, started="1")


def when(minutes: int) -> str:
    return f"2026-01-01T{minutes // 60:02d}:{minutes % 60:02d}:00Z"


def launch(number: int, minutes: int) -> LaunchInfo:
    return LaunchInfo(run=1, number=number, created=when(minutes), owner=OWNER, attempt="00")


def start(launch_number: int, timeline: int, minutes: int) -> StartInfo:
    return StartInfo(
        run=1, launch=launch_number, timeline=timeline, created=when(minutes), resumed_from=None, why="", attempt="00"
    )


def record(launch_number, timeline, step, minutes, kind=Kind.REGULAR, stall=1.0, durable=2.0) -> Record:
    order = Order(launch_number, timeline, step)
    return Record(
        id=str(RecordId.derive("s", RunNumber(1), order)),
        run=1,
        **order._asdict(),
        parent=None,
        created=when(minutes),
        kind=kind,
        reason="test",
        manifest="00" * 32,
        tensors=0,
        bytes=Sizes(logical=0, new=0, stored=0),
        timing=Timing(stall=stall, staging=0, hashing=0, writing=0, durable=durable),
        codec="raw",
        owner=OWNER,
        attempt="00",
    )


def test_the_first_launch_has_learned_nothing():
    assert experience_of([launch(1, 0)], [start(1, 0, 0)], [], now=(1, 0)) == Experience()


def test_a_launch_that_was_killed_counts_as_a_failure_and_lasted_until_its_last_sign():
    found = experience_of([launch(1, 0), launch(2, 60)], [start(1, 0, 0)], [record(1, 0, 5, 40)], now=(2, 0))
    assert (found.failures, found.seconds) == (1, 40 * 60)


@pytest.mark.parametrize("kind", [Kind.PREEMPTED, Kind.FINAL])
def test_an_end_that_somebody_asked_for_is_no_failure(kind):
    records = [record(1, 0, 5, 30), record(1, 0, 7, 40, kind)]
    assert experience_of([launch(1, 0)], [start(1, 0, 0)], records, now=(2, 0)).failures == 0


def test_a_launch_that_said_that_it_ended_on_purpose_is_no_failure_though_its_last_checkpoint_is_gone():
    """Retention lets go of what each of a hundred pre-emptions has saved."""
    starts = [start(1, 0, 0), start(1, 1, 20), start(2, 0, 60), start(3, 0, 90)]
    records = [record(2, 0, 7, 80, Kind.PREEMPTED)]
    launches = [launch(1, 0), launch(2, 60), launch(3, 90)]
    assert untold(starts, records, now=(3, 0)) == [1]
    assert experience_of(launches, starts, records, now=(3, 0)).failures == 2
    found = experience_of(launches, starts, records, now=(3, 0), on_purpose=[1])
    assert found.failures == 1, "it went back in between all the same"


def test_a_rollback_within_a_launch_is_a_failure():
    records = [record(1, 0, 5, 30), record(1, 1, 7, 40)]
    assert experience_of([launch(1, 0)], [start(1, 0, 0), start(1, 1, 35)], records, now=(1, 2)).failures == 2


def test_the_stretch_that_has_just_begun_does_not_count():
    found = experience_of([launch(1, 0)], [start(1, 0, 0), start(1, 1, 9)], [record(1, 1, 7, 40)], now=(1, 1))
    assert found.failures == 1
    assert found.saves == ((1.0, 2.0),), "but what was saved in it has been measured"


def test_a_launch_that_died_before_its_first_save_is_a_failure():
    found = experience_of([launch(1, 0), launch(2, 3)], [start(1, 0, 1)], [], now=(2, 0))
    assert (found.failures, found.seconds) == (1, 60)


def test_a_launch_whose_signs_are_gone_has_lasted_until_the_next_one():
    assert experience_of([launch(1, 0), launch(2, 30)], [], [], now=(3, 0)).seconds == 30 * 60


def test_a_clock_that_was_set_back_makes_no_launch_last_less_than_nothing():
    found = experience_of([launch(1, 100), launch(2, 50)], [start(1, 0, 20)], [record(1, 0, 5, 10)], now=(3, 0))
    assert found.seconds == 0


def test_the_cost_of_a_save_is_the_median_of_recent_ones():
    records = [record(1, 0, step, step, stall=100.0) for step in range(1, 5)]
    records += [record(1, 0, step, step, stall=float(step), durable=2.0 * step) for step in range(10, 10 + RECENT)]
    found = experience_of([launch(1, 0)], [], records, now=(2, 0))
    assert (found.save_seconds, found.durable_seconds) == (10 + RECENT // 2, 2.0 * (10 + RECENT // 2))


def test_only_recent_saves_are_remembered():
    known = Experience()
    for n in range(100):
        known = known.with_save(float(n), 0.0)
    assert len(known.saves) == RECENT
    assert known.save_seconds == 99 - RECENT // 2
