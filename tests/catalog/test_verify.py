from __future__ import annotations

import random

import msgspec
import pytest

from holdfast.catalog import layout
from holdfast.catalog.holds import find_saves
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.manifests import read_manifest, write_manifest
from holdfast.catalog.marks import add_mark, pin
from holdfast.catalog.naming.tags import create_tag
from holdfast.catalog.objects import create_once
from holdfast.catalog.readers import reading
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import existing_store
from holdfast.catalog.verifying.trees import Trees, check_tree
from holdfast.catalog.verifying.verify import verify
from holdfast.clock import utc_now
from holdfast.errors import Corrupt, Damaged, UnknownFormat, UnknownReference
from holdfast.ids import ObjectName, TagName
from holdfast.packs.index import read_footer
from holdfast.records import Mark, MarkKind, Sweep
from holdfast.seals import unseal


@pytest.fixture(autouse=True)
def seed():
    """Printed with every failure."""
    number = random.randrange(2**32)
    print("seed", number)
    random.seed(number)


@pytest.fixture
def trained(store, saver):
    """Three checkpoints with a shared base, and one object of every kind."""
    one = saver("gpt2-small")
    base = random.randbytes(70_000)
    records = [
        one.save(step, {"w": random.randbytes(3_000), "step": step.to_bytes(8, "little")}, {"base": base})
        for step in (100, 200, 300)
    ]
    create_tag(store, TagName("v1"), records[0].address)
    pin(store, records[1].address, by="user")
    add_mark(store, records[2].address, MarkKind.VERIFIED, by="saver")
    with JournalWriter(store, one.run.number, "trainer") as journal:
        journal.add("save", "100")
    return one, records


@pytest.fixture
def busy(store, trained):
    """The same, with a reader, a save in flight, a given-up save and a sweep at work."""
    one, records = trained
    given_up = begin_save(one.launch, 0, 350)
    given_up.abandon()
    sweep = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=["data/shared/x"])
    create_once(store.storage, layout.sweep("a1"), sweep)
    with reading(store, [records[0].address]), begin_save(one.launch, 0, 400) as attempt:
        assert [found.publishes for found in find_saves(store, one.run.number)] == [attempt.address]
        yield one, records


def replace_bytes(store, name, data: bytes) -> None:
    store.storage.delete([name])
    store.storage.create(name, data)


def names(store, prefix: str = "") -> list[ObjectName]:
    return [listed.name for listed in store.storage.list(prefix)]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def spoil(store, pack: str) -> ObjectName:
    """Flips a bit in the first segment of a pack."""
    name = ObjectName(pack)
    at = read_footer(store.storage, name)[0].offset
    replace_bytes(store, name, flipped(store.storage.read(name), at * 8 + 3))
    return name


@pytest.mark.parametrize("deep", [False, True])
def test_a_healthy_store_has_no_problems(store, trained, deep):
    report = verify(store, deep=deep)
    assert report.ok, report.problems
    assert (report.records, report.affected, report.unknown) == (3, (), ())
    assert report.packs == len(names(store, "data/"))
    assert report.objects == len(names(store, "catalog/")) + 1
    assert report.bytes == (sum(listed.size for listed in store.storage.list("data/")) if deep else 0)


def test_a_store_at_work_has_no_problems(store, busy):
    assert verify(store, deep=True).ok


def test_every_kind_of_small_object_is_in_the_next_tests(store, busy):
    kinds = {"run.json", "launches", "records", "marks", "holds", "journal", "trees", "tags", "sweeps"}
    found = {part for name in names(store, "catalog/") for part in name.split("/")}
    assert kinds <= found


def test_a_flip_of_any_bit_of_any_small_object_is_found(store, busy):
    """Hazards 13: one flipped bit in a metric, a step, a parent or a tag's target is never undetectable."""
    for name in names(store, "catalog/"):
        whole = store.storage.read(name)
        bits = [*random.sample(range(len(whole) * 8), 6), 0, len(whole) * 8 - 1]
        for bit in bits:
            replace_bytes(store, name, flipped(whole, bit))
            found = [problem.object for problem in verify(store).problems]
            assert name in found, (name, bit)
        replace_bytes(store, name, whole)
    assert verify(store).ok


