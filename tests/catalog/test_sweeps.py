"""Deleting: what a plan takes, what keeps something in, and what a sweep leaves when it is killed."""

from __future__ import annotations

from itertools import count

import pytest
from holds_kit import fill, load_all, save

from holdfast.catalog import layout
from holdfast.catalog.deleting import sweeps
from holdfast.catalog.deleting.sweeps import OnNeed, execute, plan_sweep, standing_holds
from holdfast.catalog.holds import find_holds, find_saves
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.marks import add_mark, pin, unpin
from holdfast.catalog.naming.tags import create_tag, delete_tag
from holdfast.catalog.owners import Liveness
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import existing_store
from holdfast.errors import BeingDeleted, Damaged, Missing, SaveFailed, StillNeeded, StorageError
from holdfast.ids import Digest, ObjectName, RunNumber, TagName
from holdfast.packs.codec import Codec
from holdfast.packs.writer import write_segments
from holdfast.records import MarkKind, Owner

A, B, C, D = (letter * 100 for letter in (b"a", b"b", b"c", b"d"))
GONE = Owner(host="this host", boot="before the reboot", pid=1, started="1")
AWAY = Owner(host="another host", boot="?", pid=1, started="1")
NAMESAKE = Owner(host="this host", boot="another boot", pid=1, started="1")


@pytest.fixture
def store(store):
    """As ever, but whose process is dead or unknown is told by its owner."""
    alive = {GONE: Liveness.DEAD, AWAY: Liveness.UNKNOWN, NAMESAKE: Liveness.REBOOTED}
    return _with(store, liveness=lambda owner: alive.get(owner, Liveness.ALIVE))


@pytest.fixture
def run(store):
    return store.create_run("gpt2")


@pytest.fixture
def launch(run):
    return begin_launch(run, deadline=0)


def _with(store, **changes):
    from dataclasses import replace

    return replace(store, **changes)


def as_owner(launch, owner):
    """The same launch, in the hands of another process."""
    store = _with(launch.run.store, whoami=lambda: owner)
    return type(launch)(Run(store, launch.run.info), launch.number)


def sweep(run, *records, **options):
    delete = [record.address for record in records]
    return execute(run.store, plan_sweep(run.store, run, delete), run=run, **options)


def names(store, folder: str) -> list[str]:
    return [listed.name for listed in store.storage.list(folder)]


def everything(store) -> set[str]:
    return set(names(store, ""))


def test_deleting_a_record_takes_its_manifest_its_marks_and_its_own_packs(store, run, launch):
    first = save(launch, 1, [A])
    before = everything(store)
    second = save(launch, 2, [B])
    add_mark(store, second.address, MarkKind.GOOD, by="test")
    done = sweep(run, second)
    assert done.records == (second.address,)
    assert done.freed > 0
    assert everything(store) == before
    load_all(store, first.address)


def test_packs_that_a_later_record_reuses_stay(store, run, launch):
    first = save(launch, 1, [A, B])
    second = save(launch, 2, [A, C], bases=[first.address])
    assert sweep(run, first).packs == ()
    load_all(store, second.address)


def test_every_pack_that_holds_a_segment_of_a_survivor_stays(store, run, launch):
    """Hazards 3: the first copy may turn out to be rotten, and the second one is what it lives on."""
    save(launch, 1, [A])
    twice = save(launch, 2, [A])
    assert len(names(store, layout.private_packs(run.number))) == 2
    assert sweep(run, twice).packs == ()


def test_a_plan_changes_nothing(store, run, launch):
    record = save(launch, 1, [A])
    before = everything(store)
    plan = plan_sweep(store, run, [record.address])
    assert plan.names[0] == record.name
    assert len(plan.names) == 4
    assert everything(store) == before


def test_the_remains_of_a_killed_save_go(store, run, launch):
    record = save(launch, 1, [A])
    before = everything(store)
    killed = begin_save(as_owner(launch, GONE), 0, 2)
    fill(killed, 2, [B])
    done = sweep(run)
    assert (len(done.packs), len(done.trees)) == (1, 1)
    assert find_saves(store, run.number) == []
    assert everything(store) - before == {killed.address.name}, "the name stays taken, for now"
    sweep(run)
    assert everything(store) == before
    load_all(store, record.address)


