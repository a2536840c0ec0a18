from __future__ import annotations

import random

import pytest

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.locating import locate
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.objects import create_once
from holdfast.catalog.readers import reading
from holdfast.catalog.repacking import repack
from holdfast.catalog.repacking.repack import execute_repack, plan_repack
from holdfast.catalog.saves import begin_save
from holdfast.catalog.verifying.verify import verify
from holdfast.clock import utc_now
from holdfast.errors import Missing, StorageFull
from holdfast.ids import Digest, ObjectName
from holdfast.packs.codec import Codec
from holdfast.packs.index import read_footer
from holdfast.packs.reader import read_segments
from holdfast.packs.writer import write_segments
from holdfast.records import Sweep

SIZE = 70_000


@pytest.fixture(autouse=True)
def seed():
    """Printed with every failure."""
    number = random.randrange(2**32)
    print("seed", number)
    random.seed(number)


def packs(store, prefix: str = "data/") -> set[ObjectName]:
    return {listed.name for listed in store.storage.list(prefix)}


def stored(store) -> int:
    return sum(listed.size for listed in store.storage.list("data/"))


def catalog(store) -> dict[str, bytes]:
    return {listed.name: store.storage.read(listed.name) for listed in store.storage.list("catalog/")}


def load(run, record) -> list[bytes]:
    """All segments of a checkpoint, as a restore would read them."""
    digests = read_manifest(run, record.manifest_digest).segment_digests()
    index = locate(run, record, digests)
    targets = [bytearray(index.get(digest).entry.length) for digest in digests]
    read_segments(run.store.storage, index.get, zip(digests, map(memoryview, targets), strict=True), threads=1)
    return [bytes(target) for target in targets]


def spoil(store, pack: ObjectName, digest: Digest) -> None:
    entry = next(entry for entry in read_footer(store.storage, pack) if entry.digest == digest)
    data = bytearray(store.storage.read(pack))
    data[entry.offset + 5] ^= 1
    store.storage.delete([pack])
    store.storage.create(pack, bytes(data))


def thinned(one, *, keep: int = 1, of: int = 8, first: int = 100) -> tuple:
    """A pack of ``of`` tensors of which a later checkpoint still needs ``keep``; the earlier one is swept."""
    store, run = one.run.store, one.run
    tensors = {f"w{n}": random.randbytes(SIZE) for n in range(of)}
    old = one.save(first, tensors)
    kept = {name: tensors[name] for name in list(tensors)[:keep]}
    new = one.save(first + 100, kept)
    execute(store, plan_sweep(store, run, [old.address]))
    (pack,) = [ObjectName(name) for name in new.packs]
    return new, pack, kept


def test_one_live_segment_no_longer_keeps_a_whole_pack(store, saver):
    """Hazards 30: retention frees nothing while most packs stay pinned by a few segments."""
    one = saver()
    new, old_pack, kept = thinned(one)
    before, bytes_before = catalog(store), stored(store)
    plan = plan_repack(store, one.run)
    assert plan.packs == (old_pack,)
    assert plan.live_bytes == SIZE
    done = execute_repack(store, plan)
    assert done.deleted == (old_pack,)
    assert done.kept == ()
    assert packs(store) == set(done.written)
    assert stored(store) < bytes_before / 4
    assert bytes_before - stored(store) >= plan.freed - 3 * 4096
    assert catalog(store) == before
    assert load(one.run, new) == list(kept.values())
    assert verify(store, deep=True).ok


def test_repacking_again_finds_nothing_to_do(store, saver):
    one = saver()
    thinned(one)
    execute_repack(store, plan_repack(store, one.run))
    assert plan_repack(store, one.run).packs == ()


def test_a_small_pack_that_is_mostly_alignment_is_left_alone(store, saver):
    """Measured by its length it would be copied again at every gc, for ever."""
    one = saver()
    one.save(100, {"w": random.randbytes(1_100)})
    assert plan_repack(store, one.run).packs == ()


@pytest.mark.parametrize(("keep", "repacked"), [(3, True), (4, False), (8, False)])
def test_only_packs_under_half_live_are_repacked(store, saver, keep, repacked):
    one = saver()
    thinned(one, keep=keep)
    assert bool(plan_repack(store, one.run).packs) is repacked