def test_every_single_bit_of_a_mark_and_of_a_manifest_is_covered(store, trained):
    """Hazards 13, without sampling."""
    _, records = trained
    manifest = layout.tree(records[0].address.run, records[0].manifest_digest)
    mark = names(store, layout.marks_folder(records[0].address.run))[0]
    whole = store.storage.read(mark)
    for bit in range(len(whole) * 8):
        with pytest.raises(Damaged):
            unseal(mark, flipped(whole, bit), Mark)
    whole = store.storage.read(manifest)
    for bit in range(len(whole) * 8):
        replace_bytes(store, manifest, flipped(whole, bit))
        with pytest.raises(Damaged):
            check_tree(store, manifest)


def test_a_damaged_first_object_means_that_nothing_opens(store, trained):
    whole = store.storage.read(layout.STORE)
    for bit in random.sample(range(len(whole) * 8), 40):
        replace_bytes(store, layout.STORE, flipped(whole, bit))
        assert [problem.object for problem in verify(store).problems] == [layout.STORE]
        with pytest.raises((Corrupt, UnknownFormat)):
            existing_store(store.storage)


@pytest.mark.parametrize("cut", [1, 10, 10**9])
def test_a_truncated_object_is_found(store, busy, cut):
    for name in names(store, "catalog/") + names(store, "data/"):
        whole = store.storage.read(name)
        replace_bytes(store, name, whole[:-cut])
        assert name in {problem.object for problem in verify(store).problems}, name
        replace_bytes(store, name, whole)


def test_something_appended_is_found(store, trained):
    for name in names(store, "catalog/") + names(store, "data/"):
        whole = store.storage.read(name)
        replace_bytes(store, name, whole + b"\n")
        assert name in {problem.object for problem in verify(store).problems}, name
        replace_bytes(store, name, whole)


@pytest.mark.parametrize("folder", ["records/", "marks/", "trees/", "launches/"])
def test_two_objects_that_were_swapped_are_found(store, trained, folder):
    prefix = f"{layout.run_folder(trained[0].run.number)}{folder}"
    first, second = names(store, prefix)[:2]
    one, two = store.storage.read(first), store.storage.read(second)
    replace_bytes(store, first, two)
    replace_bytes(store, second, one)
    assert {first, second} <= {problem.object for problem in verify(store).problems}


def test_two_packs_that_were_swapped_are_found(store, trained):
    first, second = names(store, "data/")[:2]
    one, two = store.storage.read(first), store.storage.read(second)
    replace_bytes(store, first, two)
    replace_bytes(store, second, one)
    assert {first, second} <= {problem.object for problem in verify(store).problems}


@pytest.mark.parametrize("what", ["run.json", "launches/000001.json", "journal/trainer/000001.json"])
def test_what_others_name_is_missed(store, trained, what):
    one, _ = trained
    with JournalWriter(store, one.run.number, "trainer") as journal:
        journal.add("save", "200")
    name = ObjectName(f"{layout.run_folder(one.run.number)}{what}")
    store.storage.delete([name])
    assert [(problem.object, problem.kind) for problem in verify(store).problems] == [(name, "missing")]


def test_a_tagged_record_that_is_gone_is_missed(store, trained):
    _, records = trained
    store.storage.delete([records[0].name])
    assert [problem.object for problem in verify(store).problems] == [records[0].name]


def test_a_record_that_retention_has_deleted_is_not_missed(store, trained):
    """A gap in the line is what retention leaves."""
    _, records = trained
    store.storage.delete([records[1].name])
    assert verify(store).ok


def test_a_missing_manifest_or_skeleton_names_the_checkpoints_that_need_it(store, trained):
    _, records = trained
    manifest = layout.tree(records[1].address.run, records[1].manifest_digest)
    store.storage.delete([manifest])
    assert verify(store).affected == (records[1].address,)
    others = {layout.tree(one.address.run, one.manifest_digest) for one in records}
    (skeleton,) = set(names(store, layout.trees_folder(records[1].address.run))) - others
    store.storage.delete([skeleton])
    assert verify(store).affected == tuple(one.address for one in records)


