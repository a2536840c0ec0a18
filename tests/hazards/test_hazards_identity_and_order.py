"""Which checkpoint is which, and which is the newest: rollbacks, launches, clocks, names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from lives import Death, filled, line, records, stored
from torch import nn

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog import launches, saves
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.naming.tags import create_tag
from holdfast.errors import AlreadyOpen, InvalidInput, InvalidName, RefusedFresh, UnknownReference, Unusable
from holdfast.ids import TagName
from holdfast.recovery.environment.launcher import LauncherFacts
from holdfast.testing.faults import flip_bit


def toy(value: float = 0.0) -> nn.Module:
    return filled(nn.Linear(20, 20), value)


def trained(folder: Path, total: int, *, run="toy", after=None, die=None, model=None, **options) -> nn.Module:
    """Step n leaves all weights at n; ``after(ckpt, model)`` comes before the block ends."""
    model = toy() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"save": every(steps=1), "keep": latest(99), **options}
    with Checkpointer(folder, run=run, state={"model": model, "optimizer": optimizer}, **options) as ckpt:
        go_on(ckpt, model, optimizer, total, die)
        if after is not None:
            after(ckpt, model, optimizer)
    return model


def go_on(ckpt, model, optimizer, total, die=None, offset=0.0):
    for step in ckpt.steps(total):
        optimizer.step()
        filled(model, step + 1 + offset)
        if step == die:
            raise Death


def value(model: nn.Module) -> float:
    assert torch.equal(model.weight, torch.full_like(model.weight, model.weight[0, 0].item()))
    return model.weight[0, 0].item()


# --- Going back in the same launch


def test_after_a_rollback_in_the_same_launch_a_step_is_saved_anew_and_does_not_collide(tmp_path):
    """Hazard 1: the clean step 3 was dropped in favour of the poisoned one of the same run, launch and step."""

    def again(ckpt, model, optimizer):
        poisoned = ckpt.last
        create_tag(holdfast.open(tmp_path), TagName("poisoned"), poisoned.address)  # or retention takes it
        ckpt.restore("run-001@2")
        assert value(model) == 2
        go_on(ckpt, model, optimizer, 3, offset=0.5)
        assert ckpt.last.id != poisoned.id
        assert (ckpt.last.launch, ckpt.last.timeline, ckpt.last.step) == (1, poisoned.timeline + 1, 3)

    trained(tmp_path, 3, after=again)
    assert value(stored(tmp_path, "run-001@3", toy())) == 3.5
    assert value(stored(tmp_path, "poisoned", toy())) == 3, "asked for by name, the other one is still there"


def test_rolling_back_twice_to_one_step_gives_three_checkpoints_of_it(tmp_path):
    """Hazard 1: the timeline is part of the identity, however often one goes back."""

    def twice(ckpt, model, optimizer):
        for offset in (0.25, 0.5):
            create_tag(holdfast.open(tmp_path), TagName(f"before-{offset}"), ckpt.last.address)
            ckpt.restore("run-001@1")
            go_on(ckpt, model, optimizer, 2, offset=offset)

    trained(tmp_path, 2, after=twice)
    same = [record for record in records(tmp_path) if record.step == 2]
    assert [record.timeline for record in same] == [0, 1, 2]
    assert [value(stored(tmp_path, record.id, toy())) for record in same] == [2, 2.25, 2.5]


def test_a_relaunch_after_a_rollback_and_a_kill_stays_on_the_timeline_that_was_chosen(tmp_path):
    """Hazard 2, in full: by step number the relaunch would return to the poisoned 6."""

    def roll_back_and_die(ckpt, model, optimizer):
        ckpt.restore("run-001@2")
        go_on(ckpt, model, optimizer, 9, die=3, offset=0.5)

    with pytest.raises(Death):
        trained(tmp_path, 6, after=roll_back_and_die)
    assert line(tmp_path) == [1, 2, 3]
    assert value(trained(tmp_path, 3)) == 3.5, "the relaunch has resumed the clean step 3"
    assert holdfast.open(tmp_path).run(1).starts()[-1].resumed_from.step == 3


def test_a_relaunch_after_a_rollback_that_has_not_saved_yet_stands_where_it_went_back_to(tmp_path):
    """Hazard 2: lineage does not hang on the first save after the rollback."""

    with pytest.raises(Death):
        trained(tmp_path, 9, die=5)
    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    with pytest.raises(Death), Checkpointer(tmp_path, run="toy", keep=latest(99), state=state) as ckpt:
        ckpt.restore("run-001@2")
        raise Death
    assert value(trained(tmp_path, 2)) == 2
    assert resolve(holdfast.open(tmp_path), "run-001").step == 2


def test_the_walk_back_follows_parents_and_not_step_numbers(tmp_path):
    """Hazard 2: the newest is damaged; what comes next is its parent, not the higher step of the abandoned line."""

    def roll_back(ckpt, model, optimizer):
        ckpt.restore("run-001@2")
        go_on(ckpt, model, optimizer, 3, offset=0.5)

    trained(tmp_path, 6, after=roll_back)
    newest = records(tmp_path)[-1]
    assert newest.step == 3
    flip_bit(tmp_path / newest.name, 1000)
    model = toy()
    with Checkpointer(tmp_path, run=1, state={"model": model, "optimizer": torch.optim.SGD(model.parameters())}) as c:
        c.restore()
        assert (c.last.step, value(model)) == (2, 2.0)


def test_keeping_the_latest_counts_on_the_line_after_a_rollback(tmp_path):
    """Hazard 2: latest(3) would have kept the poisoned 4, 5, 6 and deleted the new 3."""

    def roll_back(ckpt, model, optimizer):
        ckpt.restore("run-001@2")
        go_on(ckpt, model, optimizer, 4, offset=0.5)

    trained(tmp_path, 6, after=roll_back, keep=latest(5))
    trained(tmp_path, 5, keep=latest(3))
    assert line(tmp_path)[-3:] == [3, 4, 5]
    assert value(stored(tmp_path, "run-001@3", toy())) == 3.5


def test_going_back_by_hand_leaves_one_meaning_for_each_step(tmp_path):
    """Hazard 2: after resume=run-001@3 most later steps had two records, and run-001@4 two meanings."""
    trained(tmp_path, 6)
    store = holdfast.open(tmp_path)
    create_tag(store, TagName("four"), resolve(store, "run-001@4").address)
    trained(tmp_path, 5, resume="run-001@3")
    assert [record.step for record in records(tmp_path)].count(4) == 2
    assert resolve(store, "run-001@4").launch == 2
    abandoned = next(record for record in records(tmp_path) if record.step == 6)
    with pytest.raises(UnknownReference, match=abandoned.id):
        resolve(store, "run-001@6")


# --- Who is the newest launch


def test_an_older_launch_that_wakes_up_is_fenced_and_changes_nothing(tmp_path):
    """Hazards 4 and 5: paused by the scheduler, it comes back when the newer launch has saved."""
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    old = Checkpointer(tmp_path, run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=1))
    loop = old.steps(9)
    next(loop)
    store = holdfast.open(tmp_path)
    launches.begin_launch(store.run(1), deadline=0)  # another host
    optimizer.step()
    before = [record.id for record in records(tmp_path)]
    with pytest.raises(holdfast.errors.Fenced):
        next(loop)
    assert [record.id for record in records(tmp_path)] == before
    old.close()


def test_a_launch_that_is_fenced_between_hold_and_publish_publishes_nothing(tmp_path, monkeypatch):
    """Hazard 4: the look at the newer launch and the commit compete for one name; there is no gap between them."""
    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    publish = saves.SaveAttempt.publish

    def overtaken(self, record, sizes):
        launches.begin_launch(holdfast.open(tmp_path).run(1), deadline=0)
        return publish(self, record, sizes)

    with Checkpointer(tmp_path, run="toy", state=state, save=every(steps=1)) as ckpt:
        monkeypatch.setattr(saves.SaveAttempt, "publish", overtaken)
        with pytest.raises(holdfast.errors.Fenced):
            ckpt.save()
    assert records(tmp_path) == []


# --- Never fresh in silence


def restarted(monkeypatch, **facts):
    given = LauncherFacts(**{"job": None, "restarts": 0, "rank": 0, "world": 1, **facts})
    monkeypatch.setattr("holdfast.recovery.training.lifetime.launcher_facts", lambda: given)


def test_a_restarted_job_with_an_empty_mount_is_refused(tmp_path, monkeypatch):
    """Hazard 28: the mount is missing, the folder is an empty local one, and the launcher says it is a restart."""
    restarted(monkeypatch, job="torchrun:7", restarts=1)
    with pytest.raises(RefusedFresh, match="right disk mounted"):
        trained(tmp_path / "mnt", 1)
    assert not (tmp_path / "mnt").exists(), "the root disk was not written to"


def test_never_means_never_from_the_work_of_another_job(tmp_path, monkeypatch):
    """Hazard 28: resume=never in a command line that the launcher repeats began at 0 with every restart."""
    restarted(monkeypatch, job="slurm:77")
    with pytest.raises(Death):
        trained(tmp_path, 5, die=3, resume="never")
    restarted(monkeypatch, job="slurm:77", restarts=1)
    trained(tmp_path, 5, resume="never")
    assert [start.resumed_from.step for start in holdfast.open(tmp_path).run(1).starts()[1:]] == [3]
    restarted(monkeypatch, job="slurm:78")
    trained(tmp_path, 1, resume="never")
    assert [info.number for info in holdfast.open(tmp_path).runs()] == [1, 2]


def test_a_slip_in_the_name_of_a_run_is_no_fresh_start(tmp_path):
    """Hazard 28: a typo in run= made a new run at zero."""
    trained(tmp_path, 2, run="gpt2-small")
    with pytest.raises(RefusedFresh, match="gpt2-small"):
        trained(tmp_path, 2, run="gpt2-smal")
    assert [info.name for info in holdfast.open(tmp_path).runs()] == ["gpt2-small"]
    trained(tmp_path, 1, run=holdfast.new_run("gpt2-smal"))
    assert [info.name for info in holdfast.open(tmp_path).runs()] == ["gpt2-small", "gpt2-smal"]


def test_going_back_by_hand_is_done_once_per_job(tmp_path, monkeypatch):
    """Hazards 2 and 28: the launcher repeats resume=run-001@2; the restart goes on from its own work."""
    trained(tmp_path, 4)
    restarted(monkeypatch, job="slurm:9")
    with pytest.raises(Death):
        trained(tmp_path, 9, resume="run-001@2", die=6)
    restarted(monkeypatch, job="slurm:9", restarts=1)
    trained(tmp_path, 7, resume="run-001@2")
    assert [start.resumed_from.step for start in holdfast.open(tmp_path).run(1).starts()[1:]] == [2, 6]


# --- Clocks


def test_a_wall_clock_that_jumps_back_changes_no_order(tmp_path, monkeypatch):
    """Users-ask 20: the newest is the newest by lineage; created times are for people."""
    days = iter(range(28, 0, -1))
    monkeypatch.setattr("holdfast.saver.publishing.utc_now", lambda: f"2026-01-{next(days):02}T00:00:00Z")
    trained(tmp_path, 4, keep=latest(2))
    assert [record.step for record in records(tmp_path)] == [3, 4]
    created = [record.created for record in records(tmp_path)]
    assert created == sorted(created, reverse=True)
    assert value(trained(tmp_path, 4)) == 4


def test_saving_by_time_goes_by_the_clock_that_cannot_jump(tmp_path, monkeypatch):
    """A wall clock set back an hour must not stop the saves, one set forward must not cause them."""
    now = 0.0
    monkeypatch.setattr("holdfast.recovery.saving.triggers.time.monotonic", lambda: now)
    monkeypatch.setattr("time.time", lambda: pytest.fail("the wall clock was asked"))
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, run="toy", state=state, save=every(minutes=1), keep=latest(9)) as ckpt:
        for step in ckpt.steps(4):
            optimizer.step()
            filled(model, step + 1.0)  # what looks wrong is logged, and logging looks at the wall clock
            now += 25.0
    assert [record.step for record in records(tmp_path)] == [3, 4]


# --- Several in one process, names, configuration


def test_a_cell_that_is_run_again_closes_the_idle_checkpointer(tmp_path, caplog):
    """Hazard 45: the second one met its own hold."""
    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    first = Checkpointer(tmp_path, run="toy", state=state)
    first.save()
    second = Checkpointer(tmp_path, run="toy", state=state)
    with caplog.at_level(logging.WARNING):
        second.restore()
    assert "the first one is closed" in caplog.text
    with pytest.raises(Unusable):
        first.save()
    assert second.last.id == records(tmp_path)[0].id
    second.close()


def test_a_loop_inside_a_loop_of_one_run_is_refused(tmp_path):
    """Hazard 45."""
    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    with Checkpointer(tmp_path, run="toy", state=state) as outer:
        for _ in outer.steps(1):
            with pytest.raises(AlreadyOpen), Checkpointer(tmp_path, run="toy", state=state) as inner:
                next(inner.steps(1))
            state["optimizer"].step()
    assert [(record.launch, record.step) for record in records(tmp_path)] == [(1, 1)], "the outer loop is not fenced"


def test_two_checkpointers_of_two_runs_leave_no_hook_and_no_handler_behind(tmp_path):
    """Hazard 45: a GAN with two of them; whichever loop ends first takes nothing of the other's away."""
    import signal

    before = signal.getsignal(signal.SIGTERM)
    pairs = [(toy(), f"r{number}") for number in range(2)]
    ckpts, loops, optimizers = [], [], []
    for model, name in pairs:
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.0))
        state = {"model": model, "optimizer": optimizers[-1]}
        ckpts.append(Checkpointer(tmp_path, run=name, state=state, save=every(steps=1), keep=latest(9)))
        loops.append(ckpts[-1].steps(3))
        next(loops[-1])
    for _ in range(3):
        for optimizer, loop in zip(optimizers, loops, strict=True):
            optimizer.step()
            next(loop, None)
    for ckpt in ckpts:
        ckpt.close()
    assert [[record.step for record in records(tmp_path, run)] for run in (1, 2)] == [[1, 2, 3], [1, 2, 3]]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/x", "..", ".", "", "con\0", "[/x]", "exp[lr=1e-4]", "a b", "x" * 300]
)
def test_names_that_are_paths_or_markup_are_no_run_names(tmp_path, name):
    """Hazard 48: one message for all, before anything is touched."""
    with pytest.raises(InvalidName):
        trained(tmp_path / "store", 1, run=name)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "last", "run-001", "@good", "x" * 300])