def test_a_pack_with_nothing_live_is_left_to_the_sweep(store, saver):
    one = saver()
    old = one.save(100, {"w": random.randbytes(SIZE)})
    one.save(200, {"w": random.randbytes(SIZE)})
    store.storage.delete([old.name])
    assert plan_repack(store, one.run).packs == ()


def test_a_later_save_reuses_what_was_repacked(store, saver):
    """A stale hint is no reason to write everything again."""
    one = saver()
    _, _, kept = thinned(one)
    done = execute_repack(store, plan_repack(store, one.run))
    again = one.save(300, kept)
    assert packs(store) == set(done.written)
    assert again.packs == [str(name) for name in done.written]


def test_the_codec_of_each_segment_stays(store, saver):
    one = saver(codec=Codec.ZSTD)
    soft = {f"w{n}": bytes([n]) * SIZE for n in range(8)} | {"r": random.randbytes(100)}
    old = one.save(100, soft)
    new = one.save(200, {"w0": soft["w0"]})
    execute(store, plan_sweep(store, one.run, [old.address]))
    done = execute_repack(store, plan_repack(store, one.run))
    entries = [entry for name in done.written for entry in read_footer(store.storage, name)]
    assert [entry.codec for entry in entries] == [Codec.ZSTD]
    assert load(one.run, new) == [soft["w0"]]


def test_several_packs_go_into_one(store, saver):
    one = saver()
    sources = [{f"w{n}{k}": random.randbytes(SIZE) for k in range(4)} for n in range(3)]
    olds = [one.save(100 + n, tensors) for n, tensors in enumerate(sources)]
    one.parent = None
    kept = {name: tensors[name] for tensors in sources for name in list(tensors)[:1]}
    with begin_save(one.launch, 0, 1, bases=[old.address for old in olds]) as attempt:
        assert all(attempt.known(Digest.of(value)) for value in kept.values())
    one.parent = olds[0]
    new = one.save(200, kept)
    execute(store, plan_sweep(store, one.run, [old.address for old in olds]))
    done = execute_repack(store, plan_repack(store, one.run))
    assert len(done.written) <= 1
    assert load(one.run, new) == list(kept.values())
    assert plan_repack(store, one.run).packs == ()
    assert verify(store, deep=True).ok


@pytest.mark.parametrize("who", ["reader", "saver"])
def test_while_somebody_may_be_using_a_pack_it_stays_and_goes_the_next_time(store, saver, who):
    """Hazards 31: a ten-minute load must not lose its packs half-way."""
    one = saver()
    new, old_pack, kept = thinned(one)
    at_work = reading(store, [new.address]) if who == "reader" else begin_save(one.launch, 0, 900, bases=[new.address])
    with at_work:
        done = execute_repack(store, plan_repack(store, one.run))
        assert done.deleted == ()
        assert old_pack in packs(store)
        assert "may need it" in done.kept[0][1]
    again = execute_repack(store, plan_repack(store, one.run))
    assert old_pack not in packs(store)
    assert len(packs(store)) == 1
    assert again.written == ()
    assert load(one.run, new) == list(kept.values())


def test_a_hold_of_another_run_does_not_stop_a_runs_own_repack(store, saver):
    one, other = saver(), saver()
    _, old_pack, _ = thinned(one)
    with reading(store, [other.save(1, {"w": random.randbytes(SIZE)}).address]):
        assert execute_repack(store, plan_repack(store, one.run)).deleted == (old_pack,)


class At:
    """A storage where something happens right before the first creation of an object in a folder."""

    def __init__(self, inner, folder: str, event) -> None:
        self.inner, self.folder, self.event = inner, folder, event

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create(self, name, data):
        if name.startswith(self.folder) and self.event:
            event, self.event = self.event, None
            event()
        self.inner.create(name, data)


def with_event(store, folder: str, event):
    return type(store)(storage=At(store.storage, folder, event), info=store.info)


