"""What a run's life is told to be, against a model that knows every single step."""

from __future__ import annotations

import random

import msgspec
import pytest
from histories_kit import RUN, STORE, Author, lived, overlapping

from holdfast.catalog.journal.accounts import Account
from holdfast.catalog.journal.events import Ending, Line, exit_event, progress_event, read_event
from holdfast.catalog.journal.history import History, Stretch
from holdfast.catalog.journal.timeline import Timeline, timeline_of
from holdfast.errors import PeerLost
from holdfast.records import Kind, Record, Target

HISTORIES = 150


def told(author: Author, **more) -> Timeline:
    return timeline_of(author.history(**more))


def kinds(timeline: Timeline) -> list[str]:
    return [moment.kind for moment in timeline.moments]


def launched(*, steps: int = 0, save: bool = False) -> Author:
    author = Author()
    author.begin()
    author.start(None, "there was nothing to resume from")
    author.train(steps)
    if save:
        author.save()
    return author


def again(author: Author, after: float = 60.0) -> Author:
    author.now += after
    author.begin()
    author.start(author.parent)
    return author


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_counted_as_a_model_does_that_knows_each_of_them(seed):
    for number in range(HISTORIES):
        print(f"seed {seed}, history {number}")
        model = lived(random.Random(f"{seed}-{number}"))
        accounts = told(model.author).accounts
        assert [one.launch for one in accounts] == [one.number for one in model.author.launches]
        for one in accounts:
            assert one.useful + one.lost == one.done
            assert one.useful == len(model.useful(one.launch))
            assert one.done <= len(model.done(one.launch))
            assert one.at_least or one.done == len(model.done(one.launch))


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_missing_where_every_launch_said_how_it_ended(seed):
    for number in range(HISTORIES):
        print(f"seed {seed}, history {number}")
        model = lived(random.Random(f"{seed}-{number}"), kills=False)
        timeline = told(model.author)
        assert not timeline.total.at_least
        assert timeline.total.done == len(model.made)
        assert not timeline.total.estimated
        for one in timeline.accounts:
            useful = sum(model.made[step][1] for step in model.useful(one.launch))
            assert one.useful_seconds == pytest.approx(useful, abs=1e-6)
            assert one.step_seconds == pytest.approx(sum(model.made[step][1] for step in model.done(one.launch)))
        assert timeline.doubts == ()


@pytest.mark.parametrize("jumps", [False, True])
def test_no_share_is_below_0_or_above_1_and_no_time_is_negative_whatever_the_clocks_say(jumps):
    for number in range(HISTORIES):
        print(f"jumps {jumps}, history {number}")
        timeline = told(lived(random.Random(f"{jumps}-{number}"), jumps=jumps).author)
        for one in (*timeline.accounts, timeline.total):
            assert one.goodput is None or 0 <= one.goodput <= 1
            assert min(one.wall, one.useful_seconds, one.lost_seconds, one.stall_seconds) >= 0
            assert one.useful_seconds + one.lost_seconds <= one.wall * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_the_order_in_which_facts_were_read_makes_no_difference(seed):
    for number in range(30):
        print(f"seed {seed}, history {number}")
        chance = random.Random(f"{seed}-{number}")
        author = lived(chance, jumps=True).author
        once = told(author)
        shuffled = {
            name: chance.sample(x := getattr(author, name), len(x)) for name in ("launches", "starts", "records")
        }
        assert told(author, **shuffled) == once


def test_a_run_of_which_nothing_is_known_has_an_empty_timeline():
    timeline = timeline_of(History(store=STORE, run=RUN))
    assert (timeline.moments, timeline.accounts, timeline.total.goodput) == ((), (), None)


def test_steps_after_the_last_checkpoint_of_a_killed_launch_are_lost_as_far_as_is_known():
    author = launched(steps=10, save=True)
    author.train(5)
    author.progress()
    author.train(3)  # of these nothing tells
    first, _ = told(again(author)).accounts
    assert (first.ending, first.done, first.useful, first.lost, first.at_least) == (Ending.KILLED, 15, 10, 5, True)