def test_a_damaged_manifest_names_its_checkpoint(store, trained, damage):
    _, records = trained
    manifest = layout.tree(records[1].address.run, records[1].manifest_digest)
    damage(store, manifest)
    report = verify(store)
    assert report.affected == (records[1].address,)
    assert {problem.object for problem in report.problems} == {manifest, records[1].name}


def test_a_missing_private_pack_hurts_its_checkpoint_only(store, trained):
    """Hazards 3: one purged pack, and it is said at once which checkpoints it takes along."""
    _, records = trained
    (private,) = [name for name in records[1].packs if "shared" not in name]
    store.storage.delete([ObjectName(private)])
    report = verify(store)
    assert report.affected == (records[1].address,)
    assert "1 segments" in report.problems[0].what


def test_a_missing_shared_pack_hurts_all_that_need_it(store, trained):
    """Hazards 3: the base of a hundred adapters."""
    _, records = trained
    store.storage.delete(names(store, layout.SHARED_PACKS))
    assert verify(store).affected == tuple(one.address for one in records)


def test_the_deep_check_finds_any_flip_in_a_pack_and_who_is_hurt(store, trained):
    """Users-ask 5: a bit flip loads silently nowhere."""
    _, records = trained
    for name in names(store, "data/"):
        whole = store.storage.read(name)
        for bit in random.sample(range(len(whole) * 8), 12):
            replace_bytes(store, name, flipped(whole, bit))
            assert name in {problem.object for problem in verify(store, deep=True).problems}, (name, bit)
        replace_bytes(store, name, whole)
        spoil(store, name)
        hurt = {one.address for one in records if str(name) in one.packs}
        report = verify(store, deep=True)
        assert set(report.affected) == hurt
        on_pack = [problem for problem in report.problems if problem.object == name]
        assert [set(problem.records) for problem in on_pack] == [hurt]
        replace_bytes(store, name, whole)


def test_the_shallow_check_does_not_read_segments(store, trained):
    """What it costs is small objects and footers; that is why there is a deep one."""
    _, records = trained
    spoil(store, next(name for name in records[0].packs if "shared" not in name))
    assert verify(store).ok
    assert not verify(store, deep=True).ok


def test_a_damaged_segment_with_a_good_copy_elsewhere_hurts_nobody(store, saver):
    one = saver()
    same = random.randbytes(5_000)
    first = one.save(100, {"w": same})
    one.parent = None  # so that the second save does not reuse the first
    one.save(200, {"w": same})
    (pack,) = first.packs
    spoil(store, pack)
    report = verify(store, deep=True)
    assert [problem.object for problem in report.problems] == [pack]
    assert report.affected == ()


@pytest.mark.parametrize("deep", [False, True])
def test_one_checkpoint_can_be_checked_alone(store, trained, deep):
    _, records = trained
    told = []
    report = verify(store, reference="gpt2-small@200", deep=deep, progress=told.append)
    assert report.ok
    assert (report.records, report.packs) == (1, 2)
    assert sum(told) == report.bytes == (73_000 if deep else 0)
    spoil(store, next(name for name in records[1].packs if "shared" not in name))
    assert verify(store, reference="gpt2-small@100", deep=True).ok
    broken = verify(store, reference="gpt2-small@200", deep=deep)
    assert broken.affected == ((records[1].address,) if deep else ())


def test_one_checkpoint_without_its_pack_or_manifest_is_hurt(store, trained):
    _, records = trained
    store.storage.delete([ObjectName(name) for name in records[1].packs if "shared" not in name])
    assert verify(store, reference="@200").affected == (records[1].address,)
    store.storage.delete([layout.tree(records[2].address.run, records[2].manifest_digest)])
    assert verify(store, reference="@300").affected == (records[2].address,)
    with pytest.raises(UnknownReference):
        verify(store, reference="@250")