def test_a_save_that_brings_a_dead_segment_back_to_life_keeps_the_pack(store, saver):
    """Hazards 4: between the copy and the tombstones a save reuses what nothing needed before."""
    one = saver()
    tensors = {f"w{n}": random.randbytes(SIZE) for n in range(8)}
    old = one.save(100, tensors)
    one.save(200, {"w0": tensors["w0"]})
    execute(store, plan_sweep(store, one.run, [old.address]))
    revived = {"w0": tensors["w0"], "w5": tensors["w5"]}
    watched = with_event(store, layout.SWEEPS, lambda: one.save(300, revived))
    done = execute_repack(watched, plan_repack(watched, watched.run(one.run.number)))
    assert done.deleted == ()
    assert "could not be copied" in done.kept[0][1]
    assert load(one.run, one.parent) == list(revived.values())
    assert verify(store, deep=True).ok


def test_a_save_that_begins_after_the_tombstones_does_not_rely_on_an_old_pack(store, saver):
    """Hazards 4: whoever comes second sees the first."""
    one = saver()
    new, old_pack, kept = thinned(one)
    create_once(
        store.storage,
        layout.sweep("a1"),
        Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(old_pack)]),
    )
    with begin_save(one.launch, 0, 300, bases=[new.address]) as attempt:
        assert not any(attempt.known(Digest.of(value)) for value in kept.values())


def test_a_load_prefers_the_copy_to_a_pack_that_is_about_to_go(store, saver):
    """Hazards 31: the repack that announced it did not see this reader."""
    one = saver()
    new, old_pack, kept = thinned(one)
    digests = [Digest.of(value) for value in kept.values()]
    with reading(store, [new.address]):
        (copy,) = execute_repack(store, plan_repack(store, one.run)).written
    assert {locate(one.run, new, digests).get(digest).pack for digest in digests} == {old_pack}
    sweep = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(old_pack)])
    create_once(store.storage, layout.sweep("a1"), sweep)
    assert {locate(one.run, new, digests).get(digest).pack for digest in digests} == {copy}


def test_two_repacks_never_delete_each_others_copies(store, saver):
    """Each relies on the pack that the other one has announced: whoever comes second sees it and stops."""
    one = saver()
    _, old_pack, kept = thinned(one)
    with reading(store, [one.parent.address]):
        first = execute_repack(store, plan_repack(store, one.run))  # leaves a copy beside the old pack
    (copy,) = first.written
    announce = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(copy)])
    watched = with_event(store, layout.SWEEPS, lambda: create_once(store.storage, layout.sweep("a1"), announce))
    done = execute_repack(watched, plan_repack(watched, watched.run(one.run.number)))
    assert done.deleted == ()
    assert "another sweep" in done.kept[0][1]
    assert {old_pack, copy} <= packs(store)
    assert load(one.run, one.parent) == list(kept.values())


def test_a_repack_that_ran_while_another_one_still_copied_is_noticed(store, saver):
    """Its tombstones are gone by then: what tells is that what was relied on is gone."""
    one = saver()
    *_, kept = thinned(one)
    with reading(store, [one.parent.address]):
        (copy,) = execute_repack(store, plan_repack(store, one.run)).written  # beside the old pack
    watched = with_event(store, layout.SWEEPS, lambda: store.storage.delete([copy]))
    done = execute_repack(watched, plan_repack(watched, watched.run(one.run.number)))
    assert done.deleted == ()
    assert "deleted by another sweep" in done.kept[0][1]
    assert load(one.run, one.parent) == list(kept.values())


def test_packs_of_a_save_in_flight_are_not_relied_on(store, saver):
    """It writes segments that are there already, for its parent lacks them; then it fails, and takes them along."""
    one = saver()
    new, _, kept = thinned(one)
    with begin_save(one.launch, 1, 100) as attempt:
        packs_before = packs(store)
        written = write_segments(
            attempt.storage,
            layout.private_packs(one.run.number),
            [memoryview(value) for value in kept.values()],
            known=lambda _: False,
            codec=Codec.RAW,
        )
        attempt.wrote(written.footers)
        assert packs(store) > packs_before
        done = execute_repack(store, plan_repack(store, one.run), report=lambda text: None)
    assert {footer.name for footer in written.footers}.isdisjoint(packs(store))
    assert load(one.run, new) == list(kept.values())
    assert not done.deleted


