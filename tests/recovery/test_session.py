"""What a launch goes on from, with real stores and no model."""

from __future__ import annotations

import pytest
from holds_kit import save

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.store import Store, create_store
from holdfast.errors import BeingDeleted, RefusedFresh
from holdfast.ids import ObjectName, RunName, RunNumber
from holdfast.policy import every, latest
from holdfast.records import Record
from holdfast.recovery.environment.launcher import LauncherFacts
from holdfast.recovery.launching.beginning import open_session
from holdfast.recovery.launching.choice import NewRun
from holdfast.recovery.launching.resume import Rejected, candidates
from holdfast.recovery.launching.session import Plan, Session
from holdfast.storage.local import LocalStorage

GPT = RunName("gpt")


@pytest.fixture
def store(tmp_path) -> Store:
    return create_store(LocalStorage(tmp_path))


def damage(store: Store, name: ObjectName) -> None:
    data = bytearray(store.storage.read(name))
    data[len(data) // 2] ^= 1
    store.storage.delete([name])
    store.storage.create(name, bytes(data))


def opened(store: Store, want: object, resume: str = "auto", job: str | None = None) -> Session:
    facts = LauncherFacts(job=job, restarts=0, rank=0, world=1)
    plan = Plan(
        url=store.url,
        want=want,
        resume=resume,
        config={},
        save=every(steps=1),
        keep=latest(1),
        total=None,
        facts=facts,
    )
    return open_session(plan, tell=lambda text: None)


def begun(store: Store, name: str | None = GPT) -> Record:
    """A run with one launch and one checkpoint."""
    return save(begin_launch(store.create_run(name), deadline=0), 1, [b"w" * 100])


def loaded(session: Session) -> Record | None:
    return session.resume(lambda record: None)


@pytest.mark.parametrize("how", ["damaged", "lost"])
@pytest.mark.parametrize("want", [GPT, None])
def test_an_older_run_of_the_name_is_not_continued_while_a_newer_run_cannot_be_read(store, how, want):
    """I5: yesterday's run would go on, and today's be forgotten."""
    begun(store, want), begun(store, want)
    name = layout.run_info(RunNumber(2))
    damage(store, name) if how == "damaged" else store.storage.delete([name])
    with pytest.raises(RefusedFresh, match=r"runs/002/run\.json cannot be read.*say run=1"):
        opened(store, want)
    assert store.run(1).launch_numbers() == [1], "a refused launch fences nobody"


def test_who_says_which_run_is_meant_is_not_refused(store):
    first = begun(store)
    begun(store)
    damage(store, layout.run_info(RunNumber(2)))
    assert opened(store, RunNumber(1)).run.number == 1
    assert opened(store, GPT, f"run-001@{first.step}").run.number == 1
    assert opened(store, NewRun(GPT)).run.number == 3


def test_a_damaged_run_that_is_older_than_the_one_that_is_meant_is_in_nobodys_way(store):
    begun(store), begun(store)
    damage(store, layout.run_info(RunNumber(1)))
    assert opened(store, GPT).run.number == 2


def test_a_run_whose_newest_start_cannot_be_read_is_not_resumed_by_guess(store):
    """Hazards 2: the rollback would be undone, and the poisoned step be trained on."""
    launch = begin_launch(store.create_run(GPT), deadline=0)
    healthy = save(launch, 1, [b"w" * 100])
    save(launch, 2, [b"nan" * 50])
    launch.record_start(1, healthy.address, "NaN")
    start = layout.start(launch.run.number, launch.number, 1)
    assert loaded(opened(store, GPT)) == healthy
    for one in (ObjectName(str(start).replace("001.json", "000.json").replace("000001", "000002")), start):
        damage(store, one)
    rejected = Rejected()
    assert list(candidates(store, store.run(1), rejected)) == []
    assert "000002.000.json" in str(rejected)
    with pytest.raises(RefusedFresh, match=r"000002\.000\.json.*name a checkpoint"):
        loaded(opened(store, GPT))
    assert loaded(opened(store, GPT, healthy.id)) == healthy
    assert loaded(opened(store, GPT)) == healthy, "and from then on all is well again"


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_fork_resumes_although_the_run_that_it_left_cannot_be_opened(store, how):
    origin = begun(store, "base")
    store.create_run("tuned", forked_from=origin.address)
    name = layout.run_info(RunNumber(1))
    damage(store, name) if how == "damaged" else store.storage.delete([name])
    assert loaded(opened(store, RunName("tuned"))) == origin


def test_a_restore_from_another_run_is_noted_before_any_sweep_can_miss_it(store, monkeypatch):
    """Between the load and the start nothing else says that the record is needed."""
    record = begun(store, "base")
    store.create_run(GPT, forked_from=record.address)
    session = opened(store, GPT)
    note = type(session.launch).record_start

    def swept_meanwhile(launch, *rest):
        run = store.run(1)
        store.storage.delete([layout.run_info(RunNumber(2))])  # so that it is no fork, either
        assert execute(store, plan_sweep(store, run, [record.address])).records == ()
        return note(launch, *rest)

    monkeypatch.setattr(type(session.launch), "record_start", swept_meanwhile)
    assert loaded(session) == record


def test_a_restore_of_what_a_sweep_has_announced_is_not_noted(store):
    record = begun(store, "base")
    store.create_run(GPT, forked_from=record.address)
    session = opened(store, GPT)

    def announced(record):
        sessions_sweep(store, record)

    with pytest.raises(BeingDeleted):
        session.resume(announced)
    assert session.run.starts() == []


def sessions_sweep(store: Store, record: Record) -> None:
    from holdfast.catalog.objects import create_once
    from holdfast.clock import utc_now
    from holdfast.records import Sweep

    id_ = "e" * 16
    sweep = Sweep(id=id_, created=utc_now(), owner=store.owner, objects=[str(record.name)])
    create_once(store.storage, layout.sweep(id_), sweep)