def test_names_that_mean_something_else_are_no_tags(tmp_path, name):
    """Hazard 48: and the refusal comes before the save, not after it."""
    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    with Checkpointer(tmp_path, run="toy", state=state) as ckpt:
        with pytest.raises(InvalidName):
            ckpt.save(tag=name)
        assert ckpt.last is None


def test_two_runs_whose_names_differ_in_case_alone_do_not_share_a_file(tmp_path):
    """Hazards 29 and 48: names are fields; folders are numbers."""
    trained(tmp_path, 1, run="Base")
    with pytest.raises(RefusedFresh, match="Base"):
        trained(tmp_path, 1, run="base")
    trained(tmp_path, 1, run=holdfast.new_run("base"))
    folders = sorted(path.name for path in (tmp_path / "catalog" / "runs").iterdir())
    assert folders == ["001", "002"]


def test_a_changed_configuration_is_said_and_the_total_may_grow(tmp_path, caplog):
    """Hazard 52: each changed key is named; total_steps= is no configuration, and may grow."""
    trained(tmp_path, 2, config={"lr": 0.1, "batch": 8})
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, 3, config={"lr": 0.2, "batch": 8})
    assert "lr: 0.1 -> 0.2" in caplog.text
    assert "batch" not in caplog.text
    assert line(tmp_path) == [1, 2, 3]
    digests = [record.config_digest for record in records(tmp_path)]
    assert digests[0] == digests[1] != digests[2]


def test_more_than_one_process_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Hazards 6, 21 and 22: until ranks can agree, saving one rank's view of a world would be silent damage."""
    restarted(monkeypatch, world=2)
    with pytest.raises(InvalidInput, match="WORLD_SIZE is 2"):
        trained(tmp_path / "store", 1)
    assert not (tmp_path / "store").exists()


def test_a_forked_child_cannot_use_its_parents_checkpointer(tmp_path):
    """Hazard 19: a loader worker that holds it by accident would save over its parent's hold."""
    from toy_training import finished

    model = toy()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    with Checkpointer(tmp_path / "store", run="toy", state=state) as ckpt:
        ckpt.save()

        def child():
            try:
                ckpt.save()
            except InvalidInput as error:
                return error

        assert "belongs to the process that made it" in finished(child, tmp_path / "report")


def test_what_opens_a_session_reads_the_launcher_once(tmp_path, monkeypatch):
    """Hazard 28: the job token that makes 'never' safe is stored with the run and with every launch."""
    restarted(monkeypatch, job="slurm:5")
    trained(tmp_path, 1)
    run = holdfast.open(tmp_path).run(1)
    assert (run.info.job, [one.job for one in run.launches()]) == ("slurm:5", ["slurm:5"])