def test_a_repack_that_fails_leaves_the_packs_that_it_has_committed(store, saver, monkeypatch):
    """Saves and other repacks may rely on them from that moment on."""
    one = saver()
    thinned(one, keep=3)
    deleted = []

    class Watched:
        def __init__(self, inner) -> None:
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def delete(self, names) -> None:
            names = list(names)
            deleted.extend(names)
            self.inner.delete(names)

    def fails(*args, **options):
        write_segments(*args, **options, cap=SIZE)
        args[0].delete(list(packs(store, layout.repacked_packs(one.run.number))))  # as it cleans up after an error
        raise StorageFull("no space for the last one")

    monkeypatch.setattr(repack, "write_segments", fails)
    watched = type(store)(storage=Watched(store.storage), info=store.info)
    with pytest.raises(StorageFull):
        execute_repack(watched, plan_repack(watched, watched.run(one.run.number)))
    assert packs(store, layout.repacked_packs(one.run.number))
    assert not [name for name in deleted if "repacked" in name]


def test_a_rotten_live_segment_keeps_its_pack_and_stops_no_other(store, saver):
    """Users-ask 9: nothing that is damaged is cleaned away in silence."""
    one, other = saver(), saver()
    new, rotten, kept = thinned(one)
    spoil(store, rotten, Digest.of(kept["w0"]))
    _, healthy, _ = thinned(one, first=500)
    done = execute_repack(store, plan_repack(store, one.run))
    assert done.deleted == (healthy,)
    assert [name for name, _ in done.kept] == [rotten]
    assert verify(store, deep=True).affected == (new.address,)
    assert other.run.records() == []


def test_a_rotten_copy_elsewhere_is_not_relied_on(store, saver):
    """Hazards 3: the copy that stays is read before the other one goes."""
    one = saver()
    new, old_pack, kept = thinned(one)
    with reading(store, [new.address]):
        (copy,) = execute_repack(store, plan_repack(store, one.run)).written
    spoil(store, copy, Digest.of(kept["w0"]))
    done = execute_repack(store, plan_repack(store, one.run))
    assert old_pack in done.deleted
    (good,) = done.written
    index = read_footer(store.storage, good)
    assert [entry.digest for entry in index] == [Digest.of(kept["w0"])]


def test_nothing_is_repacked_while_it_cannot_be_told_what_is_live(store, saver, damage):
    one = saver()
    new, old_pack, _ = thinned(one)
    damage(store, layout.tree(one.run.number, new.manifest_digest))
    plan = plan_repack(store, one.run)
    assert plan.packs == ()
    assert plan.unclear
    assert execute_repack(store, plan).deleted == ()
    damage(store, new.name)
    assert "nobody can tell" in plan_repack(store, store.run(1)).unclear
    assert old_pack in packs(store)


def test_shared_packs_are_repacked_by_what_all_runs_need(store, saver):
    one, other = saver("a"), saver("b")
    base = {f"b{n}": random.randbytes(SIZE) for n in range(8)}
    whole = one.save(100, {"w": random.randbytes(SIZE)}, base)
    part = {name: base[name] for name in ("b0", "b1")}
    tuned = other.save(100, {"w": random.randbytes(SIZE)}, part)
    assert plan_repack(store, None).packs == ()
    before = packs(store, layout.SHARED_PACKS)
    execute(store, plan_sweep(store, one.run, [whole.address]))
    one.save(200, {"w": random.randbytes(SIZE)})
    execute(store, plan_sweep(store, one.run, [whole.address]))
    plan = plan_repack(store, None)
    assert set(plan.packs) == before
    told = []
    done = execute_repack(store, plan, progress=told.append)
    assert sum(told) == plan.live_bytes == 2 * SIZE
    assert packs(store, layout.SHARED_PACKS) == set(done.written)
    assert load(other.run, tuned)[:2] == list(part.values())
    assert verify(store, deep=True).ok


def test_a_reader_of_any_run_keeps_the_shared_packs(store, saver):
    """Hazards 31."""
    one, other = saver("a"), saver("b")
    base = {f"b{n}": random.randbytes(SIZE) for n in range(8)}
    whole = one.save(100, {}, base)
    tuned = other.save(100, {}, {"b0": base["b0"]})
    store.storage.delete([whole.name])
    with reading(store, [tuned.address]):
        assert execute_repack(store, plan_repack(store, None)).deleted == ()


