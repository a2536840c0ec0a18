"""Loads from whatever copy of a segment is whole."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast import every
from holdfast.catalog.marks import add_mark
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import Damaged
from holdfast.ids import ObjectName
from holdfast.packs.index import read_footer
from holdfast.records import MarkKind
from holdfast.recovery.restoring.loading import load_objects


def trained(place: Path, steps: int) -> torch.nn.Module:
    """A model that training does not change, so that every checkpoint has the same segments."""
    model = torch.nn.Linear(64, 64)
    with holdfast.Checkpointer(place, run="toy", state={"model": model}, save=every(steps=2)) as ckpt:
        for _ in ckpt.steps(steps):
            pass
    return model


def spoil(place: Path, pack: str) -> None:
    store = holdfast.open(place)
    path = place / pack
    data = bytearray(path.read_bytes())
    data[read_footer(store.storage, ObjectName(pack))[0].offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
def twice(tmp_path):
    """Two checkpoints with equal weights in two packs: a read-back had found the first pack rotten in between."""
    trained(tmp_path, 4)
    store = holdfast.open(tmp_path)
    first, shares = store.run(1).records()
    assert first.packs == shares.packs
    add_mark(store, shares.address, MarkKind.QUARANTINED, by="saver", data={"packs": first.packs})
    model = trained(tmp_path, 6)
    second = store.run(1).records()[-1]
    assert set(second.packs).isdisjoint(first.packs)
    return tmp_path, first, second, model


def test_a_checkpoint_with_a_rotten_pack_loads_from_the_copy_in_another(twice, caplog):
    """A save wrote the segments again because the first copy was rotten; the first checkpoint lives on that copy."""
    place, first, second, model = twice
    spoil(place, first.packs[0])
    caplog.set_level(logging.ERROR)
    fresh = torch.nn.Linear(64, 64)
    load_objects(holdfast.open(place), first, {"model": fresh})
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert f"the copy in {second.packs[0]} is used instead" in caplog.text
    assert verify(holdfast.open(place), deep=True).affected == ()


def test_a_checkpoint_without_any_whole_copy_is_refused(twice):
    place, first, second, _ = twice
    for record in (first, second):
        spoil(place, record.packs[0])
    with pytest.raises(Damaged):
        load_objects(holdfast.open(place), first, {"model": torch.nn.Linear(64, 64)})
    assert verify(holdfast.open(place), deep=True).affected == tuple(
        one.address for one in holdfast.open(place).run(1).records()
    )
