"""Recoding beside everybody else, model-checked on the real code; see ``test_protocol``."""

from __future__ import annotations

import pytest
from holds_kit import World, play, reproducible, save, shuffled, two_switches

from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.locating import locate
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.readers import reading
from holdfast.catalog.repacking import recode, repack
from holdfast.catalog.repacking.recode import execute_recode, plan_recode
from holdfast.catalog.runs import read_record
from holdfast.errors import HoldfastError
from holdfast.packs.codec import Codec
from holdfast.packs.reader import read_segments

A, B, C, D = (letter * 100 for letter in (b"a", b"b", b"c", b"d"))


@pytest.fixture(autouse=True)
def one_pack_at_a_time(monkeypatch):
    monkeypatch.setattr(recode, "BATCH_BYTES", 1)


def begun(world: World, *steps: list[bytes], frozen: list[bytes] = ()) -> list:
    launch = begin_launch(world.plain.create_run("model"), deadline=0)
    return [save(launch, number, parts, frozen=frozen).address for number, parts in enumerate(steps, start=1)]


def saver(world: World, step: int, parts: list[bytes], *, number=1, **options):
    return world.actor(f"saver {step}", lambda store: save(Launch(store.run(number), 1), step, parts, **options))


def recoder(world: World, *, number=1, codec=Codec.ZSTD, seconds=0.0):
    def script(store):
        run = store.run(number) if number else None
        return execute_recode(store, plan_recode(store, run, codec), run=run, seconds=seconds)

    return world.actor("recoder", script)


def reader(world: World, address):
    """Chooses where to read, as a load does, and then reads: nobody may take it away in between."""

    def script(store):
        try:
            with reading(store, [address]):
                record = read_record(store, address)
                run = store.run(address.run)
                digests = read_manifest(run, record.manifest_digest).segment_digests()
                index = locate(run, record, digests)
                targets = [(digest, memoryview(bytearray(100))) for digest in digests]
                read_segments(store.storage, index.get, targets, threads=1)
        except HoldfastError as error:
            raise AssertionError(f"a reader was disturbed: {error}") from error

    return world.actor("reader", script)


def sweeper(world: World, *delete):
    world.unwanted |= set(delete)

    def script(store):
        run = store.run(1)
        return execute(store, plan_sweep(store, run, delete), run=run)

    return world.actor("sweeper", script)


def recoding_what_a_save_reuses(world):
    first, _ = begun(world, [A, B], [C])
    saver(world, 3, [A, D], bases=[first])
    recoder(world)


def recoding_what_a_save_brings_back_to_life(world):
    """A segment that nobody needs any more lies in a pack that is needed, and a save finds it there."""
    (first,) = begun(world, [A, B])
    run = world.plain.run(1)
    second = save(Launch(run, 1), 2, [A], bases=[first]).address
    world.unwanted.add(first)
    execute(world.plain, plan_sweep(world.plain, run, [first]), run=run)
    saver(world, 3, [A, B], bases=[second])
    recoder(world)


def recoding_what_is_read(world):
    first, _ = begun(world, [A, B], [C])
    reader(world, first)
    recoder(world)


def recoding_what_is_deleted(world):
    first, _ = begun(world, [A, B], [A, C])
    sweeper(world, first)
    recoder(world)


def two_recodes(world):
    begun(world, [A, B], [A, C])
    recoder(world)
    recoder(world)


def there_and_back_again(world):
    begun(world, [A, B])
    recoder(world)
    recoder(world, codec=Codec.RAW)


def recoding_shared_packs_that_a_second_run_reuses(world):
    begun(world, [A], frozen=[B, C])
    begin_launch(world.plain.create_run("other"), deadline=0)
    saver(world, 1, [D], number=2, frozen=[B, C])
    recoder(world, number=None)


PAIRS = {
    scenario.__name__: scenario
    for scenario in (
        recoding_what_a_save_reuses,
        recoding_what_a_save_brings_back_to_life,
        recoding_what_is_read,
        recoding_what_is_deleted,
        two_recodes,
        there_and_back_again,
        recoding_shared_packs_that_a_second_run_reuses,
    )
}


@pytest.mark.parametrize("name", PAIRS)
def test_no_history_of_two_actors_with_two_preemptions_breaks_an_invariant(name, monkeypatch):
    """One in forty-one of them; `test_not_one_history_...` plays all."""
    with reproducible(1, monkeypatch):
        for schedule, world in two_switches(PAIRS[name], every=41):
            assert not world.violations, (schedule, world.violations)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PAIRS)
def test_not_one_history_of_two_actors_with_two_preemptions_breaks_an_invariant(name, monkeypatch):
    with reproducible(1, monkeypatch):
        for schedule, world in two_switches(PAIRS[name]):
            assert not world.violations, (schedule, world.violations)


def everybody(world):
    first, second, third = begun(world, [A], [A, B], [B, C], frozen=[D])
    begin_launch(world.plain.create_run("other"), deadline=0)
    saver(world, 4, [A, B, D], bases=[first, third])
    saver(world, 1, [C], number=2, frozen=[D])
    sweeper(world, first)
    recoder(world, seconds=0.05)
    recoder(world, codec=Codec.RAW)
    recoder(world, number=None)
    reader(world, second)


def test_random_histories_of_everybody_with_kills_break_no_invariant(monkeypatch):
    for seed in range(50):
        with reproducible(seed, monkeypatch):
            world = play(everybody, shuffled(seed, kills=0.004))
        assert not world.violations, (seed, world.violations)


def _no_wait_for_readers(patch):
    patch.setattr(repack, "_standing", lambda *_: None)


def _no_second_look(patch):
    patch.setattr(repack, "_kept", lambda copies, live, obstacle: [(f.name, obstacle) for f in copies.old if obstacle])


# What a save does to defend itself is left out in test_protocol.
WITHOUT = {
    "the wait for readers": (_no_wait_for_readers, recoding_what_is_read),
    "the second look": (_no_second_look, recoding_what_a_save_brings_back_to_life),
}


@pytest.mark.parametrize("step", WITHOUT)
def test_without_one_step_of_the_protocol_a_history_breaks_an_invariant(step, monkeypatch):
    leave_out, scenario = WITHOUT[step]
    leave_out(monkeypatch)
    with reproducible(1, monkeypatch):
        assert any(world.violations for _, world in two_switches(scenario, seed=7))


def test_a_recode_that_nobody_disturbs_replaces_every_pack(monkeypatch):
    """Or the histories above would prove little."""
    world = World()
    begun(world, [A, B], [C, D])
    actor = recoder(world)
    before = {listed.name for listed in world.storage.list("data/")}
    while not actor.done:
        actor.step()
    world.finish()
    assert actor.error is None
    assert set(actor.result.deleted) == before
    assert not world.violations