def test_the_work_of_a_save_in_flight_stays_and_the_plan_says_why(store, run, launch):
    save(launch, 1, [A])
    with begin_save(launch, 0, 2) as attempt:
        record = fill(attempt, 2, [B])
        done = sweep(run)
        assert done.packs == done.trees == ()
        assert "the save of run-001@2" in done.kept[0].why
        attempt.publish(record)
    load_all(store, record.address)


def test_a_save_in_flight_does_not_keep_what_a_deleted_record_alone_needs(store, run, launch):
    """Retention frees space while the next save is being written."""
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    with begin_save(launch, 0, 3, bases=[second.address]):
        assert [pack.name for pack in sweep(run, first).packs] == first.packs
        assert sweep(run, second).records == ()


def test_the_base_of_a_save_in_flight_stays(store, run, launch):
    first = save(launch, 1, [A])
    with begin_save(launch, 0, 2, bases=[first.address]) as attempt:
        assert "the save of run-001@2" in sweep(run, first).kept[0].why
        attempt.publish(fill(attempt, 2, [A, B]))
    assert sweep(run, first).records == (first.address,)


def test_a_sweep_waits_for_a_save_that_began_before(store, run, launch):
    first = save(launch, 1, [A])
    attempt = begin_save(launch, 0, 2, bases=[first.address])
    record = fill(attempt, 2, [B])
    said = []

    def tell(text):
        said.append(text)
        attempt.publish(record)

    assert sweep(run, first, seconds=60, report=tell).records == (first.address,)
    assert "waiting up to 60 s for the save of run-001@2" in said[0]
    load_all(store, record.address)


def test_a_save_of_another_host_that_is_silent_keeps_its_things_unless_given_up(store, run, launch):
    fill(begin_save(as_owner(launch, AWAY), 0, 2), 2, [B])
    assert sweep(run).packs == ()
    done = sweep(run, give_up_on=(Liveness.DEAD, Liveness.UNKNOWN))
    assert len(done.packs) == 1
    assert len(run.published().aborted) == 1
    assert sweep(run).given_up == (), "its saver may still be there, and its name must stay taken"


def test_a_reader_keeps_what_it_reads(store, run, launch):
    """Hazards 31: a ten-minute load does not lose its packs half-way."""
    first = save(launch, 1, [A])
    with reading(store, [first.address]):
        assert "a reader" in sweep(run, first).kept[0].why
        load_all(store, first.address)
    assert sweep(run, first).records == (first.address,)
    with pytest.raises(Missing), reading(store, [first.address]):
        pass


def test_the_hold_of_a_dead_reader_is_removed(store, run, launch):
    first = save(launch, 1, [A])
    dead = _with(store, whoami=lambda: GONE)
    reader = reading(dead, [first.address])
    reader.__enter__()
    assert sweep(run, first).records == (first.address,)
    assert find_holds(store, run.number) == []
    reader.__exit__(None, None, None)


def test_tagged_pinned_and_forked_records_stay(store, run, launch):
    tagged, pinned, forked = (save(launch, step, [bytes([step]) * 100]) for step in (1, 2, 3))
    create_tag(store, TagName("release"), tagged.address)
    pin(store, pinned.address, by="test")
    store.create_run("fork", forked_from=forked.address)
    kept = {one.name: one.why for one in sweep(run, tagged, pinned, forked).kept}
    assert kept == {
        str(tagged.address): "tag 'release' needs it",
        str(pinned.address): "a pin needs it",
        str(forked.address): "run-002, which was forked from it needs it",
    }
    unpin(store, pinned.address, by="test")
    delete_tag(store, TagName("release"))
    assert sweep(run, tagged, pinned, forked).records == (tagged.address, pinned.address)


def test_what_the_newest_start_resumed_from_stays_for_retention_but_not_for_a_person(store, run, launch):
    record = save(launch, 1, [A])
    begin_launch(run, deadline=0).record_start(0, record.address, "newest")
    assert sweep(run, record).records == ()
    plan = plan_sweep(store, run, [record.address], on_need=OnNeed.REFUSE)
    assert execute(store, plan).records == (record.address,)


def test_a_person_who_deletes_what_is_needed_is_refused_and_nothing_goes(store, run, launch):
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    plan = plan_sweep(store, run, [first.address, second.address], on_need=OnNeed.REFUSE)
    create_tag(store, TagName("release"), first.address)
    before = everything(store)
    with pytest.raises(StillNeeded, match=r"tag 'release'"):
        execute(store, plan)
    with pytest.raises(StillNeeded, match=r"nothing was deleted"):
        plan_sweep(store, run, [first.address], on_need=OnNeed.REFUSE)
    assert everything(store) == before


