"""One deliberate break for each invariant, and the check that turns red.

Each check is a function that lists violations. It finds none as things are, and
some once the mechanism behind the invariant is taken out: so that mechanism
is what keeps the promise, and the check would see it go.
"""

from __future__ import annotations

import errno
import importlib
import sys
from contextlib import suppress
from dataclasses import replace

import holds_kit
import psutil
import torch

import holdfast
from holdfast import every, latest, values
from holdfast.catalog import layout, saves
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import create_store, open_store
from holdfast.catalog.waiting import Waiter
from holdfast.errors import Corrupt, HoldfastError, RefusedFresh, StorageFull
from holdfast.ids import Digest, ObjectName
from holdfast.packs import reader
from holdfast.packs.codec import Codec
from holdfast.packs.index import Footers, SegmentIndex
from holdfast.packs.verify import verify_pack
from holdfast.packs.writer import write_segments
from holdfast.policy.tolerance import Tolerance
from holdfast.recovery.launching import beginning
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.training.training import Training
from holdfast.saver import saving
from holdfast.saver.saving import Saving
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import memory_storage
from holdfast.testing.crashes import RecordingFiles, crash_states, materialise, without_sync
from holdfast.testing.faults import flip_bit
from holdfast.testing.recording import Barrier
from holdfast.values import enums

SEED = 1


