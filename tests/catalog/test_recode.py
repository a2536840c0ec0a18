from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap

import pytest
from holds_kit import draft
from packs_kit import CODECS, weights

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.locating import locate
from holdfast.catalog.manifests import manifest_of, read_manifest
from holdfast.catalog.readers import reading
from holdfast.catalog.repacking import recode
from holdfast.catalog.repacking.recode import execute_recode, plan_recode
from holdfast.catalog.repacking.repack import execute_repack, plan_repack
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import open_store
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import InvalidInput, StorageFull
from holdfast.ids import Digest, ObjectName
from holdfast.packs import floats
from holdfast.packs.codec import Codec
from holdfast.packs.index import read_footer
from holdfast.packs.reader import read_segments
from holdfast.packs.writer import write_segments
from holdfast.trees import Lifetime, Skeleton, TensorSpec

from .conftest import Saver

SIZE = 100_000
needs_openzl = pytest.mark.skipif(Codec.OPENZL not in CODECS, reason="no openzl on this platform")


@pytest.fixture
def rng():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def text(number):
    """A soft segment, another one for each number."""
    return number.to_bytes(4, "little") * (SIZE // 4)


def packs(store, prefix="data/"):
    return {listed.name for listed in store.storage.list(prefix)}


def stored_as(store, prefix="data/"):
    """The codecs of all segments, sorted."""
    return sorted(str(entry.codec) for name in packs(store, prefix) for entry in read_footer(store.storage, name))


def catalog(store):
    return {listed.name: store.storage.read(listed.name) for listed in store.storage.list("catalog/")}


def load(run, record):
    """All segments of a checkpoint, as a restore would read them."""
    digests = read_manifest(run, record.manifest_digest).segment_digests()
    index = locate(run, record, digests)
    targets = [bytearray(index.get(digest).entry.length) for digest in digests]
    read_segments(run.store.storage, index.get, zip(digests, map(memoryview, targets), strict=True), threads=1)
    return [bytes(target) for target in targets]


def recoded(store, run, codec, **options):
    return execute_recode(store, plan_recode(store, run, codec), run=run, **options)


@pytest.fixture
def trained(store, saver):
    """A run of three checkpoints of four soft segments each, stored raw; one segment is in all of them."""
    one = saver()
    tensors = [{"same": text(1), **{f"w{n}": text(10 * step + n) for n in range(3)}} for step in (1, 2, 3)]
    records = [one.save(step, part) for step, part in enumerate(tensors, start=1)]
    return one, records, [list(part.values()) for part in tensors]


def test_a_recode_changes_packs_and_nothing_else(store, trained):
    one, records, contents = trained
    before, old = catalog(store), packs(store)
    plan = plan_recode(store, one.run, Codec.ZSTD)
    assert {pack.name for pack in plan.packs} == old
    assert plan.total.stored == 10 * SIZE
    assert plan.parts == {Codec.RAW: plan.total}
    done = execute_recode(store, plan, run=one.run)
    assert set(done.deleted) == old
    assert packs(store) == set(done.written)
    assert catalog(store) == before
    assert stored_as(store) == ["zstd"] * 10
    assert [load(one.run, record) for record in records] == contents
    assert verify(store, deep=True).ok


def test_every_pack_gets_one_successor(store, trained):
    """What was saved together dies together: packs of several checkpoints in one would need a repack soon."""
    one, records, contents = trained
    done = recoded(store, one.run, Codec.ZSTD)
    assert len(done.written) == len(done.deleted) == 3
    sizes = sorted(len(read_footer(store.storage, name)) for name in done.written)
    assert sizes == [3, 3, 4]
    execute(store, plan_sweep(store, one.run, [records[1].address]))
    assert len(packs(store)) == 2
    assert load(one.run, records[2]) == contents[2]


def test_a_plan_changes_nothing_and_tells_what_comes(store, trained):
    one, _, _ = trained
    before = packs(store) | set(catalog(store))
    plan = plan_recode(store, one.run, Codec.ZSTD)
    assert packs(store) | set(catalog(store)) == before
    done = execute_recode(store, plan, run=one.run)
    came = sum(read_footer(store.storage, name).stored_bytes for name in done.written)
    assert abs(plan.total.expected - came) < SIZE // 10


def test_recoding_again_finds_nothing_to_do(store, trained):
    one, _, _ = trained
    recoded(store, one.run, Codec.ZSTD)
    assert plan_recode(store, one.run, Codec.ZSTD).packs == ()


def test_there_and_back_again(store, trained):
    one, records, contents = trained
    recoded(store, one.run, Codec.ZSTD)
    recoded(store, one.run, Codec.RAW)
    assert stored_as(store) == ["raw"] * 10
    assert [load(one.run, record) for record in records] == contents


def test_what_would_not_get_shorter_is_left_alone(store, saver, rng):
    one = saver()
    one.save(1, {"w": rng.randbytes(SIZE)})
    soft = one.save(2, {"w": text(1)})
    plan = plan_recode(store, one.run, Codec.ZSTD)
    assert [str(pack.name) for pack in plan.packs] == soft.packs


def test_only_the_packs_of_one_checkpoint_if_asked_for(store, trained):
    """It needs a segment that the first one brought, so that one's pack too."""
    one, records, _ = trained
    plan = plan_recode(store, one.run, Codec.ZSTD, record=records[1])
    assert sorted(str(pack.name) for pack in plan.packs) == sorted(records[1].packs)
    assert len(plan.packs) == 2


def test_dead_segments_are_not_taken_along(store, trained):
    one, records, contents = trained
    execute(store, plan_sweep(store, one.run, [records[0].address]))
    recoded(store, one.run, Codec.ZSTD)
    assert len(stored_as(store)) == 7
    assert load(one.run, records[2]) == contents[2]


def save_numbers(one, step, tensors):
    """A checkpoint of tensors with dtypes: name -> (dtype, bytes)."""
    width = {"float32": 4, "bfloat16": 2, "int64": 8}
    specs = [
        TensorSpec(name, dtype, (len(raw) // width[dtype],), Lifetime.PARAMETER)
        for name, (dtype, raw) in tensors.items()
    ]
    with begin_save(one.launch, 0, step) as attempt:
        raws = [memoryview(raw) for _, raw in tensors.values()]
        folder = layout.private_packs(one.run.number)
        written = write_segments(attempt.storage, folder, raws, known=attempt.known, codec=one.codec, threads=1)
        attempt.wrote(written.footers)
        manifest = attempt.write_manifest(manifest_of(Skeleton(tuple(specs)), b"{}", b"", written.digests))
        return attempt.publish(draft(attempt, manifest, attempt.packs(written.digests)))


@needs_openzl
def test_the_skeletons_tell_what_the_numbers_are(store, saver, rng):
    """Packs know nothing of dtypes, and a wrong one would cost a third of what can be saved."""
    one = saver()
    tensors = {
        "fp32": ("float32", weights(rng, 50_000)),
        "bf16": ("bfloat16", weights(rng, 100_000, "bfloat16")),
        "ids": ("int64", bytes(80_000)),
        "noise": ("float32", rng.randbytes(80_000)),
    }
    record = save_numbers(one, 1, tensors)
    done = recoded(store, one.run, Codec.OPENZL)
    (footer,) = [read_footer(store.storage, name) for name in done.written]
    found = {entry.digest: entry for entry in footer}
    of = {name: found[Digest.of(raw)] for name, (_, raw) in tensors.items()}
    assert {name: entry.codec for name, entry in of.items()} == {
        "fp32": Codec.OPENZL,
        "bf16": Codec.OPENZL,
        "ids": Codec.ZSTD,
        "noise": Codec.RAW,
    }
    assert of["bf16"].stored < 0.75 * of["bf16"].length
    assert load(one.run, record) == [raw for _, raw in tensors.values()]
    assert plan_recode(store, one.run, Codec.OPENZL).packs == ()
    assert verify(store, deep=True).ok


@needs_openzl
def test_openzl_goes_where_it_is_not_wanted_even_if_that_costs_bytes(store, saver, rng):
    """For a machine that has no openzl."""
    one = saver()
    record = save_numbers(one, 1, {"w": ("float32", weights(rng, 50_000))})
    recoded(store, one.run, Codec.OPENZL)
    assert stored_as(store) == ["openzl"]
    assert recoded(store, one.run, Codec.ZSTD).deleted
    assert "openzl" not in stored_as(store)
    assert len(load(one.run, record)[0]) == 200_000


@needs_openzl
def test_a_repack_keeps_openzl(store, saver, rng):
    """And hands it the dtype, which no pack knows."""
    one = saver()
    numbers = {f"w{n}": ("float32", weights(rng, 50_000)) for n in range(4)}
    old = save_numbers(one, 1, numbers)
    recoded(store, one.run, Codec.OPENZL)
    new = save_numbers(one, 2, {"w1": numbers["w1"]})
    for name in packs(store):
        if len(read_footer(store.storage, name)) == 1:
            store.storage.delete([name])  # the save wrote its own copy
    execute(store, plan_sweep(store, one.run, [old.address]))
    done = execute_repack(store, plan_repack(store, one.run))
    assert done.deleted
    assert stored_as(store) == ["openzl"]
    assert load(one.run, new) == [numbers["w1"][1]]


@needs_openzl
def test_without_openzl_a_repack_keeps_what_it_cannot_read(store, saver, rng, monkeypatch):
    one = saver()
    numbers = {f"w{n}": ("float32", weights(rng, 50_000)) for n in range(4)}
    old = save_numbers(one, 1, numbers)
    recoded(store, one.run, Codec.OPENZL)
    with begin_save(one.launch, 0, 2, bases=[old.address]) as attempt:
        assert attempt.known(Digest.of(numbers["w1"][1]))
    one.parent = old
    new = one.save(2, {"w1": numbers["w1"][1]})
    execute(store, plan_sweep(store, one.run, [old.address]))
    (pack,) = packs(store)
    with monkeypatch.context() as patched:
        patched.setattr(floats, "_contexts", floats._Contexts())
        patched.setattr(floats.importlib, "import_module", lambda _: (_ for _ in ()).throw(ImportError("none")))
        done = execute_repack(store, plan_repack(store, one.run))
        assert done.deleted == ()
        assert "could not be copied" in done.kept[0][1]
        with pytest.raises(InvalidInput, match="pip install"):
            recoded(store, one.run, Codec.OPENZL)
    assert pack in packs(store)
    assert load(one.run, new) == [numbers["w1"][1]]


def test_shared_packs_are_recoded_for_all_runs(store, saver):
    one, other = saver("a"), saver("b")
    base = {f"b{n}": text(n) for n in range(4)}
    first = one.save(1, {"w": text(50)}, base)
    second = other.save(1, {"w": text(60)}, base)
    recoded(store, None, Codec.ZSTD)
    assert stored_as(store, layout.SHARED_PACKS) == ["zstd"] * 4
    assert stored_as(store, "data/runs/") == ["raw"] * 2
    assert load(one.run, first)[:4] == load(other.run, second)[:4] == list(base.values())
    assert verify(store, deep=True).ok


@pytest.mark.parametrize("who", ["reader", "saver"])
def test_while_somebody_may_be_using_a_pack_it_stays_and_goes_the_next_time(store, trained, who):
    """Hazards 31: a ten-minute load must not lose its packs half-way."""
    one, records, contents = trained
    old = packs(store)
    at_work = (
        reading(store, [records[0].address])
        if who == "reader"
        else begin_save(one.launch, 0, 900, bases=[records[0].address])
    )
    with at_work:
        done = recoded(store, one.run, Codec.ZSTD)
        assert done.deleted == ()
        assert old <= packs(store)
        assert "may need it" in done.kept[0][1]
    again = recoded(store, one.run, Codec.ZSTD)
    assert set(again.deleted) == old
    assert again.written == ()
    assert [load(one.run, record) for record in records] == contents


def test_where_somebody_stands_in_the_way_no_more_copies_are_made(store, trained, monkeypatch):
    """They would fill the disk with nothing gained."""
    one, records, _ = trained
    monkeypatch.setattr(recode, "BATCH_BYTES", 1)
    with reading(store, [records[0].address]):
        done = recoded(store, one.run, Codec.ZSTD)
    assert len(done.written) == 1
    assert len(done.kept) == 3
    assert [why.startswith("not tried") for _, why in done.kept] == [False, True, True]


def test_a_batch_at_a_time_the_store_never_holds_everything_twice(store, trained, monkeypatch):
    one, records, contents = trained
    monkeypatch.setattr(recode, "BATCH_BYTES", 1)
    most = []
    size = lambda: sum(listed.size for listed in store.storage.list("data/"))  # noqa: E731
    before = size()
    done = recoded(store, one.run, Codec.ZSTD, progress=lambda _: most.append(size()))
    assert len(done.deleted) == 3
    assert max(most) < 1.1 * before
    assert [load(one.run, record) for record in records] == contents


def test_a_later_save_reuses_what_was_recoded(store, trained):
    one, _, contents = trained
    recoded(store, one.run, Codec.ZSTD)
    before = packs(store)
    one.save(9, {f"t{n}": raw for n, raw in enumerate(contents[2])})
    assert packs(store) == before


def test_a_rotten_segment_keeps_its_pack_and_stops_no_other(store, trained):
    one, records, _ = trained
    (own,) = set(records[1].packs) - set(records[0].packs)
    rotten = ObjectName(own)
    data = bytearray(store.storage.read(rotten))
    entry = next(iter(read_footer(store.storage, rotten)))
    data[entry.offset + 5] ^= 1
    store.storage.delete([rotten])
    store.storage.create(rotten, bytes(data))
    done = recoded(store, one.run, Codec.ZSTD)
    assert [name for name, _ in done.kept] == [rotten]
    assert len(done.deleted) == 2
    assert verify(store, deep=True).affected == (records[1].address,)


def test_nothing_is_recoded_while_it_cannot_be_told_what_is_live(store, trained, damage):
    one, records, _ = trained
    damage(store, layout.tree(one.run.number, records[0].manifest_digest))
    plan = plan_recode(store, one.run, Codec.ZSTD)
    assert plan.packs == ()
    assert plan.unclear


class Full:
    """A storage without room for another pack."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def sink(self, name, reserve):
        raise StorageFull(f"no space for {name}")


def test_a_full_disk_leaves_everything_as_it_was(store, trained):
    one, records, contents = trained
    before = packs(store) | set(catalog(store))
    full = type(store)(storage=Full(store.storage), info=store.info)
    with pytest.raises(StorageFull):
        recoded(full, full.run(one.run.number), Codec.ZSTD)
    assert packs(store) | set(catalog(store)) == before
    assert [load(one.run, record) for record in records] == contents


KILLED = """
    import os, sys
    from holdfast.catalog.repacking import recode
    from holdfast.catalog.repacking.recode import execute_recode, plan_recode
    from holdfast.catalog.store import open_store
    from holdfast.packs.codec import Codec

    store, run = open_store(sys.argv[1]), int(sys.argv[2])
    recode.BATCH_BYTES = 1
    left = int(sys.argv[3])
    storage = store.storage

    class Mortal:
        def __getattr__(self, name):
            found = getattr(storage, name)
            return found if name not in ("create", "delete", "sink") else lambda *args: (self.die(), found(*args))[1]

        def die(self):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)

    mortal = type(store)(storage=Mortal(), info=store.info)
    one = mortal.run(run)
    execute_recode(mortal, plan_recode(mortal, one, Codec.ZSTD), run=one)
"""


@pytest.mark.parametrize("after", range(12))
def test_killed_anywhere_it_loses_nothing_and_the_next_one_finishes(tmp_path, after):
    """Hazards 4: kill -9 at a change of the store; then reopen, check, and recode again."""
    store = open_store(tmp_path / "store", create=True)
    one = Saver(store.create_run("toy"), Codec.RAW)
    tensors = [{f"w{n}": text(10 * step + n) for n in range(2)} for step in (1, 2, 3)]
    records = [one.save(step, part) for step, part in enumerate(tensors, start=1)]
    contents = [list(part.values()) for part in tensors]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "store"), "1", str(after)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = open_store(tmp_path / "store")
    run = store.run(1)
    assert [load(run, record) for record in records] == contents
    assert verify(store, deep=True).ok
    recoded(store, run, Codec.ZSTD)
    assert stored_as(store) == ["zstd"] * 6
    assert [load(run, record) for record in records] == contents
