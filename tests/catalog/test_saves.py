"""One attempt to publish: what it may reuse, what it checks, and what is left when it fails."""

from __future__ import annotations

import pytest
from holds_kit import SKELETON, draft, fill, load_all, save

from holdfast.catalog import layout
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.manifests import manifest_of, write_manifest
from holdfast.catalog.saves import begin_save
from holdfast.errors import ObjectExists, RecordConflict, SaveFailed, StorageError, StorageFull
from holdfast.ids import Digest, ObjectName
from holdfast.packs.codec import Codec
from holdfast.packs.writer import write_segments
from holdfast.records import Sweep
from holdfast.seals import seal

A, B, C = (letter * 100 for letter in (b"a", b"b", b"c"))


@pytest.fixture
def run(store):
    return store.create_run("gpt2")


@pytest.fixture
def launch(run):
    return begin_launch(run, deadline=0)


def objects(store, folder: str) -> list[str]:
    return [listed.name for listed in store.storage.list(folder)]


def announce(store, *names: str, owner=None) -> Sweep:
    sweep = Sweep(id="f" * 16, created="", owner=owner or store.owner, objects=list(names))
    store.storage.create(layout.sweep(sweep.id), seal(layout.sweep(sweep.id), sweep))
    return sweep


def test_a_published_save_is_whole_and_holds_nothing(store, run, launch):
    record = save(launch, 500, [A, B])
    load_all(store, record.address)
    assert run.records() == [record]
    assert objects(store, layout.holds_folder(run.number)) == []


def test_a_hold_names_the_record_and_what_may_be_reused(store, run, launch):
    base = save(launch, 1, [A])
    with begin_save(launch, 0, 2, bases=[base.address], shared=True) as attempt:
        (name,) = objects(store, layout.holds_folder(run.number))
        assert f"{attempt.address.order}-{attempt.address.id}" in name
        text = store.storage.read(ObjectName(name)).decode()
        assert base.id in text
        assert '"reads_shared": true' in text


def test_segments_of_a_base_are_not_written_again(store, run, launch):
    base = save(launch, 1, [A, B])
    record = save(launch, 2, [A, C], bases=[base.address])
    assert set(base.packs) < set(record.packs)
    assert len(objects(store, layout.private_packs(run.number))) == 2


def test_without_a_base_nothing_private_is_reused(launch):
    save(launch, 1, [A])
    with begin_save(launch, 0, 2) as attempt:
        assert not attempt.known(Digest.of(A))


def test_shared_packs_serve_other_runs(store, launch):
    save(launch, 1, [A], frozen=[B])
    other = begin_launch(store.create_run("other"), deadline=0)
    save(other, 1, [C], frozen=[B])
    assert len(objects(store, layout.SHARED_PACKS)) == 1


def test_private_packs_of_another_run_are_not_reused(store, launch):
    base = save(launch, 1, [A])
    other = begin_launch(store.create_run("fork", forked_from=base.address), deadline=0)
    with begin_save(other, 0, 2, bases=[base.address]) as attempt:
        assert not attempt.known(Digest.of(A))


def test_packs_of_a_save_that_was_never_committed_are_not_reused(store, run, launch):
    """They may be removed at any moment; only what a committed record names may be relied on."""
    base = save(launch, 1, [B])
    write_segments(
        store.storage,
        layout.private_packs(run.number),
        [memoryview(A), memoryview(B)],
        known=lambda _: False,
        codec=Codec.RAW,
        threads=1,
    )
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert not attempt.known(Digest.of(A))
        assert attempt.packs([Digest.of(B)]) == base.packs


def test_repacked_segments_are_still_reused(store, run, launch):
    """The record's own list of packs is out of date after a repack; the footers are not."""
    base = save(launch, 1, [A, B])
    write_segments(
        store.storage,
        layout.repacked_packs(run.number),
        [memoryview(A), memoryview(B)],
        known=lambda _: False,
        codec=Codec.RAW,
        threads=1,
    )
    store.storage.delete(map(ObjectName, base.packs))
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert attempt.known(Digest.of(A))
        assert attempt.packs([Digest.of(A)])[0].startswith(layout.repacked_packs(run.number))


def test_what_only_a_damaged_pack_has_is_written_again(launch):
    """Hazards 3: a rotten segment must not be the source of every later checkpoint."""
    base = save(launch, 1, [A])
    later = save(launch, 2, [A, B], bases=[base.address])
    (damaged,) = map(ObjectName, base.packs)
    with begin_save(launch, 0, 3, bases=[later.address], quarantined={damaged}) as attempt:
        assert not attempt.known(Digest.of(A))
        assert attempt.known(Digest.of(B))