def test_steps_that_a_rollback_left_are_lost_though_their_launch_went_on():
    author = launched(steps=10, save=True)
    good = author.parent
    author.train(20)
    author.save()
    author.progress(left=True)
    author.start(good, "loss spike")
    author.train(5)
    author.save()
    author.exit(Ending.LEFT)
    timeline = told(author)
    (one,) = timeline.accounts
    assert (one.done, one.useful, one.lost, one.at_least) == (35, 15, 20, False)
    assert (one.useful_seconds, one.lost_seconds) == (15.0, 20.0)
    assert kinds(timeline) == ["launch", "start", "save", "save", "progress", "rollback", "save", "exit"]


def test_what_a_running_launch_has_not_saved_yet_is_not_lost():
    author = launched(steps=10, save=True)
    author.train(7)
    author.progress()
    author.now += 5
    (one,) = told(author, alive=True).accounts
    assert (one.ending, one.useful, one.lost, one.wall) == (Ending.RUNNING, 17, 0, 22.0)
    assert told(author, alive=None).accounts[0].ending is Ending.UNKNOWN
    assert told(author, alive=False).accounts[0].lost == 7


def test_goodput_counts_the_time_between_launches_for_the_run_and_not_for_a_launch():
    author = launched(steps=60, save=True)
    author.exit(Ending.PREEMPTED)
    again(author, after=40)
    author.train(20)
    author.save(kind=Kind.FINAL)
    author.exit(Ending.COMPLETED)
    timeline = told(author)
    assert [one.goodput for one in timeline.accounts] == [1.0, 1.0]
    assert (timeline.total.goodput, timeline.total.between, timeline.total.wall) == (80 / 120, 40.0, 120.0)


def test_stalls_are_counted_of_checkpoints_that_retention_has_deleted_too():
    author = launched(steps=1)
    author.save(stall=2.0)
    author.train()
    author.save(stall=3.0)
    del author.records[0]
    author.exit(Ending.LEFT)
    timeline = told(author)
    assert timeline.accounts[0].stall_seconds == 5.0
    assert [("deleted since" in moment.text) for moment in timeline.moments if moment.kind == "save"] == [True, False]


def test_a_store_without_measurements_is_told_from_its_checkpoints():
    """As stores of before are: no exit, no progress; seconds are what passed between start and checkpoint."""
    author = launched(steps=10)
    author.save(stall=4.0)
    author.train(20)
    author.save(kind=Kind.FINAL, reason="the end: 30 steps")
    author.entries.clear()
    (one,) = told(author).accounts
    assert (one.ending, one.done, one.useful, one.lost, one.at_least) == (Ending.COMPLETED, 30, 30, 0, False)
    assert (one.estimated, one.useful_seconds, one.stall_seconds, one.wall) == (True, 30.0, 4.0, 34.0)


@pytest.mark.parametrize(
    ("reason", "ending"),
    [("SIGTERM asked to stop", Ending.PREEMPTED), ("the trainer was killed; staged at step 10", Ending.KILLED)],
)
def test_a_last_checkpoint_tells_how_a_silent_launch_ended(reason, ending):
    author = launched(steps=10)
    author.save(kind=Kind.PREEMPTED, reason=reason)
    assert told(again(author)).accounts[0].ending is ending


@pytest.mark.parametrize(("ending", "error"), [(Ending.FAILED, "ValueError"), (Ending.LEFT, "SystemExit")])
def test_an_old_note_of_an_exception_tells_how_a_silent_launch_ended(ending, error):
    author = launched(steps=10)
    author.note(Line(str(ending), f"{error} at step 12", {}))
    one = told(again(author)).accounts[0]
    assert (one.ending, one.why) == (ending, f"{error} at step 12")
    assert (one.done, one.lost, one.at_least) == (12, 12, False)


def test_of_several_ranks_that_failed_the_cause_is_named_and_not_the_consequence():
    author = launched(steps=3)
    author.exit(Ending.FAILED, PeerLost("rank 1 is gone"))
    author.exit(Ending.FAILED, ValueError("loss is nan"), rank=1)
    one = told(author).accounts[0]
    assert (one.ending, one.why) == (Ending.FAILED, "ValueError: loss is nan")


def of_another_run(step: int) -> Record:
    return msgspec.structs.replace(launched(steps=step, save=True).parent, run=9)


