"""Every kind of stored object, damaged in every way, and then the training is started again.

It goes on from the damaged checkpoint's nearest good ancestor, loudly, or it ends with an error that names the
object and what to do. It never begins from zero, and it never trains on other weights than those that were saved:
the batches of these trainings come from the restored random state, so whatever it resumes from, twelve steps give
one fingerprint.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from tiny_training import Stop, crash_at, expected, launched, records_of

import holdfast
from holdfast.catalog import layout
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import Damaged, RefusedFresh
from holdfast.ids import TagName
from holdfast.testing.faults import cut, flip_bit

TOTAL = 12


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2, 4 and 6, two launches, two tags, two runs; killed in the step after 6."""
    store = tmp_path_factory.mktemp("intact") / "s"
    with pytest.raises(Stop):
        launched(store, TOTAL, then=crash_at(4))
    with pytest.raises(Stop):
        launched(store, TOTAL, then=crash_at(6))
    launched(store, 2, run="another-one")
    opened = holdfast.open(store)
    for name, record in zip(("first", "second"), opened.run(1).records()[-2:], strict=True):
        holdfast.catalog.naming.tags.create_tag(opened, TagName(name), record.address)
    assert [record.step for record in opened.run(1).records()] == [2, 4, 6]
    assert verify(opened, deep=True).ok
    return store


@pytest.fixture
def store(intact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact, tmp_path / "s")


def _glob(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda store: sorted(store.glob(pattern))


def _manifests(store: Path) -> list[Path]:
    return [store / layout.tree(record.address.run, record.manifest_digest) for record in records_of(store)]


def _skeletons(store: Path) -> list[Path]:
    trees = (store / "catalog/runs/001/trees").iterdir()
    skeletons = sorted(set(trees) - set(_manifests(store)))
    return [_manifests(store)[0], *skeletons]


def _packs(store: Path) -> list[Path]:
    before, last = records_of(store)[-2:]
    return [store / next(name for name in one.packs) for one in (before, last)]


def _marks(store: Path) -> list[Path]:
    return [next((store / f"catalog/runs/001/marks/{one.id}").glob("verified-*")) for one in records_of(store)]


KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "record": _glob("catalog/runs/001/records/*.json"),
    "manifest": _manifests,
    "skeleton": _skeletons,
    "pack": _packs,
    "tag": _glob("catalog/tags/*.json"),
    "mark": _marks,
    "run.json": lambda store: [store / f"catalog/runs/00{number}/run.json" for number in (2, 1)],
    "launch": _glob("catalog/runs/001/launches/??????.json"),
    "start": _glob("catalog/runs/001/launches/??????.???.json"),
    "journal": _glob("catalog/runs/001/journal/*/*.json"),
    "holdfast.json": lambda store: [store / "catalog/runs/002/run.json", store / "holdfast.json"],
}
"""Of each kind two objects: the last one is what is damaged, and the one before is what it is swapped with."""