def test_what_holdfast_did_not_write_is_said_and_is_no_problem(store, trained):
    """Users-ask 4: unknown things are untouched."""
    store.storage.create(ObjectName("notes.txt"), b"mine")
    report = verify(store)
    assert report.ok
    assert report.unknown == ("notes.txt",)


def test_every_problem_says_what_to_do(store, trained, damage):
    for name in names(store, "catalog/"):
        damage(store, name)
    for problem in verify(store).problems:
        assert problem.remedy
        assert problem.object in str(problem)


def test_a_checkpoint_that_is_deleted_during_the_check_is_no_damage(store, trained):
    """Retention deletes the record first, then what it named."""
    _, records = trained

    manifest = layout.tree(records[2].address.run, records[2].manifest_digest)

    class Deleting:
        """After all records are read, the last checkpoint goes."""

        def __init__(self, inner) -> None:
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def read(self, name):
            if name == manifest:
                self.inner.delete([records[2].name])
                self.inner.delete([manifest])
            return self.inner.read(name)

    watched = type(store)(storage=Deleting(store.storage), info=store.info)
    assert verify(watched, deep=True).ok


def test_a_save_that_commits_during_the_check_is_no_damage(store, trained):
    one, _ = trained

    class Saving:
        """After the packs are listed, another checkpoint is committed."""

        def __init__(self, inner) -> None:
            self.inner, self.saved = inner, False

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def list(self, prefix):
            if prefix == "" and not self.saved:
                self.saved = True
                one.save(500, {"w": random.randbytes(3_000)})
            yield from self.inner.list(prefix)

    watched = type(store)(storage=Saving(store.storage), info=store.info)
    report = verify(watched, deep=True)
    assert report.ok, report.problems
    assert report.records == 4


STRAY = (
    "catalog/runs/001/records/backup.json",
    "catalog/runs/001/records/000001.000.000000000100.json",
    "catalog/runs/000/run.json",
    "catalog/runs/0001/run.json",
    "catalog/runs/0001/records/000001.000.000000000100-0123456789abcdef.json",
)


def test_objects_with_names_that_holdfast_never_writes_are_unknown_and_no_problem(store, trained):
    """Somebody's backup in the middle of a store."""
    for name in STRAY:
        store.storage.create(ObjectName(name), b"{}")
    found = verify(store)
    assert found.ok, found.problems
    assert sorted(found.unknown) == sorted(STRAY)


def test_a_checkpoint_of_a_run_whose_own_object_is_damaged_can_be_verified(store, trained, damage):
    one, records = trained
    damage(store, layout.run_info(one.run.number))
    assert verify(store, reference=records[0].id, deep=True).ok


@pytest.mark.parametrize("deep", [False, True])
def test_a_checkpoint_that_is_deleted_while_it_is_checked_is_gone_and_not_damaged(store, trained, monkeypatch, deep):
    _, records = trained
    last = records[-1]

    def needs(trees, manifest):
        store.storage.delete([last.name, *map(ObjectName, last.packs), manifest])
        return Trees._known(trees, manifest, {})

    monkeypatch.setattr(Trees, "needs", needs)
    with pytest.raises(UnknownReference, match="was deleted meanwhile"):
        verify(store, reference=str(last.id), deep=deep)


def test_one_checkpoint_whose_manifest_contradicts_its_skeleton_is_hurt(store, saver):
    """As the check of everything says, and as a load would."""
    one = saver("gpt2-small")
    good = one.save(1, {"w": bytes(3_000)})
    tree = read_manifest(one.run, good.manifest_digest)
    bad = write_manifest(one.run, tree.skeleton, tree.values, tree.inline + b"more", tree.segment_digests())
    record = msgspec.structs.replace(good, step=2, manifest=str(bad))
    create_once(store.storage, record.name, record)
    for found in (verify(store), verify(store, reference="run-001@2")):
        assert found.affected == (record.address,)
        assert "contradict" in found.problems[0].what