def test_a_pack_that_was_purged_is_written_again(store, launch):
    """Hazards 3: a purge by access time removes the pack that a hundred checkpoints only refer to."""
    base = save(launch, 1, [A])
    store.storage.delete(map(ObjectName, base.packs))
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert not attempt.known(Digest.of(A))


def test_a_pack_that_a_sweep_has_announced_is_not_reused(store, launch):
    base = save(launch, 1, [A], frozen=[B])
    announce(store, *base.packs)
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert not attempt.known(Digest.of(A))
        assert not attempt.known(Digest.of(B))


def test_announcements_of_a_dead_sweeper_mean_nothing(store, launch):
    base = save(launch, 1, [A])
    gone = type(store.owner)(host=store.owner.host, boot="another boot", pid=1, started="1")
    announce(store, *base.packs, owner=gone)
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert attempt.known(Digest.of(A))


def test_nothing_is_reused_while_an_announcement_cannot_be_read(store, launch, damage):
    base = save(launch, 1, [A])
    damage(store, layout.sweep(announce(store, "data/runs/001/x").id))
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert not attempt.known(Digest.of(A))


@pytest.mark.parametrize("cut", [None, 5000])
def test_a_pack_that_is_purged_or_truncated_during_the_save_is_found_before_the_record(store, run, launch, cut):
    """Hazards 3 and 4: the length of every pack is checked right before a record names it."""
    base = save(launch, 1, [A])
    (pack,) = map(ObjectName, base.packs)
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        record = fill(attempt, 2, [A, B])
        data = store.storage.read(pack)
        store.storage.delete([pack])
        if cut:
            store.storage.create(pack, data[:cut])
        with pytest.raises(SaveFailed, match="was not published"):
            attempt.publish(record)
    assert [one.step for one in run.records()] == [1]


def test_without_the_length_check_a_record_would_name_a_purged_pack(store, launch, monkeypatch):
    monkeypatch.setattr("holdfast.catalog.saves._check_packs", lambda attempt, record, sizes: None)
    base = save(launch, 1, [A])
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        record = fill(attempt, 2, [A, B])
        store.storage.delete(map(ObjectName, base.packs))
        attempt.publish(record)
    with pytest.raises(AssertionError, match="lost segments"):
        load_all(store, record.address)


def test_a_manifest_that_is_not_there_is_found_before_the_record(run, launch):
    with pytest.raises(SaveFailed, match="manifest"), begin_save(launch, 0, 1) as attempt:
        attempt.publish(draft(attempt, Digest.of(b"nothing"), []))
    assert run.records() == []


def test_a_segment_in_no_pack_fails_the_save(launch):
    with pytest.raises(SaveFailed, match="in no pack"), begin_save(launch, 0, 1) as attempt:
        attempt.packs([Digest.of(A)])


def test_a_save_that_is_not_published_leaves_no_private_pack_and_no_hold(store, run, launch):
    with begin_save(launch, 0, 1) as attempt:
        fill(attempt, 1, [A])
        assert len(objects(store, layout.private_packs(run.number))) == 1
    assert objects(store, layout.private_packs(run.number)) == []
    assert objects(store, layout.holds_folder(run.number)) == []
    assert save(launch, 1, [A]).step == 1


def test_abandoning_twice_is_the_same_as_once(launch):
    attempt = begin_save(launch, 0, 1)
    fill(attempt, 1, [A])
    assert attempt.abandon() is None
    assert attempt.abandon() is None


def test_a_second_save_of_the_same_step_is_a_conflict(run, launch):
    """Hazards 1: "exists" is not taken for one's own commit."""
    first = save(launch, 600, [A])
    with pytest.raises(RecordConflict):
        begin_save(launch, 0, 600)
    assert run.records() == [first]


def test_of_two_attempts_at_one_step_the_second_to_publish_gets_a_conflict(run, launch):
    first, second = (begin_save(launch, 0, 600) for _ in range(2))
    records = [fill(first, 600, [A]), fill(second, 600, [B])]
    first.publish(records[0])
    with pytest.raises(RecordConflict):
        second.publish(records[1])
    second.abandon()
    assert run.records() == [records[0]]
    load_all(run.store, records[0].address)


def test_a_commit_whose_answer_was_lost_is_recognised_as_ones_own(run, launch, monkeypatch):
    """Hazards 1: the retry says "exists"; reading back and comparing the nonce tells whose it is."""
    create = run.store.storage.create

    def lose_the_answer(name, data):
        create(name, data)
        raise ObjectExists(f"{name} exists")

    with begin_save(launch, 0, 600) as attempt:
        record = fill(attempt, 600, [A])
        monkeypatch.setattr(run.store.storage, "create", lose_the_answer)
        assert attempt.publish(record) == record
    assert run.records() == [record]


