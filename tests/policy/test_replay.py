"""What policies would have done on a past run, from what is known of it and nothing else."""

from __future__ import annotations

import random

import pytest
from policies_kit import Listening

from holdfast.catalog.deleting.retention import plan_retention
from holdfast.catalog.journal.events import Ending, exit_event
from holdfast.catalog.journal.history import History
from holdfast.catalog.journal.journal import Entry
from holdfast.catalog.marks import RecordMarks
from holdfast.errors import InvalidPolicy
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy import any_of, at, at_most, auto, best, every, latest, newer, parse, shelf
from holdfast.policy import replay as replaying
from holdfast.policy.past import past_of
from holdfast.policy.replay import replay
from holdfast.policy.shelf import Shelf
from holdfast.records import Event, Kind, LaunchInfo, Mark, MarkKind, Owner, Record, Sizes, StartInfo, Target, Timing

ALL = latest(1000)
OWNER = Owner(host="h", boot="b", pid=1, started="1")


def when(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"2026-01-{1 + minutes // 1440:02d}T{minutes // 60 % 24:02d}:{minutes % 60:02d}:{rest:02d}Z"


class Told:
    """A run that is told: one step takes a second, one save stores 100 bytes and stalls for 2 s."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.starts: list[StartInfo] = []
        self.launches: list[LaunchInfo] = []
        self.entries: list[Entry] = []
        self.marks: dict[RecordId, RecordMarks] = {}
        self.parent: Record | None = None
        self.place, self.now, self.step = (0, 0), 0.0, 0
        self.launch(None)

    def launch(self, origin: Record | None, *, rollback: bool = False) -> None:
        launch, timeline = self.place
        self.place = (launch, timeline + 1) if rollback else (launch + 1, 0)
        if not rollback:
            self.launches.append(
                LaunchInfo(run=1, number=launch + 1, created=when(self.now), owner=OWNER, attempt="00")
            )
        target = None if origin is None else Target.of(origin.address)
        self.starts.append(
            StartInfo(
                run=1,
                launch=self.place[0],
                timeline=self.place[1],
                created=when(self.now),
                resumed_from=target,
                why="the head of the run",
                attempt="00",
            )
        )
        self.parent, self.step = origin, 0 if origin is None else origin.step

    def train(
        self, upto: int, *, save: range | tuple[int, ...] = (), why="every(steps=10)", kind=Kind.REGULAR, **metrics
    ):
        for step in range(self.step + 1, upto + 1):
            self.now, self.step = self.now + 1, step
            if step in save:
                self.save(why, kind, **{name: value(step) for name, value in metrics.items()})

    def save(
        self,
        why: str,
        kind: Kind = Kind.REGULAR,
        *,
        lost: bool = False,
        stored: int = 100,
        logical: int = 100,
        **metrics,
    ):
        order = Order(*self.place, self.step)
        id_ = RecordId.derive("s", RunNumber(1), order)
        record = Record(
            id=str(id_),
            run=1,
            **order._asdict(),
            epoch=self.step // 100,
            parent=None if self.parent is None else Target.of(self.parent.address),
            created=when(self.now),
            kind=kind,
            reason=why,
            metrics=metrics,
            manifest="00" * 32,
            tensors=0,
            bytes=Sizes(logical=logical, new=stored, stored=stored),
            timing=Timing(stall=2.0, staging=0, hashing=0, writing=0),
            codec="raw",
            owner=OWNER,
            attempt="00",
        )
        self.parent = record
        if not lost:
            self.records.append(record)
        data = {"stall": 2.0, "durable": 0.0, "logical": logical, "new": stored, "stored": stored}
        self.note("saved", f"{record.address}: {why}", **data)

    def note(self, kind: str, message: str, **data) -> None:
        event = Event(time=when(self.now), kind=kind, message=message, data=data)
        self.entries.append(Entry(f"saver-{self.place[0]}-x", 1, event))

    def ends(self, how: Ending) -> None:
        launch, timeline = self.place
        line = exit_event(
            launch=launch, timeline=timeline, step=self.step, step_seconds=self.now, how=how, wall_seconds=self.now
        )
        self.entries.append(
            Entry(
                f"host-1-{launch}", 1, Event(time=when(self.now), kind=line.kind, message=line.message, data=line.data)
            )
        )

    def replay(self, save, keep=ALL):
        history = History(
            store="s",
            run=1,
            launches=self.launches,
            starts=self.starts,
            records=self.records,
            entries=self.entries,
            marks=self.marks,
        )
        return replay(past_of(history), save, keep)


def steps(outcome) -> list[int]:
    return [step for step, _ in outcome.kept]


def plain(upto: int = 100) -> Told:
    told = Told()
    told.train(upto, save=range(10, upto + 1, 10), loss=lambda step: float(abs(step - 42)))
    return told


def test_the_policy_that_the_run_had_gives_what_the_run_did():
    found = plain().replay(every(steps=10))
    assert found.planned.saves == found.real.saves == 10
    assert found.planned.estimated == 0
    assert found.planned.stall_seconds == found.real.stall_seconds == 20.0
    assert found.planned.written == found.real.written == 1000
    assert steps(found.planned) == steps(found.real) == list(range(10, 101, 10))
    assert found.planned.final_bytes == found.real.final_bytes == 1000


def test_steps_without_a_checkpoint_were_made_all_the_same():
    """By step everything is known; what such a save would have cost is the median, and that is said."""
    found = plain().replay(every(steps=25) | at(steps=[3]))
    assert steps(found.planned) == [3, 25, 50, 75, 100]
    assert (found.planned.saves, found.planned.estimated) == (5, 3)
    assert found.planned.written == 500


def test_retention_is_replayed_after_every_save():
    found = plain().replay(every(steps=10), latest(2) | every(steps=50))
    assert steps(found.planned) == [50, 90, 100]
    assert found.planned.peak_bytes == 400
    assert found.planned.final_bytes == 300


def test_a_limit_is_replayed():
    found = plain().replay(every(steps=10), at_most("250"))
    assert steps(found.planned) == [90, 100]
    assert found.planned.peak_bytes == 300


def test_metrics_are_known_where_there_is_a_checkpoint_and_nowhere_else():
    found = plain().replay(best("loss"))
    assert steps(found.planned) == [10, 20, 30, 40]
    assert found.notes == ("loss is known at 10 of 10 checkpoints, and nowhere else",)


def test_a_checkpoint_that_is_gone_is_known_from_the_journal_without_its_metrics():
    told = Told()
    for step in range(10, 101, 10):
        told.train(step)
        told.save("every(steps=10)", lost=step < 70, loss=float(step))
    found = told.replay(every(steps=20))
    assert (found.real.saves, steps(found.real)) == (10, [70, 80, 90, 100])
    assert (found.planned.saves, found.planned.estimated) == (5, 0)
    assert told.replay(best("loss")).notes == ("loss is known at 4 of 10 checkpoints, and nowhere else",)
    assert steps(told.replay(best("loss")).planned) == [70]


def test_the_clock_is_known_at_checkpoints_only_and_that_is_said():
    found = plain().replay(every(seconds=5))
    assert steps(found.planned) == list(range(10, 101, 10))
    assert "by time, there may have been more saves than shown" in found.notes[0]
    assert steps(plain().replay(every(seconds=25)).planned) == [30, 60, 90]


def test_a_save_at_an_unknown_time_never_makes_a_policy_by_time_too_eager():
    """Step 15 lies between 10 and 20 seconds: 20 seconds after it are over at 40 for certain, not at 35."""
    assert steps(plain().replay(at(steps=[15]) | every(seconds=20)).planned) == [15, 40, 60, 80, 100]


def test_ends_of_epochs_are_known_where_the_run_has_saved_at_them():
    """100 steps an epoch: what was saved at step 99 is of epoch 0, what was saved at 199 of epoch 1."""
    told = Told()
    for step in (99, 199, 299, 399):
        told.train(step)
        told.save("every(epochs=1)")
    told.launch(told.records[-1])
    for step in (450, 499):
        told.train(step)
        told.save("every(steps=50)" if step == 450 else "every(epochs=1)")
    assert steps(told.replay(every(epochs=1)).planned) == [99, 199, 299, 399, 499]
    assert steps(told.replay(every(epochs=2)).planned) == [199, 399]
    assert "epoch" in told.replay(every(epochs=2)).notes[0]


def test_what_no_policy_asked_for_is_made_in_any_case():
    told = plain(95)
    told.save("'before-surgery' asked for it", Kind.MANUAL)
    told.train(97)
    told.save("SIGTERM asked to stop", Kind.PREEMPTED)
    assert steps(told.replay(at(steps=[20])).planned) == [20, 95, 97]


def test_the_end_of_a_training_is_saved_by_any_policy():
    told = plain()
    last = told.records[-1]
    target = Target.of(last.address)
    told.marks[RecordId(last.id)] = RecordMarks(
        marks=(Mark(kind=MarkKind.FINAL, target=target, created="", by="t", attempt="00"),)
    )
    assert steps(told.replay(at(steps=[20])).planned) == [20, 100]


def killed() -> Told:
    """Saves every 10 steps, is killed at 57, goes on from 50, is asked to stop at 85, ends at 100."""
    told = Told()
    told.train(57, save=range(10, 58, 10))
    told.ends(Ending.FAILED)
    told.launch(told.records[-1])
    told.train(85, save=range(10, 86, 10))
    told.save("SIGTERM asked to stop", Kind.PREEMPTED)
    told.ends(Ending.PREEMPTED)
    told.launch(told.records[-1])
    told.train(100, save=range(10, 101, 10))
    return told


@pytest.mark.parametrize(
    ("policy", "lost"), [("every(steps=10)", 7), ("every(steps=7)", 1), ("every(steps=40)", 17), ("at(steps=[90])", 57)]
)
def test_lost_work_is_what_lies_between_the_end_and_the_newest_checkpoint(policy, lost):
    found = killed().replay(parse(policy))
    assert found.real.lost_steps == 7
    assert found.planned.lost_steps == lost
    assert [loss.at_least for loss in found.planned.losses] == [False, False]


def test_of_a_launch_that_said_nothing_the_loss_is_at_least_that():
    told = Told()
    told.train(57, save=range(10, 58, 10))
    told.launch(told.records[-1])
    (loss,) = told.replay(every(steps=20)).planned.losses
    assert (loss.reached, loss.back_to, loss.at_least) == (50, 40, True)


def test_a_rollback_on_purpose_goes_back_as_far_in_the_replay():
    """It is what the run did: a checkpoint nearer to the end would have held the same poison."""
    told = Told()
    told.train(60, save=range(10, 61, 10))
    told.launch(told.records[2], rollback=True)
    told.train(90, save=range(10, 91, 10))
    found = told.replay(every(steps=20))
    (loss,) = found.planned.losses
    assert (loss.reached, loss.back_to) == (60, 20)
    assert steps(found.planned) == [20, 40, 60, 80]
    (loss,) = told.replay(every(steps=20), latest(2)).planned.losses
    assert loss.back_to == 0, "the one that it went back to would have been deleted long before"


def killed_twice() -> Told:
    """Reaches 1750, goes on from 1500, is killed at 1520, goes on from 1500 once more."""
    told = Told()
    told.train(1750, save=range(500, 1751, 500), why="every(steps=500)")
    told.ends(Ending.FAILED)
    origin = told.records[-1]
    told.launch(origin)
    told.train(1520)
    told.ends(Ending.FAILED)
    told.launch(origin)
    told.train(2000, save=(2000,), why="every(steps=500)")
    return told


@pytest.mark.parametrize("keep", [latest(1), latest(2), latest(3), latest(1) | every(steps=1000)])
def test_who_saves_finer_and_keeps_less_loses_no_more_than_a_launch_has_made(keep):
    """It would have gone on from 1700, and so lost 20 steps: not all, for want of what the run really went on from."""
    found = killed_twice().replay(every(steps=100), keep)
    assert found.real.lost_steps == 250 + 20
    assert found.planned.lost_steps == 50 + 20


@pytest.mark.parametrize(("save", "lost"), [(every(steps=1000), [750, 520]), (at(steps=[1900]), [1750, 1520])])
def test_who_saves_coarser_goes_back_as_far_each_time(save, lost):
    losses = killed_twice().replay(save, latest(1)).planned.losses
    assert [loss.steps for loss in losses] == lost


def test_a_rollback_beyond_where_the_launch_began_is_one_too():
    """The launch at 50 saved nothing, so no save of its own tells that it was left behind."""
    told = Told()
    told.train(57, save=range(10, 58, 10))
    told.launch(told.records[-1])
    told.train(55)
    told.ends(Ending.LEFT)
    told.launch(told.records[1], rollback=True)
    told.train(90, save=range(30, 91, 10))
    found = told.replay(every(steps=10))
    assert [loss.back_to for loss in found.planned.losses] == [50, 20]


@pytest.mark.parametrize(("how", "failures"), [(Ending.LEFT, 0), (Ending.COMPLETED, 0), (Ending.FAILED, 1)])
def test_auto_takes_a_launch_that_ended_on_purpose_for_no_failure(how, failures):
    """Its last checkpoint does not tell: it was made because a policy wanted it."""
    told = Told()
    told.train(95, save=range(10, 96, 10))
    told.ends(how)
    told.launch(told.records[-1])
    told.train(110, save=(100,))
    listening = Listening()
    told.replay(listening)
    assert listening.heard[-1].failures == failures


def test_auto_learns_from_the_run_as_it_goes():
    """Two seconds each, two in a hundred: every 100 seconds; before the first one, after FIRST."""
    told = Told()
    told.train(2000, save=range(10, 2001, 10))
    assert steps(told.replay(auto(0.02)).planned)[:4] == [300, 400, 500, 600]


def test_bytes_that_are_stored_once_count_once():
    """An adapter: the first save has the base, too."""
    told = Told()
    told.train(10)
    told.save("every(steps=10)", stored=1000, logical=1000)
    for step in (20, 30, 40):
        told.train(step)
        told.save("every(steps=10)", stored=10, logical=1000)
    found = told.replay(every(steps=10), latest(2))
    assert found.planned.final_bytes == 990 + 2 * 10
    assert found.planned.peak_bytes == 990 + 3 * 10
    assert found.real.final_bytes == 990 + 4 * 10


def test_a_run_that_never_saved_has_no_costs_and_that_is_said():
    told = Told()
    told.train(30)
    told.ends(Ending.LEFT)
    found = told.replay(every(steps=10))
    assert found.planned.saves == 3
    assert "no save of this run is known" in found.notes[-1]


def test_a_run_of_nothing_is_replayed():
    found = replay(past_of(History(store="s", run=1)), every(steps=10), latest(1))
    assert (found.planned.saves, found.real.saves, found.planned.kept) == (0, 0, ())


def test_a_policy_that_would_have_to_be_asked_for_hours_is_refused():
    told = Told()
    told.train(200_000)
    told.save("by hand", Kind.MANUAL)
    with pytest.raises(
        InvalidPolicy, match="at more than 100000 steps of this run; a replay asks at most 100000 times"
    ):
        told.replay(every(steps=1))


@pytest.mark.parametrize("seed", range(40))
def test_a_replay_by_step_agrees_with_counting(seed):
    """A model of one line: multiples and listed steps, none lost, none twice; deterministic."""
    chance = random.Random(seed)
    told = Told()
    told.train(upto := chance.randint(1, 300), save=range(chance.randint(1, 50), 301, chance.randint(1, 40)))
    told.ends(Ending.LEFT)
    each, listed = chance.randint(1, 60), sorted({chance.randint(1, 400) for _ in range(3)})
    policy = every(steps=each) | at(steps=listed)
    wanted = {step for step in range(1, upto + 1) if step % each == 0 or step in listed}
    found = told.replay(policy)
    assert steps(found.planned) == sorted(wanted)
    assert found == told.replay(policy)


def wandered(chance: random.Random) -> Told:
    """A run that was started and rolled back again and again, with saves at no regular distances."""
    told = Told()
    for _ in range(chance.randint(1, 6)):
        upto = told.step + chance.randint(1, 120)
        told.train(
            upto, save=tuple(chance.sample(range(upto + 1), 12 if upto > 12 else 1)), loss=lambda _: chance.random()
        )
        if chance.random() < 0.3:
            told.save("by hand", Kind.MANUAL)
        told.ends(chance.choice([Ending.FAILED, Ending.LEFT]))
        told.launch(chance.choice([*told.records[-5:], None]) if told.records else None, rollback=chance.random() < 0.4)
    told.train(told.step + 60, save=range(0, 2000, 7), loss=lambda _: chance.random())
    return told


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_out_of_a_replay_changes_nothing(seed, monkeypatch):
    """Retention is planned in full only where that can matter; here with each save."""
    chance = random.Random(seed)
    told = wandered(chance)
    save = every(steps=chance.randint(1, 30)) | best("loss", chance.randint(1, 2))
    keep = [latest(chance.randint(1, 5)), every(steps=chance.randint(5, 90)), best("loss", 2), newer(minutes=1)]
    keep = any_of(*chance.sample(keep, chance.randint(1, 3)), *[at_most("900")] * chance.randint(0, 1))
    quick = told.replay(save, keep)

    def in_full(self, _):
        self._explain()
        return set()

    monkeypatch.setattr(Shelf, "_unwanted", in_full)
    assert told.replay(save, keep) == quick


def test_a_replay_that_keeps_thousands_does_not_plan_them_all_for_each_save(monkeypatch):
    """Two thousand took a minute, three thousand took two and more."""
    told = Told()
    told.train(2000, save=(2000,))
    plans = []
    monkeypatch.setattr(shelf, "plan_retention", lambda *facts: plans.append(facts) or plan_retention(*facts))
    assert len(steps(told.replay(every(steps=2), every(steps=1)).planned)) == 1000
    assert len(plans) == 1


def test_a_policy_that_keeps_too_many_to_be_replayed_is_refused(monkeypatch):
    monkeypatch.setattr(replaying, "MOST_LOOKS", 40)
    with pytest.raises(InvalidPolicy, match=r"latest\(1000\) keeps 9 checkpoints after 9 saves"):
        plain().replay(every(steps=10))
    assert steps(plain().replay(every(steps=10), latest(2)).planned) == [90, 100]