class Full:
    """A storage without room for another pack."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def sink(self, name, reserve):
        raise StorageFull(f"no space for {name}")


def test_a_full_disk_leaves_everything_as_it_was(store, saver):
    one = saver()
    new, _, kept = thinned(one)
    before = packs(store) | set(catalog(store))
    full = type(store)(storage=Full(store.storage), info=store.info)
    with pytest.raises(StorageFull):
        execute_repack(full, plan_repack(full, full.run(one.run.number)))
    assert packs(store) | set(catalog(store)) == before
    assert load(one.run, new) == list(kept.values())


class DyingError(Exception):
    """Stands for a process that ends here."""


def test_killed_anywhere_it_loses_nothing_and_the_next_one_finishes(store, saver):
    """Hazards 4: stop at every change of the store, then reopen and check."""
    one = saver()
    new, _, kept = thinned(one)
    whole = {listed.name: store.storage.read(listed.name) for listed in store.storage.list("")}
    for stop in range(1, 20):
        for name in {listed.name for listed in store.storage.list("")} - set(whole):
            store.storage.delete([name])
        for name in set(whole) - {listed.name for listed in store.storage.list("")}:
            store.storage.create(name, whole[name])
        changes = []

        class Mortal:
            def __init__(self, inner) -> None:
                self.inner = inner

            def __getattr__(self, name, changes=changes, stop=stop):
                found = getattr(self.inner, name)
                if name not in ("create", "delete", "sink"):
                    return found

                def change(*args):
                    changes.append(name)
                    if len(changes) >= stop:
                        raise DyingError
                    return found(*args)

                return change

        mortal = type(store)(storage=Mortal(store.storage), info=store.info)
        try:
            execute_repack(mortal, plan_repack(mortal, mortal.run(one.run.number)))
        except DyingError:
            pass
        else:
            assert stop > 3
            return
        assert load(one.run, new) == list(kept.values())
        assert verify(store, deep=True).ok
        store.storage.delete([listed.name for listed in store.storage.list(layout.SWEEPS)])
        execute_repack(store, plan_repack(store, one.run))
        assert len(packs(store)) == 1
        assert load(one.run, new) == list(kept.values())
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_shared_repack_keeps_what_a_run_needs_whose_own_object_cannot_be_read(store, saver, damage, how):
    """Its records are there, and one damaged object blocks nobody else's repack either."""
    one, other = saver("one"), saver("other")
    base, rest = random.randbytes(SIZE), {f"f{n}": random.randbytes(SIZE) for n in range(7)}
    first = one.save(1, {"w": b"1"}, {"base": base, **rest})
    needs = other.save(1, {"w": b"2"}, {"base": base})
    (old,) = packs(store, layout.SHARED_PACKS)
    execute(store, plan_sweep(store, one.run, [first.address]))
    name = layout.run_info(other.run.number)
    damage(store, name) if how == "damaged" else store.storage.delete([name])
    done = execute_repack(store, plan_repack(store, None))
    assert done.deleted == (old,)
    assert base in load(other.run, needs)


def test_a_repack_of_shared_packs_waits_for_a_save_of_a_run_whose_own_object_is_lost(store, saver):
    one, other = saver("one"), saver("other")
    base, rest = random.randbytes(SIZE), {f"f{n}": random.randbytes(SIZE) for n in range(7)}
    first = one.save(1, {"w": b"1"}, {"base": base, **rest})
    one.save(2, {"w": b"1"}, {"base": base})
    execute(store, plan_sweep(store, one.run, [first.address]))
    store.storage.delete([layout.run_info(other.run.number)])
    with begin_save(other.launch, 0, 1, shared=True):
        assert execute_repack(store, plan_repack(store, None)).deleted == ()


def test_a_repack_whose_own_tombstones_are_gone_deletes_nothing(store, saver, monkeypatch):
    """Somebody may rely on the old packs again by then."""
    one = saver()
    new, pack, kept = thinned(one)
    monkeypatch.setattr(repack, "_relies_on_others", lambda store, own, _: store.storage.delete([layout.sweep(own.id)]))
    with pytest.raises(Missing):
        execute_repack(store, plan_repack(store, one.run))
    assert pack in packs(store)
    assert load(one.run, new) == list(kept.values())