def test_a_commit_in_doubt_that_did_arrive_is_not_taken_back(store, run, launch, monkeypatch):
    """The answer was an error, the record is there: removing its packs would break a visible checkpoint."""
    create = store.storage.create

    def fail_after(name, data):
        create(name, data)
        if "/records/" in name:
            raise StorageError(f"no answer for {name}")

    attempt = begin_save(launch, 0, 600)
    record = fill(attempt, 600, [A])
    monkeypatch.setattr(store.storage, "create", fail_after)
    with pytest.raises(StorageError):
        attempt.publish(record)
    monkeypatch.undo()
    assert attempt.abandon() == record
    load_all(store, record.address)


def test_a_commit_in_doubt_that_did_not_arrive_can_not_arrive_later(store, run, launch, monkeypatch):
    """The request may still be under way, so the name is taken before the packs are removed."""
    create = store.storage.create
    attempt = begin_save(launch, 0, 600)
    record = fill(attempt, 600, [A])
    late = []

    def delay(name, data):
        late.append((name, data))
        raise StorageError(f"no answer for {name}")

    monkeypatch.setattr(store.storage, "create", delay)
    with pytest.raises(StorageError):
        attempt.publish(record)
    monkeypatch.undo()
    assert attempt.abandon() is None
    with pytest.raises(ObjectExists):
        create(*late[0])
    assert run.records() == []


def test_a_publish_in_doubt_may_simply_be_repeated(run, launch, monkeypatch):
    attempt = begin_save(launch, 0, 600)
    record = fill(attempt, 600, [A])
    with monkeypatch.context() as patch:
        patch.setattr(run.store.storage, "create", _fail)
        with pytest.raises(StorageError):
            attempt.publish(record)
    assert attempt.publish(record) == record
    assert run.records() == [record]


def test_a_step_that_a_sweep_is_deleting_is_not_saved_again(store, launch):
    record = save(launch, 1, [A])
    announce(store, str(record.name))
    store.storage.delete([record.name])
    with pytest.raises(SaveFailed, match="being deleted"):
        begin_save(launch, 0, 1)


def test_a_manifest_written_outside_of_the_attempt_is_accepted_if_no_sweep_is_at_it(run, launch):
    with begin_save(launch, 0, 1) as attempt:
        record = attempt.publish(draft(attempt, write_manifest(run, SKELETON, b"{}", b"", []), []))
    assert run.records() == [record]


def test_a_sweep_that_stops_while_it_deletes_an_equal_manifest_fails_the_save(store, run, launch, monkeypatch):
    monkeypatch.setattr("holdfast.catalog.saves.SWEEP_SECONDS", 0.05)
    digest = write_manifest(run, SKELETON, b"{}", b"", [])
    announce(store, str(layout.tree(run.number, digest)))
    with pytest.raises(SaveFailed, match="did not end"), begin_save(launch, 0, 1) as attempt:
        attempt.write_manifest(manifest_of(SKELETON, b"{}", b"", []))


def _fail(name, data):
    raise StorageError(f"no answer for {name}")


@pytest.mark.parametrize("lands", [True, False])
def test_a_full_disk_after_the_record_is_there_takes_nothing_from_it(store, run, launch, monkeypatch, lands):
    """The folder is synced after the name is linked, and that can fail for want of space, too."""
    create, full = store.storage.create, []

    def filling(name, data):
        if name.startswith(layout.records_folder(run.number)) and not full:
            full.append(name)
            if lands:
                create(name, data)
            raise StorageFull("no space left")
        return create(name, data)

    with begin_save(launch, 0, 1) as attempt:
        record = fill(attempt, 1, [A])
        monkeypatch.setattr(store.storage, "create", filling)
        with pytest.raises(StorageFull):
            attempt.publish(record)
    assert run.records() == ([record] if lands else [])
    if lands:
        load_all(store, record.address)
    else:
        assert objects(store, layout.private_packs(run.number)) == []
        save(launch, 1, [A])


def test_a_full_disk_does_not_settle_a_doubt_from_before(store, run, launch, monkeypatch):
    """The first try may have landed although its answer was an error."""
    create, errors = store.storage.create, [StorageError("no answer"), StorageFull("no space left")]

    def failing(name, data):
        if name.startswith(layout.records_folder(run.number)) and errors:
            raise errors.pop(0)
        return create(name, data)

    with begin_save(launch, 0, 1) as attempt:
        record = fill(attempt, 1, [A])
        monkeypatch.setattr(store.storage, "create", failing)
        for _ in range(2):
            with pytest.raises(StorageError):
                attempt.publish(record)
    assert run.records() == []
    assert len(run.published().aborted) == 1, "the name is taken, so that what is late finds it so"