def test_a_plan_that_has_grown_old_takes_nothing_that_is_needed_by_now(store, run, launch):
    first = save(launch, 1, [A])
    plan = plan_sweep(store, run, [first.address])
    second = save(launch, 2, [A, B], bases=[first.address])
    done = execute(store, plan)
    assert (done.records, done.packs) == ((first.address,), ())
    load_all(store, second.address)


def test_while_a_record_is_damaged_no_pack_and_no_tree_goes(store, run, launch, damage):
    """Nobody can tell what it needs; deleting the damaged one itself is possible."""
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    damage(store, second.name)
    done = sweep(run, first)
    assert (done.records, done.packs, done.trees) == ((first.address,), (), ())
    assert "is damaged" in done.kept[0].why
    done = sweep(run, second)
    assert len(done.packs) == 2


def test_while_a_manifest_is_damaged_no_pack_goes(store, run, launch, damage):
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    damage(store, layout.tree(run.number, second.manifest_digest))
    assert sweep(run, first).packs == ()
    assert len(sweep(run, second).packs) == 2


def test_while_a_tag_is_damaged_no_record_goes(store, run, launch, damage):
    first = save(launch, 1, [A])
    create_tag(store, TagName("elsewhere"), save(launch, 2, [B]).address)
    damage(store, layout.tag(TagName("elsewhere")))
    assert "catalog/tags/elsewhere.json is damaged" in sweep(run, first).kept[0].why
    assert run.records()[0] == first


def test_while_a_hold_is_damaged_nothing_goes(store, run, launch, damage):
    first = save(launch, 1, [A])
    begin_save(launch, 0, 2)
    damage(store, find_saves(store, run.number)[0].name)
    done = sweep(run, first)
    assert done.names == []


def rotten_pack(store, run) -> ObjectName:
    name = ObjectName(layout.private_packs(run.number) + "00" * 16 + ".pack")
    store.storage.create(name, b"no pack at all")
    return name


def test_a_pack_whose_index_is_damaged_goes_when_every_checkpoint_has_all_that_it_needs(store, run, launch):
    """Also with segments in the shared packs; verify says so."""
    record = save(launch, 1, [A], frozen=[B])
    assert [pack.name for pack in sweep(run).packs] == []
    name = rotten_pack(store, run)
    assert [pack.name for pack in sweep(run).packs] == [name]
    load_all(store, record.address)


def test_a_pack_whose_index_is_damaged_stays_while_a_record_names_it(store, run, launch):
    """It can be copied back; then it is what the record lives on."""
    record = save(launch, 1, [A])
    name = ObjectName(record.packs[0])
    whole = store.storage.read(name)
    store.storage.delete([name])
    store.storage.create(name, whole[:-20] + b"?" * 20)
    store = existing_store(store.storage)
    assert sweep(store.run(1)).packs == ()
    save(begin_launch(store.run(1), deadline=0), 2, [A])
    assert sweep(store.run(1)).packs == (), "the hint stands, although the segment is in another pack"


def test_a_pack_whose_index_is_damaged_stays_while_a_checkpoint_lacks_a_segment(store, run, launch):
    """Nobody can tell what it holds: it may be what a repack made, which no record names."""
    record = save(launch, 1, [A])
    save(launch, 2, [B])
    store.storage.delete(map(ObjectName, record.packs))
    name = rotten_pack(store, run)
    fresh = existing_store(store.storage).run(1)
    assert sweep(fresh).packs == ()
    assert [pack.name for pack in sweep(fresh, record).packs] == [name]


def test_a_pack_whose_index_is_damaged_stays_while_a_save_is_in_flight(store, run, launch):
    save(launch, 1, [A])
    rotten_pack(store, run)
    with begin_save(launch, 0, 2):
        assert "the save of run-001@2" in sweep(run).kept[0].why