def toy(folder, *, total=4, width=40, step=2, seed=0, keep=9, **options):
    """A tiny training: yields its Checkpointer, model and optimizer at every step."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(width, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    options = {"save": every(steps=step), "keep": latest(keep), **options}
    with holdfast.Checkpointer(folder, run="toy", state=state, **options) as ckpt:
        for _ in ckpt.steps(total):
            yield ckpt, model, optimizer


def update(model, optimizer):
    model(torch.ones(1, model.in_features)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


# --- I1, exists = complete


def recorded_save(place):
    """The file operations of one whole checkpoint, in a store that was there before."""
    place.mkdir()
    create_store(LocalStorage(place)).create_run("r")
    files = RecordingFiles(place)
    run = create_store(LocalStorage(place, files)).run(1)
    record = holds_kit.save(begin_launch(run), 1, [b"a" * 9000, b"b" * 70000])
    files.trace.note(str(record.id))
    return files.trace


def incomplete_checkpoints(trace, place):
    """Power cuts after which a visible checkpoint is not whole, or an acknowledged one is not there."""
    found = []
    for number, state in enumerate(crash_states(trace, seed=SEED, limit=250)):
        folder = place / str(number)
        materialise(state, folder)
        run = open_store(folder).run(1)
        records, damaged = run.published().records, run.damaged()
        lost = [note for note in state.notes if note not in {record.id for record in records}]
        rotten = [name for record in records for name in record.packs if not sound(run.store, record, name)]
        if lost or damaged or rotten:
            found.append(f"{state.story}: lost {lost}, damaged {damaged}, rotten {rotten}")
    return found


def sound(store, record, pack):
    try:
        holds_kit.load_all(store, record.address)
        return not verify_pack(store.storage, ObjectName(pack))
    except (HoldfastError, AssertionError):
        return False


def test_a_power_cut_during_a_save_leaves_no_half_checkpoint(tmp_path):
    assert incomplete_checkpoints(recorded_save(tmp_path / "store"), tmp_path / "states") == []


def test_break_1_a_sync_is_left_out(tmp_path):
    """One that matters is enough here: tests/storage/test_power_cuts.py has a proof for every single one."""
    trace = recorded_save(tmp_path / "store")
    syncs = sum(isinstance(step, Barrier) for step in trace.steps)
    assert any(incomplete_checkpoints(without_sync(trace, n), tmp_path / str(n)) for n in range(1, syncs + 1))


# --- I2, one instant


def mixed_instants(folder):
    """Checkpoints that hold another state than the one at the end of their step."""
    boundary = {}
    for ckpt, model, optimizer in toy(folder, total=4, step=99):
        update(model, optimizer)
        ckpt.save()  # the step is made but not over: the weights are clipped after it
        with torch.no_grad():
            model.weight.clamp_(-0.01, 0.01)
        boundary[ckpt.step + 1] = model.weight.detach().clone()
    return [step for step, weight in boundary.items() if not torch.equal(weight, stored_weight(folder, step))]


def stored_weight(folder, step):
    model = torch.nn.Linear(40, 40)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with holdfast.Checkpointer(folder, run=1, state=state) as ckpt:
        ckpt.restore(f"run-001@{step}", only=["model"])
    return model.weight.detach()


def test_a_checkpoint_belongs_to_one_boundary(tmp_path):
    assert mixed_instants(tmp_path) == []


def test_break_2_saves_are_made_in_the_middle_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "_at_boundary", lambda self: True)
    assert mixed_instants(tmp_path) != []


# --- I3, verified bytes


def silently_wrong(tmp_path):
    """Segments that were read without an error and are not what was written."""
    content = bytes(range(256)) * 400
    storage = LocalStorage(tmp_path)
    written = write_segments(
        storage, "data/runs/001/", [memoryview(content)], known=lambda digest: False, codec=Codec.RAW
    )
    (pack,) = written.packs
    flip_bit(tmp_path / pack.name, 8 * 5000)
    into = bytearray(len(content))
    index = SegmentIndex.of(Footers(storage), [pack.name])
    try:
        reader.read_segments(storage, index.get, [(Digest.of(content), memoryview(into))])
    except Corrupt:
        return []
    return [pack.name] if into != content else []


def test_a_flipped_bit_is_never_read_in_silence(tmp_path):
    assert silently_wrong(tmp_path) == []


def test_break_3_digests_are_not_checked_on_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "check_raw", lambda pack, entry, raw: raw)
    assert silently_wrong(tmp_path) != []


# --- I4, no live data dies


def pulled_from_under_a_save():
    """Packs that a sweep deleted while a save in flight could still reuse them."""
    store = create_store(memory_storage())
    run = store.create_run("r")
    launch = begin_launch(run)
    base = holds_kit.save(launch, 1, [b"a" * 5000])
    packs = [ObjectName(name) for name in base.packs]
    with begin_save(launch, 0, 2, bases=[base.address]) as attempt:
        assert attempt.known(Digest.of(b"a" * 5000))
        execute(store, plan_sweep(store, run, [base.address]))
        left = {listed.name for listed in store.storage.list(layout.private_packs(run.number))}
    return [name for name in packs if name not in left]


def test_a_sweep_spares_what_a_save_in_flight_may_reuse():
    assert pulled_from_under_a_save() == []


def test_break_4_saves_make_no_hold(monkeypatch):
    monkeypatch.setattr(saves, "_announce", lambda attempt: None)
    assert pulled_from_under_a_save() != []


# --- I5, never silently fresh


def silent_beginnings(folder, monkeypatch):
    """Starts from zero although the launcher says that the job was restarted."""
    create_store(LocalStorage(folder))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    begun = []
    with suppress(RefusedFresh):
        for ckpt, model, optimizer in toy(folder, total=1):
            begun.append(ckpt.step)
            update(model, optimizer)
    return begun


def test_a_restarted_job_never_starts_from_zero_in_silence(tmp_path, monkeypatch):
    assert silent_beginnings(tmp_path, monkeypatch) == []


def test_break_5_evidence_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(beginning, "restart_evidence", lambda *args, **kwargs: None)
    assert silent_beginnings(tmp_path, monkeypatch) != []


# --- I6, never hangs


class HungError(Exception):
    """An hour went by on the test's clock."""


class Clock:
    def __init__(self):
        self.time = 0.0

    def sleep(self, seconds):
        self.time += seconds
        if self.time > 3600:
            raise HungError