@pytest.mark.parametrize("step", [0, 10])
def test_a_launch_whose_restore_failed_costs_no_step_of_the_one_before_it(step):
    """It says how it ended, and where: at no step, or at that of a checkpoint whose restore could not be noted."""
    author = launched(steps=10, save=True)
    author.exit(Ending.LEFT)
    author.begin()
    author.timeline, author.step = 0, step
    author.exit(Ending.FAILED, OSError("the mount is away"))
    first, second = told(author).accounts
    assert (first.useful, first.lost) == (10, 0)
    assert (second.ending, second.why, second.done) == (Ending.FAILED, "OSError: the mount is away", 0)


def test_another_rank_has_no_say_in_the_steps():
    author = launched(steps=3)
    author.exit(Ending.FAILED, PeerLost("rank 1 is gone"))
    author.train(50)
    author.exit(Ending.FAILED, ValueError("loss is nan"), rank=1)
    assert told(author).accounts[0].done == 3


def test_a_start_that_resumed_from_its_own_checkpoint_does_not_go_round_in_circles():
    """No store should have one; a timeline is what one looks at when a store is odd."""
    author = launched(steps=10, save=True)
    author.exit(Ending.LEFT)
    author.starts[0] = msgspec.structs.replace(author.starts[0], resumed_from=Target.of(author.parent.address))
    assert told(author).accounts[0].lost == 0


def test_a_clock_that_was_set_back_between_two_checkpoints_takes_no_time_back():
    author = launched(steps=10, save=True)
    author.skew = -8.0
    author.train(4)
    author.save()
    author.skew = 0.0
    author.entries.clear()
    author.note(Line("saver", "at the end", {}))
    one = told(author).accounts[0]
    assert (one.estimated, one.step_seconds) == (True, 10.0)


def test_a_run_forked_from_another_one_counts_from_the_step_of_the_fork():
    author = Author()
    author.begin()
    author.start(of_another_run(100))
    author.train(10)
    author.save()
    author.exit(Ending.LEFT)
    (one,) = told(author).accounts
    assert (one.done, one.useful) == (10, 10)


def test_a_start_with_parts_of_a_checkpoint_counts_its_steps_from_zero():
    author = Author()
    author.begin()
    author.start(of_another_run(100), "only model of it, as asked for")
    author.step = 0
    author.train(120)
    author.exit(Ending.LEFT)
    assert told(author).accounts[0].done == 120


def test_a_clock_that_was_set_back_is_said_and_costs_nothing():
    author = launched(steps=10, save=True)
    author.exit(Ending.LEFT)
    author.skew = -1000.0
    timeline = told(again(author, after=5.0))
    assert timeline.accounts[1].before == 0.0
    assert any("launch 2 began 995 s before launch 1" in doubt for doubt in timeline.doubts)
    assert kinds(timeline).index("exit") < len(kinds(timeline)) - 1 - kinds(timeline)[::-1].index("launch")


def test_time_in_which_two_launches_ran_passes_once():
    """A launch on a node that was thought lost goes on until it sees the next one; what it does then is lost."""
    timeline = told(overlapping())
    assert [one.wall for one in timeline.accounts] == [100.0, 140.0]
    assert [one.lost_seconds for one in timeline.accounts] == [50.0, 0.0]
    total = timeline.total
    assert (total.wall, total.useful_seconds, total.lost_seconds, total.goodput) == (200.0, 190.0, 10.0, 0.95)


def test_a_launch_that_seems_to_begin_before_the_one_before_it_takes_no_time_away():
    author = launched(steps=10)
    author.exit(Ending.FAILED, ValueError("bad batch"))
    author.skew = -1000.0
    again(author, after=5.0)
    author.train(20)
    author.exit(Ending.LEFT)
    assert told(author).total.wall == 30.0


def test_a_clock_that_was_set_while_a_launch_ran_is_said():
    author = launched(steps=10)
    author.skew = 500.0
    author.exit(Ending.LEFT)
    timeline = told(author)
    assert timeline.accounts[0].wall == 10.0
    assert timeline.doubts == ("the clock of launch 1 was set forward by 500 s",)


def test_what_one_process_noted_stays_in_its_order_when_its_clock_is_set_back():
    author = launched(steps=1)
    author.note(Line("saver", "first", {}))
    author.skew = -100.0
    author.note(Line("saver", "second", {}))
    texts = [moment.text for moment in told(author).moments if moment.kind == "saver"]
    assert texts == ["first", "second"]