def test_a_shared_pack_whose_index_is_damaged_goes_only_when_no_run_lacks_anything(store, run, launch):
    other = begin_launch(store.create_run("other"), deadline=0)
    lacks = save(other, 1, [C], frozen=[D])
    save(launch, 1, [A], frozen=[B])
    shared = next(ObjectName(name) for name in lacks.packs if name.startswith(layout.SHARED_PACKS))
    rotten = ObjectName(f"{layout.SHARED_PACKS}{'0' * 32}.pack")
    store.storage.create(rotten, b"no pack at all")
    whole = store.storage.read(shared)
    store.storage.delete([shared])
    fresh = existing_store(store.storage)
    assert execute(fresh, plan_sweep(fresh, None)).packs == ()
    store.storage.create(shared, whole)
    fresh = existing_store(store.storage)
    assert [pack.name for pack in execute(fresh, plan_sweep(fresh, None)).packs] == [rotten]


def resumed_by_hand(store, record):
    """Another run that was not forked from ``record`` and has resumed from it."""
    other = store.create_run("other")
    launch = begin_launch(other, deadline=0)
    launch.record_start(0, record.address, "asked for by hand")
    return launch


def test_what_the_newest_start_of_another_run_resumed_from_stays(store, run, launch):
    """Until its first save it is all that the other run has."""
    record = save(launch, 1, [A])
    other = resumed_by_hand(store, record)
    assert sweep(run, record).kept[0].why == "the newest start of run-002 needs it"
    with pytest.raises(StillNeeded, match="run-002"):
        plan_sweep(store, run, [record.address], on_need=OnNeed.REFUSE)
    save(other, 2, [B])
    assert sweep(run, record).records == (), "a person may delete it now, retention may not"
    plan = plan_sweep(store, run, [record.address], on_need=OnNeed.REFUSE)
    assert execute(store, plan).records == (record.address,)


def test_what_a_run_whose_own_object_is_lost_resumed_from_stays(store, run, launch):
    record = save(launch, 1, [A])
    resumed_by_hand(store, record)
    store.storage.delete([layout.run_info(RunNumber(2))])
    assert sweep(run, record).records == ()


def test_an_older_start_of_another_run_needs_nothing_any_more(store, run, launch):
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    resumed_by_hand(store, first).record_start(1, second.address, "asked for by hand")
    assert sweep(run, first, second).records == (first.address,)


def test_while_the_newest_start_of_any_run_is_damaged_no_record_goes(store, run, launch, damage):
    record = save(launch, 1, [A])
    resumed_by_hand(store, save(launch, 2, [B]))
    damage(store, layout.start(RunNumber(2), 1, 0))
    assert "runs/002/launches/000001.000.json is damaged" in sweep(run, record).kept[0].why


def test_shared_packs_go_only_when_no_run_needs_them(store, run, launch):
    first = save(launch, 1, [A], frozen=[B])
    other = store.create_run("other")
    second = save(begin_launch(other, deadline=0), 1, [C], frozen=[B])
    sweep(run, first)
    assert plan_sweep(store, None).packs == ()
    sweep(other, second)
    assert len(execute(store, plan_sweep(store, None)).packs) == 1
    assert names(store, layout.SHARED_PACKS) == []


def test_shared_packs_stay_while_a_save_anywhere_may_reuse_them(store, run, launch):
    sweep(run, save(launch, 1, [A], frozen=[B]))
    other = begin_launch(store.create_run("other"), deadline=0)
    with begin_save(other, 0, 1, shared=True):
        assert "the save of run-002@1" in execute(store, plan_sweep(store, None)).kept[0].why
    with begin_save(other, 0, 1, shared=False):
        assert len(execute(store, plan_sweep(store, None)).packs) == 1


def test_a_shared_sweep_keeps_everything_while_a_record_of_any_run_is_damaged(store, run, launch, damage):
    sweep(run, save(launch, 1, [A], frozen=[B]))
    other = begin_launch(store.create_run("other"), deadline=0)
    damage(store, save(other, 1, [C]).name)
    assert plan_sweep(store, None).packs == ()


def test_a_sweep_that_is_killed_at_any_deletion_leaves_only_whole_records(store, run, launch, monkeypatch):
    """I1: records go first; a record without its packs is what must never be seen."""
    first, second = save(launch, 1, [A]), save(launch, 2, [B])
    add_mark(store, first.address, MarkKind.GOOD, by="test")
    delete = store.storage.delete

    def one_more_each_time(limit):
        left = [limit]

        def limited(names):
            for name in names:
                if left[0] == 0:
                    raise StorageError("killed here")
                left[0] -= 1
                delete([name])

        return limited

    finished = False
    for limit in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(store.storage, "delete", one_more_each_time(limit))
            try:
                sweep(run, first)
                finished = True
            except StorageError:
                finished = False
        for record in run.records():
            load_all(store, record.address)
    assert finished
    assert run.records() == [second]
    sweep(run)
    assert names(store, layout.SWEEPS) == []


