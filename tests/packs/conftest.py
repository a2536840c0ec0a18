from __future__ import annotations

import random

import pytest
from packs_kit import Heap

from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import memory_storage


@pytest.fixture
def heap():
    return Heap()


@pytest.fixture(params=["heap", "aligned heap", "local", "memory"])
def storage(request, tmp_path):
    made = {"heap": Heap, "aligned heap": lambda: Heap(4096), "local": lambda: LocalStorage(tmp_path / "store")}
    return made.get(request.param, memory_storage)()


@pytest.fixture
def rng():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)