def waits_without_end():
    """Launches that wait for ever for a save that never ends."""
    clock = Clock()
    store = replace(create_store(memory_storage()), waiter=Waiter(now=lambda: clock.time, sleep=clock.sleep))
    run = store.create_run("r")
    with begin_save(begin_launch(run), 0, 1) as stuck:
        try:
            second = begin_launch(run, deadline=30.0)
        except HungError:
            return [str(stuck.address)]
        assert second.number == 2
        return []


def test_a_new_launch_waits_for_a_stuck_save_only_so_long():
    assert waits_without_end() == []


def test_break_6_a_wait_has_no_deadline(monkeypatch):
    def until(self, done, *, seconds):
        while not done():
            self.sleep(0.5)
        return True

    monkeypatch.setattr(Waiter, "until", until)
    assert waits_without_end() != []


# --- I7, no lost failure


def unheard_failures(folder, monkeypatch, **options):
    """Steps that were made after a save had failed, up to the end if nobody was told at all."""

    def full(*args, **kwargs):
        raise StorageFull("no space left", errno=errno.ENOSPC)

    monkeypatch.setattr(saving, "write_segments", full)
    made = []
    try:
        for ckpt, model, optimizer in toy(folder, total=4, **options):
            update(model, optimizer)
            made += [ckpt.step] if ckpt.step >= 2 else []
    except StorageFull:
        return made
    return [*made, "and the training ended well"]


def test_a_failed_save_reaches_the_training_loop(tmp_path, monkeypatch):
    assert unheard_failures(tmp_path, monkeypatch, on_save_error="raise") == []


def test_break_7_no_failure_is_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(Tolerance, "exceeded", lambda self, failures, seconds: None)
    assert unheard_failures(tmp_path, monkeypatch, on_save_error="raise") != []


def test_failed_saves_that_are_tolerated_reach_the_exit_code(tmp_path, monkeypatch):
    assert unheard_failures(tmp_path, monkeypatch, on_save_error="warn") == [2, 3]


def test_break_7_the_end_does_not_look_at_the_last_save(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "check", lambda self: None)
    assert unheard_failures(tmp_path, monkeypatch, on_save_error="warn") == [2, 3, "and the training ended well"]


# --- I8, no code in data


def modules_imported_by_data(tmp_path, monkeypatch):
    """Modules whose code ran because a stored value named them."""
    (tmp_path / "stored_trap.py").write_text("import enum\nclass Trap(enum.Enum):\n    SPRUNG = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with suppress(HoldfastError):
        values.decode({"$": "enum", "type": "stored_trap:Trap", "v": ["SPRUNG"]})
    return [name for name in ("stored_trap",) if sys.modules.pop(name, None)]


def test_reading_a_value_runs_no_code_that_it_names(tmp_path, monkeypatch):
    assert modules_imported_by_data(tmp_path, monkeypatch) == []


def test_break_8_named_classes_are_imported(tmp_path, monkeypatch):
    def imported(name):
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)

    monkeypatch.setattr(enums, "_class", imported)
    assert modules_imported_by_data(tmp_path, monkeypatch) != []


# --- I9, bounded

SAVES = 10
STATE_BYTES = 1500 * 1500 * 4


def growth(folder):
    """Bytes by which the process grew after the first saves, which warm the allocator of every thread up."""
    process, sizes = psutil.Process(), []
    for _, model, optimizer in toy(folder, total=SAVES + 6, width=1500, step=1, keep=1):
        update(model, optimizer)
        sizes.append(process.memory_info().rss)
    return sizes[-1] - sizes[5]


def test_memory_does_not_grow_with_the_number_of_saves(tmp_path):
    assert growth(tmp_path) < SAVES * STATE_BYTES / 2


def test_break_9_every_save_keeps_a_copy(tmp_path, monkeypatch):
    kept, save = [], Saving.save

    def hoarding(self, request, shape, content):
        kept.extend(bytes(segment.data) for lifetime in shape.lifetimes for segment in content.segments(lifetime))
        return save(self, request, shape, content)

    monkeypatch.setattr(Saving, "save", hoarding)
    assert growth(tmp_path) >= SAVES * STATE_BYTES / 2