def test_a_save_that_another_machine_of_this_name_may_still_make_is_given_up_and_its_name_stays_taken(
    store, run, launch
):
    """The race for the name makes that safe, whether the process is gone or not."""
    attempt = begin_save(as_owner(launch, NAMESAKE), 0, 2)
    record = fill(attempt, 2, [B])
    assert len(sweep(run).packs) == 1
    assert sweep(run).given_up == ()
    assert names(store, layout.records_folder(run.number)) == [attempt.address.name]
    with pytest.raises(SaveFailed):
        attempt.publish(record)


def test_a_reader_on_another_machine_of_this_name_keeps_what_it_reads(store, run, launch):
    first = save(launch, 1, [A])
    with reading(_with(store, whoami=lambda: NAMESAKE), [first.address]):
        assert sweep(run, first).records == ()
        load_all(store, first.address)
    assert sweep(run, first).records == (first.address,)


def test_tombstones_of_a_sweeper_on_another_machine_of_this_name_are_honoured_and_left(store, run, launch):
    """It may be between its last look and its deletions: what it announced must not be relied on."""
    first = save(launch, 1, [A])
    namesake = _with(store, whoami=lambda: NAMESAKE)
    sweeps._announce(namesake, plan_sweep(store, run, [first.address]), "f" * 16)
    with begin_save(launch, 0, 2, bases=[first.address]) as attempt:
        assert not attempt.known(Digest.of(A))
    with pytest.raises(BeingDeleted):
        create_tag(store, TagName("release"), first.address)
    sweep(run)
    assert names(store, layout.SWEEPS) == [layout.sweep("f" * 16)]


def test_a_shared_sweep_keeps_what_a_run_needs_whose_own_object_is_lost(store, run, launch):
    """Its records are there, and so is everything that they need; only run.json has to be copied back."""
    sweep(run, save(launch, 1, [A]))
    other = store.create_run("other")
    needed = save(begin_launch(other, deadline=0), 1, [C], frozen=[B])
    lost = store.storage.read(layout.run_info(other.number))
    store.storage.delete([layout.run_info(other.number)])
    assert execute(store, plan_sweep(store, None)).packs == ()
    store.storage.create(layout.run_info(other.number), lost)
    load_all(store, needed.address)


def test_a_shared_sweep_sees_the_saves_of_a_run_whose_own_object_is_lost(store, run, launch):
    sweep(run, save(launch, 1, [A], frozen=[B]))
    other = begin_launch(store.create_run("other"), deadline=0)
    with begin_save(other, 0, 1, shared=True):
        store.storage.delete([layout.run_info(other.run.number)])
        assert "the save of run-002@1" in execute(store, plan_sweep(store, None)).kept[0].why
        assert len(standing_holds(store, None)) == 1


def test_tombstones_are_gone_after_a_sweep_and_after_a_refusal(store, run, launch):
    first = save(launch, 1, [A])
    plan = plan_sweep(store, run, [first.address], on_need=OnNeed.REFUSE)
    with reading(store, [first.address]), pytest.raises(StillNeeded):
        execute(store, plan)
    assert names(store, layout.SWEEPS) == []
    execute(store, plan)
    assert names(store, layout.SWEEPS) == []


def test_tombstones_of_a_dead_sweeper_are_cleared_by_the_next_one(store, run, launch):
    first = save(launch, 1, [A])
    dead = _with(store, whoami=lambda: GONE)
    sweeps._announce(dead, plan_sweep(store, run, [first.address]), "f" * 16)
    away = _with(store, whoami=lambda: AWAY)
    sweeps._announce(away, plan_sweep(store, run, [first.address]), "e" * 16)
    sweep(run)
    assert names(store, layout.SWEEPS) == [layout.sweep("e" * 16)]