def test_a_saver_that_outlives_its_trainer_raises_no_doubt():
    author = launched(steps=10, save=True)
    author.now += 30
    author.note(Line("saver", "still reading back", {}), writer="saver-1-0-99")
    author.now -= 20
    assert told(again(author, after=0.0)).doubts == ()


def test_an_exit_that_does_not_say_where_belongs_to_the_newest_timeline_of_its_writer():
    author = launched(steps=10, save=True)
    author.start(author.parent, "asked for")
    author.train(5)
    author.note(Line("exit", "left", {"how": "left", "step": 15, "step_seconds": 15.0, "wall_seconds": 16.0}))
    one = told(author).accounts[0]
    assert (one.ending, one.done, one.useful, one.lost, one.wall) == (Ending.LEFT, 15, 10, 5, 16.0)


def test_events_of_kinds_that_nobody_knows_yet_are_shown_as_they_are():
    author = launched(steps=5)
    author.note(Line("health", "spike(loss) at step 5", {"step": 5}))
    found = next(moment for moment in told(author).moments if moment.kind == "health")
    assert (found.text, found.step, found.launch) == ("spike(loss) at step 5", 5, 1)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"launch": 1, "timeline": 0, "step": -1, "step_seconds": 1.0},
        {"launch": 1, "timeline": 0, "step": 1, "step_seconds": float("nan")},
        {"launch": True, "timeline": 0, "step": 1, "step_seconds": 1.0},
        {"launch": 1, "timeline": 0, "step": 1, "step_seconds": "1"},
    ],
)
def test_an_event_that_is_not_what_we_write_counts_for_nothing(data):
    assert read_event("progress", data) is None
    assert read_event("exit", {**data, "how": "left", "wall_seconds": 1.0}) is None


def test_events_read_back_as_they_were_written():
    place = {"launch": 2, "timeline": 1, "step": 30, "step_seconds": 4.5}
    line = progress_event(**place, left=True)
    found = read_event(line.kind, line.data)
    assert (found.step, found.step_seconds, found.left) == (30, 4.5, True)
    line = exit_event(**place, how=Ending.FAILED, wall_seconds=9.0, error=ValueError("bad\nmore"))
    found = read_event(line.kind, line.data)
    assert (found.how, found.wall_seconds, found.error) == (Ending.FAILED, 9.0, "ValueError: bad")


def test_seconds_between_two_points_go_by_the_steps():
    stretch = Stretch(
        place=(1, 0),
        begun=10,
        continues=None,
        reached=40,
        exact=True,
        kept=40,
        points=((20, 5.0), (30, 25.0)),
        measured=True,
    )
    assert [stretch.seconds(step) for step in (10, 15, 20, 25, 30, 40)] == [0.0, 2.5, 5.0, 15.0, 25.0, 37.5]


def test_ten_thousand_checkpoints_of_a_hundred_launches_are_told():
    author = Author()
    for _ in range(100):
        author.begin()
        author.start(author.parent)
        for _ in range(100):
            author.train()
            author.save()
    timeline = told(author)
    assert timeline.total.useful == 10_000
    assert isinstance(timeline.accounts[0], Account)


def test_an_older_launch_that_still_runs_is_not_called_killed():
    """Only the newest one was asked whether it lives."""
    author = launched(steps=10, save=True)
    again(author, after=40)
    author.train(5)
    author.progress()
    first, second = told(author, lives={1: True, 2: True}).accounts
    assert (first.ending, first.why) == (Ending.RUNNING, "a newer launch has the run")
    assert (first.wall, first.at_least) == (10.0, True)
    assert (second.ending, second.useful) == (Ending.RUNNING, 5)
    first, second = told(author, lives={1: None, 2: None}).accounts
    assert (first.ending, second.ending) == (Ending.KILLED, Ending.UNKNOWN)


@pytest.mark.parametrize(("alive", "more"), [(None, "; it may still run"), (False, "")])
def test_of_a_launch_that_is_not_heard_of_any_more_the_line_says_that(alive, more):
    last = told(launched(steps=10, save=True), alive=alive).moments[-1]
    assert last.text == f"nothing more was heard of launch 1{more}; 10 steps are known of"
