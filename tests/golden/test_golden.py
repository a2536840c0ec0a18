"""Stores that were made when a format was released are read for ever: to the last bit, on one process."""

import json
import tarfile
from pathlib import Path

import pytest
import topologies
from golden_worker import CODECS, STEPS, digests

import holdfast
from holdfast.catalog.verifying.verify import verify

STORES = sorted(Path(__file__).parent.glob("format-*/*.tar.xz"))


@pytest.fixture(params=STORES, ids=lambda path: f"{path.parent.name}/{path.name.partition('.')[0]}")
def store(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    name = request.param.name.partition(".")[0]
    if name.endswith("openzl"):
        pytest.importorskip("openzl")
    return tmp_path / name, json.loads((request.param.parent / f"{name}.json").read_text())


def test_every_topology_and_codec_is_there():
    names = {path.name.partition(".")[0] for path in STORES if path.parent.name == "format-1"}
    hows = [how for by_world in topologies.NET.values() for how in by_world]
    assert names == {*(f"net-{how}" for how in hows), "deep-pp2", *(f"net-one-{codec}" for codec in CODECS[1:])}


def test_a_golden_store_is_sound_to_the_last_byte(store):
    folder, _ = store
    assert verify(holdfast.open(folder), deep=True).problems == ()


def test_a_golden_store_loads_bit_for_bit(store):
    folder, wanted = store
    kind = folder.name.partition("-")[0]
    model, optimizer = topologies.made(kind, "one", seed=5)
    with holdfast.Checkpointer(folder, run="golden", state={"model": model, "optimizer": optimizer}) as ckpt:
        ckpt.restore()
        assert ckpt.step == STEPS
        assert ckpt.values["text"] == "kept"
        assert ckpt.last.metrics == {"loss": 1.5}
    assert digests(kind, "one", model, optimizer) == wanted
