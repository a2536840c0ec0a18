"""Standing holds: what a killed trainer had staged is what the next launch resumes from, and nothing appears later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import standing_worker
from holds_kit import fill, load_all, save

from holdfast.catalog import launches, layout, owners
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.holds import find_holds, find_saves
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.owners import Liveness
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import begin_save
from holdfast.catalog.standing import Standing, find_standing, is_standing, saver_is_dead, stand, trainer_lives
from holdfast.catalog.store import open_store
from holdfast.catalog.verifying.verify import verify
from holdfast.catalog.waiting import Waiter
from holdfast.errors import Fenced, StorageUnavailable
from holdfast.records import LaunchInfo, Owner
from holdfast.saver import main
from holdfast.seals import unseal

ELSEWHERE = Owner(host="another", boot="boot", pid=1, started="1")


@pytest.fixture
def run(store):
    return store.create_run("gpt2")


def heads(run: Run) -> list[int]:
    return [record.step for record in run.records()]


# --- The object


def test_a_saver_that_stands_by_is_in_nobodys_way(run):
    """It protects nothing and publishes nothing, so no sweep has to wait for it."""
    launch = begin_launch(run, deadline=0)
    first, second = (save(launch, step, [b"weights %d" % step]).address for step in (1, 2))
    standing = stand(launch)
    assert standing.stands()
    assert find_standing(run.store, run.number) == [standing]
    assert is_standing(standing.name)
    assert find_holds(run.store, run.number) == []
    assert execute(run.store, plan_sweep(run.store, run, [first]), run=run, seconds=600).records == (first,)
    report = verify(run.store, deep=True)
    assert (report.ok, report.unknown) == (True, ())
    load_all(run.store, second)


def test_it_ends_once_and_for_all(run):
    standing = stand(begin_launch(run, deadline=0))
    standing.end()
    standing.end()
    assert not standing.stands()
    assert find_standing(run.store, run.number) == []
    assert saver_is_dead(standing)


def test_names_of_other_holds_are_not_taken_for_it(run):
    launch = begin_launch(run, deadline=0)
    with begin_save(launch, 0, 1):
        names = [listed.name for listed in run.store.storage.list(layout.holds_folder(run.number))]
        assert [is_standing(name) for name in names] == [False]
    for leaf in ("saver-000001-0123456789abcde.json", "saver-1-0123456789abcdef.json", "reader-0123456789abcdef.json"):
        assert not is_standing(layout.hold(run.number, leaf.removesuffix(".json")))
    assert is_standing(layout.hold(run.number, "saver-1234567-0123456789abcdef"))


def test_a_saver_that_begins_after_a_newer_launch_does_not_stand(run):
    """That launch may have looked for it, and resumed from what there was."""
    first = begin_launch(run, deadline=0)
    begin_launch(run, deadline=0)
    standing = stand(first)
    assert not standing.stands()
    with pytest.raises(Fenced):
        save(first, 600, [b"weights"], standing=standing)
    assert list(run.store.storage.list(layout.holds_folder(run.number))) == []


def test_whether_somebody_lives_is_said_of_the_saver_and_of_its_trainer(run):
    standing = stand(begin_launch(run, deadline=0))
    for seen, dead in ((Liveness.ALIVE, False), (Liveness.UNKNOWN, False), (Liveness.DEAD, True)):
        store = replace(run.store, liveness=lambda owner, seen=seen: seen)
        other = Standing(store, standing.name, standing.launch)
        assert (saver_is_dead(other), trainer_lives(other, run.number)) == (dead, seen is Liveness.ALIVE)
    lost = replace(standing, launch=7)
    assert not trainer_lives(lost, run.number)


# --- Who waits for whom, with savers that are pretended to be on another host


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.time, self.asleep = 0.0, lambda: None

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.asleep()

    @property
    def waiter(self) -> Waiter:
        return Waiter(now=lambda: self.time, sleep=self.sleep)


def on_another_host(run: Run) -> Run:
    return Run(replace(run.store, whoami=lambda: ELSEWHERE), run.info)


def test_a_saver_on_another_host_is_waited_for_up_to_the_deadline_and_then_fenced(run):
    clock, said = Clock(), []
    first = begin_launch(on_another_host(run), deadline=0)
    standing = stand(first)
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30, report=said.append)
    assert clock.time == pytest.approx(30)
    assert said == ["waiting up to 30 s for the saver of launch 1"]
    assert not standing.stands()
    with pytest.raises(Fenced):
        save(first, 600, [b"weights"], standing=standing)
    assert run.records() == []


def test_all_that_is_waited_for_has_one_deadline(run):
    """A saver that stands by and a save that it has begun, and none of them moves."""
    clock, said = Clock(), []
    first = begin_launch(on_another_host(run), deadline=0)
    standing = stand(first)
    attempt = begin_save(first, 0, 600, standing=standing)
    record = fill(attempt, 600, [b"weights"])
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30, report=said.append)
    assert clock.time == pytest.approx(30)
    assert "gave up on the save of run-001@600" in said[-1]
    with pytest.raises(Fenced, match="launch 2 took over the run"):
        attempt.publish(record)


def test_what_is_left_of_the_deadline_is_given_to_the_save_that_was_begun(run):
    """The saver ends its standing hold while its last save is under way."""
    clock = Clock()
    first = begin_launch(on_another_host(run), deadline=0)
    standing = stand(first)
    attempt = begin_save(first, 0, 600, standing=standing)
    record = fill(attempt, 600, [b"weights"])

    def go_on() -> None:
        if clock.time > 10:
            standing.end()
        if clock.time > 20 and heads(run) == []:
            attempt.publish(record)

    clock.asleep = go_on
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30)
    assert heads(run) == [600]


def test_a_damaged_standing_hold_is_waited_for_and_removed(run, damage):
    """Nobody knows whose it is, so nobody can say that he is dead."""
    clock = Clock()
    damage(run.store, stand(begin_launch(run, deadline=0)).name)
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30)
    assert clock.time >= 1  # after that, its trainer, which is this process, is seen to live
    assert find_standing(run.store, run.number) == []


def test_a_saver_of_before_a_reboot_is_not_waited_for(run, monkeypatch):
    monkeypatch.setattr(owners, "_machine", lambda: "")
    before = msgspec.structs.replace(owners.this_process(), boot="before the reboot")
    stand(begin_launch(Run(replace(run.store, whoami=lambda: before), run.info), deadline=0))
    begin_launch(run, deadline=600, report=pytest.fail)
    assert find_standing(run.store, run.number) == []


def test_a_launch_whose_own_file_is_damaged_is_waited_for(run, damage):
    """Its trainer may be dead for all that one can see."""
    clock = Clock()
    first = begin_launch(run, deadline=0)
    stand(first)
    damage(run.store, layout.launch(run.number, first.number))
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30)
    assert clock.time == pytest.approx(30)


def test_an_older_launch_that_wakes_up_late_leaves_the_saver_of_a_newer_one_alone(run):
    newer = [begin_launch(run, deadline=0) for _ in range(2)][-1]
    standing = stand(newer)
    launches._drain(Launch(run, 1), 0, pytest.fail)
    launches._drain(newer, 0, pytest.fail)
    assert standing.stands()


def test_the_savers_of_all_older_launches_are_waited_for_and_named(run, monkeypatch):
    """The second launch was killed while it waited for the saver of the first one; its own saver had begun by then."""
    clock, said, savers = Clock(), [], []
    with monkeypatch.context() as patch:
        patch.setattr(launches, "_drain", lambda *_: None)
        for _ in range(2):
            savers.append(stand(begin_launch(on_another_host(run))))
    clock.asleep = lambda: [one.end() for at, one in zip((5, 10), savers, strict=True) if clock.time > at]
    begin_launch(Run(replace(run.store, waiter=clock.waiter), run.info), deadline=30, report=said.append)
    assert said == ["waiting up to 30 s for the saver of launch 1, 2"]
    assert 10 < clock.time < 12


def test_a_run_that_is_taken_from_a_live_training_is_said_with_where_that_is(run):
    clock, said = Clock(), []
    first = stand(begin_launch(on_another_host(run), deadline=0))
    store = replace(run.store, waiter=clock.waiter, liveness=lambda owner: Liveness.ALIVE)
    begin_launch(Run(store, run.info), deadline=30, report=said.append)
    since = run.launches()[0].created
    assert said[1:] == [
        f"this takes run-001 over from launch 1 on another (pid 1, since {since}), which is still training"
    ]
    assert clock.time < 2
    assert not first.stands()


# --- Filesystems whose listings come late


def test_a_saver_looks_for_newer_launches_only_when_everybody_can_see_its_standing_hold(run):
    clock = Clock()
    first = begin_launch(run, deadline=0)
    slow = replace(run.store, waiter=clock.waiter, visibility=3.0)
    clock.asleep = lambda: begin_launch(run, deadline=0)
    standing = stand(Launch(Run(slow, run.info), first.number))
    assert clock.time == 6
    assert not standing.stands()


def test_a_launch_looks_for_saves_only_when_everybody_can_see_that_the_standing_holds_are_gone(run):
    """A saver that still saw its own has made the hold of its save by then."""
    clock, attempts = Clock(), []
    first = begin_launch(on_another_host(run), deadline=0)
    standing = stand(first)

    class Stale(Standing):
        """What a client with a cached listing sees."""

        def stands(self) -> bool:
            return True

    def save_in_time() -> None:
        if not attempts and not standing.stands():
            stale = Stale(run.store, standing.name, 1)
            attempts.append(begin_save(first, 0, 600, standing=stale))

    clock.asleep = save_in_time
    begin_launch(Run(replace(run.store, waiter=clock.waiter, visibility=3.0), run.info), deadline=0)
    record = fill(attempts[0], 600, [b"weights"])
    with pytest.raises(Fenced, match="launch 2 took over the run"):
        attempts[0].publish(record)


# --- With real processes


class Process:
    """A trainer or a saver; see tests/kits/standing_worker.py."""

    def __init__(self, place: Path, role: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, standing_worker.__file__, str(place), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.began = self.heard()

    def heard(self) -> str:
        return self._process.stdout.readline().strip()

    def told(self, line: str) -> str:
        """Has it do something; gives what it says then."""
        self.tell(line)
        return self.heard()

    def tell(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def kill(self, *, awaited: bool = True) -> None:
        """With -9. It is a zombie until `end`, as under a launcher that is slow to notice."""
        self._process.kill()
        if awaited:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def trained(tmp_path):
    """A run on a real filesystem, its trainer and the saver that stands by."""
    opened = open_store(tmp_path, create=True).create_run("gpt2")
    trainer = Process(tmp_path, "train")
    assert trainer.began == "launched 1"
    saver = Process(tmp_path, "stand_by")
    assert saver.began == "standing True"
    yield opened, trainer, saver
    for process in (trainer, saver):
        process.end()


def test_a_new_launch_waits_until_the_saver_of_a_killed_trainer_has_finished(trained):
    """Hazards 5: nothing in the store speaks yet of the save when the launch begins; it has begun when this returns."""
    run, trainer, saver = trained
    trainer.kill(awaited=False)  # for an instant it may still look alive
    said = []

    def tell(text: str) -> None:
        said.append(text)
        for line in ("save 600", "save 700", "end"):
            saver.tell(line)

    assert find_saves(run.store, run.number) == []
    begin_launch(run, deadline=60, report=tell)
    assert said == ["waiting up to 60 s for the saver of launch 1"]
    assert [saver.heard() for _ in range(3)] == ["done"] * 3
    assert run.lineage().head.step == 700
    assert find_standing(run.store, run.number) == []
    load_all(run.store, run.records()[-1].address)


def test_a_saver_that_was_killed_with_its_trainer_is_not_waited_for(trained):
    run, trainer, saver = trained
    trainer.kill()
    saver.kill()
    begin_launch(run, deadline=600, report=pytest.fail)
    assert heads(run) == [500]
    assert find_standing(run.store, run.number) == []


def test_a_saver_that_is_killed_while_it_is_waited_for_is_waited_for_no_longer(trained):
    run, trainer, saver = trained
    trainer.kill()
    begin_launch(run, deadline=600, report=lambda text: saver.kill())
    assert heads(run) == [500]
    assert find_standing(run.store, run.number) == []


def test_a_saver_that_is_killed_in_the_middle_of_its_save_leaves_the_checkpoint_before(trained):
    run, trainer, saver = trained
    assert saver.told("begin 600") == "done"
    trainer.kill()
    begin_launch(run, deadline=600, report=lambda text: saver.kill())
    assert heads(run) == [500]
    assert [one.step for one in run.published().aborted] == [600]
    assert list(run.store.storage.list(layout.holds_folder(run.number))) == []


def test_who_does_not_want_to_wait_fences_the_saver(trained):
    run, trainer, saver = trained
    trainer.kill()
    begin_launch(run, deadline=0, report=pytest.fail)
    assert saver.told("save 600") == "Fenced"
    assert heads(run) == [500]
    assert list(run.store.storage.list(layout.holds_folder(run.number))) == []


def test_a_saver_that_was_stopped_comes_back_and_may_save_no_more(trained):
    """By the scheduler, a debugger, a laptop that was closed."""
    run, trainer, saver = trained
    trainer.kill()
    saver.stop()
    begin_launch(run, deadline=0.2)
    saver.go_on()
    assert saver.told("save 600") == "Fenced"
    assert heads(run) == [500]


def test_a_saver_that_was_stopped_in_the_middle_of_its_save_loses_the_race_for_the_name(trained):
    run, trainer, saver = trained
    assert saver.told("begin 600") == "done"
    trainer.kill()
    saver.stop()
    begin_launch(run, deadline=0.2)
    saver.go_on()
    assert saver.told("publish 600") == "Fenced"
    assert heads(run) == [500]


def test_the_saver_of_a_trainer_that_lives_is_not_waited_for(trained):
    """Two of one run were started by mistake: the newer one wins, and waits for no end of the other one's training."""
    run, _, saver = trained
    begin_launch(run, deadline=600)
    assert saver.told("save 600") == "Fenced"
    assert heads(run) == [500]