def _truncate(path: Path, other: Path) -> None:
    cut(path, path.stat().st_size // 2)


def _empty(path: Path, other: Path) -> None:
    cut(path, 0)


def _flip(path: Path, other: Path) -> None:
    flip_bit(path, 8 * path.stat().st_size // 3)


def _flip_near_the_end(path: Path, other: Path) -> None:
    flip_bit(path, 8 * path.stat().st_size - 150)


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _swap(path: Path, other: Path) -> None:
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _later_format(path: Path, other: Path) -> None:
    """As a later holdfast would write it: sealed, with a version that nobody knows yet."""
    fields = json.loads(path.read_text())
    fields.pop("seal")
    body = json.dumps({**fields, "format": 999}, indent=2)[:-2].encode() + b",\n"
    path.write_bytes(body + b'  "seal": "' + blake3(body).hexdigest().encode() + b'"\n}\n')


HURTS = {
    "truncated": _truncate,
    "empty": _empty,
    "bit-flipped": _flip,
    "bit-flipped near its end": _flip_near_the_end,
    "missing": _remove,
    "swapped": _swap,
    "of a later format": _later_format,
}

SEALED = ("record", "tag", "mark", "run.json", "launch", "start", "journal", "holdfast.json")

NEEDED = ("record", "manifest", "pack")
"""The head cannot be used, and the checkpoint before is intact, unless the two were swapped."""

HARMLESS = ("tag", "mark", "launch", "start", "journal")
"""Nothing of the head hangs on them."""

TABLE = [(kind, hurt) for kind in KINDS for hurt in HURTS if hurt != "of a later format" or kind in SEALED]


@pytest.mark.parametrize(("kind", "hurt"), TABLE, ids=[f"{kind}-{hurt}".replace(" ", "-") for kind, hurt in TABLE])
def test_a_damaged_object_never_gives_wrong_weights_and_never_a_silent_fresh_start(
    store: Path, kind: str, hurt: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault table: truncated, empty, bit-flipped, missing, swapped, unknown; users-ask 5."""
    *_, other, path = KINDS[kind](store)
    HURTS[hurt](path, other)
    name = path.relative_to(store).as_posix()
    if kind in HARMLESS or kind in NEEDED:
        done = launched(store, TOTAL)
        assert done.steps[0] == (6 if kind in HARMLESS else 2 if hurt == "swapped" else 4)
        assert done.digest == expected()[TOTAL]
        loud = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        assert kind in HARMLESS or any("passed over" in line for line in loud), caplog.text
    else:
        with pytest.raises((RefusedFresh, Damaged)) as caught:
            launched(store, TOTAL)
        assert path.name in str(caught.value), f"the error does not name {name}: {caught.value}"


@pytest.mark.parametrize("hurt", ["truncated", "bit-flipped", "missing"])
def test_with_every_record_damaged_the_training_refuses_to_begin_from_zero(store: Path, hurt: str) -> None:
    """A run whose records cannot be read looks as if it had none."""
    records = KINDS["record"](store)
    for path in records:
        HURTS[hurt](path, path)
    with pytest.raises(RefusedFresh) as caught:
        launched(store, TOTAL)
    assert "run-001" in str(caught.value)
    assert "new_run" in str(caught.value)


def test_with_every_pack_damaged_every_rejected_checkpoint_is_named(store: Path) -> None:
    for path in store.glob("data/runs/001/*.pack"):
        flip_bit(path, 8 * 5000)
    with pytest.raises(RefusedFresh) as caught:
        launched(store, TOTAL)
    assert all(f"run-001@{step}" in str(caught.value) for step in (2, 4, 6))


def test_a_lost_head_that_a_launch_resumed_from_is_missed_aloud(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can miss a file that nothing names; but this one is named by the launch that began with it."""
    with pytest.raises(Stop):
        launched(store, TOTAL, then=crash_at(6))
    KINDS["record"](store)[-1].unlink()
    done = launched(store, TOTAL)
    assert done.steps[0] == 4
    assert done.digest == expected()[TOTAL]
    assert any("run-001@6" in one.getMessage() and one.levelno >= logging.WARNING for one in caplog.records)


def test_a_run_that_lost_its_own_file_does_not_give_its_number_to_another(store: Path) -> None:
    """Else the new run would find the old one's checkpoints in its folder, and train on them."""
    (store / "catalog/runs/002/run.json").unlink()
    done = launched(store, 3, run=holdfast.new_run("a-third"))
    assert done.steps == [0, 1, 2]
    assert done.ckpt.last is not None
    assert done.ckpt.last.run == 3


def test_a_tag_that_cannot_be_read_is_not_resumed_from(store: Path) -> None:
    flip_bit(KINDS["tag"](store)[-1], 100)
    with pytest.raises(Damaged, match="second"):
        launched(store, TOTAL, resume="tag:second")


def test_a_damaged_object_is_not_written_over_by_the_launch_that_finds_it(store: Path) -> None:
    """What is damaged may still be repaired from a mirror, and is evidence."""
    path = KINDS["pack"](store)[-1]
    flip_bit(path, 8 * 5000)
    damaged = path.read_bytes()
    assert launched(store, TOTAL).steps[0] == 4
    assert path.read_bytes() == damaged


def test_a_checkpoint_that_was_asked_for_by_name_is_not_replaced_by_another(store: Path) -> None:
    """Resuming by itself walks back; a person who says ``@6`` does not mean ``@4``."""
    flip_bit(KINDS["pack"](store)[-1], 8 * 5000)
    for options in ({"resume": "run-001@6"}, {"resume": "run-001@6", "run": "a-third"}):
        with pytest.raises(Damaged):
            launched(store, TOTAL, **options)


def test_a_fork_whose_origin_is_damaged_goes_on_from_its_own_checkpoints(store: Path) -> None:
    launched(store, 8, run="a-third", resume="run-001@6")
    flip_bit(KINDS["pack"](store)[-1], 8 * 5000)
    done = launched(store, TOTAL, run="a-third", resume="run-001@6")
    assert done.steps[0] == 8
    assert done.digest == expected()[TOTAL]


def test_with_every_record_of_a_first_launch_gone_its_marks_are_evidence(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        launched(tmp_path / "s", TOTAL, then=crash_at(4))
    for path in (tmp_path / "s/catalog/runs/001/records").iterdir():
        path.unlink()
    with pytest.raises(RefusedFresh, match="it is not there"):
        launched(tmp_path / "s", TOTAL)