def test_damaged_tombstones_stand_in_everybodys_way_until_the_next_sweep_removes_them(store, run, launch, damage):
    """Nobody can tell what they list, so nothing is reused and nothing is relied on; but not for ever."""
    first = save(launch, 1, [A])
    sweeps._announce(_with(store, whoami=lambda: AWAY), plan_sweep(store, run, [first.address]), "e" * 16)
    damage(store, layout.sweep("e" * 16))
    with begin_save(launch, 0, 2, bases=[first.address]) as attempt:
        assert not attempt.known(Digest.of(A))
    for rely in (
        lambda: create_tag(store, TagName("release"), first.address),
        lambda: pin(store, first.address, by="t"),
    ):
        with pytest.raises(BeingDeleted, match=r"sweeps/e{16}\.json is damaged"):
            rely()
    with pytest.raises(BeingDeleted), reading(store, [first.address]):
        pass
    with pytest.raises(BeingDeleted):
        store.create_run("fork", forked_from=first.address)
    sweep(run)
    assert names(store, layout.SWEEPS) == []
    create_tag(store, TagName("release"), first.address)


@pytest.mark.parametrize("becomes", ["damaged", "gone"])
def test_a_sweep_whose_own_tombstones_are_damaged_or_gone_deletes_nothing(
    store, run, launch, damage, monkeypatch, becomes
):
    """Somebody else may have removed them and rely on what they listed by now."""
    first = save(launch, 1, [A])
    before = everything(store)
    withdraw = sweeps._withdraw

    def spoil(plan, facts):
        (name,) = names(store, layout.SWEEPS)
        damage(store, name) if becomes == "damaged" else store.storage.delete([name])
        return withdraw(plan, facts)

    monkeypatch.setattr(sweeps, "_withdraw", spoil)
    with pytest.raises(Damaged):
        sweep(run, first)
    assert everything(store) == before


def test_what_is_read_in_another_way_each_time_is_not_removed_as_damaged(store, run, launch, monkeypatch):
    first = save(launch, 1, [A])
    sweeps._announce(_with(store, whoami=lambda: AWAY), plan_sweep(store, run, [first.address]), "e" * 16)
    read, wrong = store.storage.read, count(65)

    def wrong_each_time_anew(name):
        data = read(name)
        return data[:9] + bytes([next(wrong)]) + data[10:] if name.startswith(layout.SWEEPS) else data

    monkeypatch.setattr(store.storage, "read", wrong_each_time_anew)
    sweep(run)
    assert names(store, layout.SWEEPS) == [layout.sweep("e" * 16)]


def test_marks_of_records_that_are_gone_go(store, run, launch):
    first = save(launch, 1, [A])
    add_mark(store, first.address, MarkKind.GOOD, by="test")
    store.storage.delete([first.name])
    assert len(sweep(run).marks) == 1
    assert names(store, layout.marks_folder(run.number)) == []


def test_deleting_what_is_gone_already_is_no_error(store, run, launch):
    first = save(launch, 1, [A])
    sweep(run, first)
    assert sweep(run, first).names == []


def test_a_run_that_sweeps_after_every_save_reads_each_manifest_once(store, run, launch, monkeypatch):
    records = [save(launch, step, [bytes([step]) * 100]) for step in range(1, 6)]
    sweep(run, records[0])
    reads = []
    read = store.storage.read
    monkeypatch.setattr(store.storage, "read", lambda name: reads.append(name) or read(name))
    save(launch, 6, [A])
    reads.clear()
    sweep(run, records[1])
    assert len([name for name in reads if "/trees/" in name]) == 1


def test_a_pack_written_again_with_an_old_segment_is_noticed_by_a_run_that_remembers(store, run, launch):
    """What is remembered of a record is forgotten when one of its segments appears in another pack."""
    first = save(launch, 1, [A])
    sweep(run)
    written = write_segments(
        store.storage,
        layout.private_packs(run.number),
        [memoryview(A)],
        known=lambda _: False,
        codec=Codec.RAW,
        threads=1,
    )
    store.storage.delete(map(ObjectName, first.packs))
    assert sweep(run).packs == ()
    assert names(store, layout.private_packs(run.number)) == [written.packs[0].name]
    load_all(store, first.address)


def test_a_name_that_two_savers_race_for_stays_taken_until_both_are_over(store, run, launch):
    """A rank's saver dies and is given up; another rank's still writes, and must never win the name back."""
    fill(begin_save(as_owner(launch, GONE), 0, 2), 2, [B])
    alive = begin_save(launch, 0, 2)
    record = fill(alive, 2, [A])
    sweep(run)
    assert sweep(run).given_up == ()
    with pytest.raises(SaveFailed):
        alive.publish(record)
    assert run.records() == []
    alive.abandon()
    assert sweep(run).given_up == (alive.address,)