def test_a_saver_without_a_newer_launch_needs_no_standing_hold(trained):
    """Somebody has cleaned up by hand: that alone fences nobody."""
    run, _, saver = trained
    for one in find_standing(run.store, run.number):
        one.end()
    assert saver.told("save 600") == "done"
    assert heads(run) == [500, 600]


def test_a_trainer_is_known_by_its_launch(trained):
    run, trainer, _ = trained
    (standing,) = find_standing(run.store, run.number)
    assert trainer_lives(standing, run.number)
    info = unseal(name := layout.launch(run.number, 1), run.store.storage.read(name), LaunchInfo)
    assert run.store.liveness(info.owner) is Liveness.ALIVE
    trainer.kill()
    assert not trainer_lives(standing, run.number), "a zombie trains no more"


def test_a_saver_that_cannot_clear_up_after_another_one_leaves_no_standing_hold(run, monkeypatch):
    """It tries again, and would leave one each time: a launch on another host waits for all of them."""

    def refuse(store, number):
        raise StorageUnavailable("the disk is gone")

    launch = begin_launch(run, deadline=0)
    monkeypatch.setattr(main, "find_saves", refuse)
    with pytest.raises(StorageUnavailable):
        main._take_over(launch)
    assert find_standing(run.store, run.number) == []
