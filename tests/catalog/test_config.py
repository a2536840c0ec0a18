from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.catalog.config import changed_keys, config_digest, plain_config
from holdfast.catalog.store import create_store, existing_store
from holdfast.storage.memory import memory_storage


class Activation(enum.Enum):
    RELU = 1


ORDINARY = {
    "out": Path("/x"),
    "z": 1j,
    "layers": {1, 2},
    "salt": b"raw",
    "act": Activation.RELU,
    "betas": (0.9, 0.95),
    "clip": math.nan,
    "by_layer": {1: 2},
}


@dataclass
class Config:
    lr: float = 0.1


def test_a_relaunch_with_the_same_configuration_has_changed_nothing(store):
    """Sets that came back as lists, bytes as base64 and enums as their values were told at every relaunch."""
    info = store.create_run("toy", config=ORDINARY, config_digest=config_digest(ORDINARY)).info
    found = existing_store(store.storage).runs()[0]
    assert list(changed_keys(found.config, ORDINARY)) == []
    assert config_digest(found.config) == found.config_digest == info.config_digest


def test_a_value_whose_class_has_moved_has_not_changed(store):
    run = store.create_run("toy", config={"act": Activation.RELU})
    shown = {"act": "Activation.RELU"}
    assert run.info.config == {"act": Activation.RELU}
    assert list(changed_keys(shown, {"act": Activation.RELU})) == []


@pytest.mark.parametrize(("then", "now"), [((1, 2), [1, 2]), ({1}, {1, 2}), (1, True), (math.nan, 1.0)])
def test_another_value_is_a_change(then, now):
    assert list(changed_keys({"key": then}, {"key": now})) == [(("key",), then, now)]


def test_a_dataclass_is_stored_by_its_fields():
    store = create_store(memory_storage())
    run = store.create_run("toy", config=plain_config(Config()))
    assert store.run(run.number).info.config == {"lr": 0.1}
