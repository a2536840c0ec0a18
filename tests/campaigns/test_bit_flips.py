"""One changed bit anywhere in a store that has lived: ``holdfast verify --deep`` finds it and names the object."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_kit import kind_of
from lived_kit import make_cut_off, prepared

import holdfast
from holdfast.catalog.store import Store
from holdfast.catalog.verifying.checking import read_small
from holdfast.catalog.verifying.trees import check_tree
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import Damaged
from holdfast.ids import ObjectName
from holdfast.storage.protocol import Listed
from holdfast.testing.faults import flip_bit

SEED = 20_260_102

KINDS = {
    "holdfast.json",
    "a run",
    "a launch",
    "a start",
    "a record",
    "a tree",
    "a mark",
    "a hold",
    "a batch of a journal",
    "a tag",
    "a sweep",
}
PACKS = {"a pack", "a shared pack"}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one a fork, tags, marks, journals, a frozen base, several packs; a save and an rm that were cut off."""
    return prepared(tmp_path_factory.mktemp("flips") / "lived", make_cut_off)


def names(store: Path, *, packs: bool) -> list[str]:
    found = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return [name for name in found if name.startswith("data/") == packs and "/.tmp-" not in name]


def problems_with(store: Path, name: str, bit: int) -> set[str]:
    """The objects that the deep check names while one bit is wrong."""
    opened = holdfast.open(store)
    flip_bit(store / name, bit)
    try:
        return {str(problem.object) for problem in verify(opened, deep=True).problems}
    finally:
        flip_bit(store / name, bit)


def table(counts: Counter[str], found: Counter[str]) -> str:
    return "\n".join(f"{kind:24} {counts[kind]:8} bits flipped {found[kind]:8} found" for kind in sorted(counts))


def test_the_store_holds_everything_there_is(lived: Path) -> None:
    assert verify(holdfast.open(lived), deep=True).ok
    small, packs = names(lived, packs=False), names(lived, packs=True)
    assert {kind_of(name) for name in small} == KINDS
    assert {kind_of(name) for name in packs} == PACKS
    assert len(packs) >= 4


@pytest.mark.parametrize("every", [997, pytest.param(7, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_the_deep_check_names_every_small_object_with_a_flipped_bit(lived: Path, every: int) -> None:
    """Hazards 13. The first and the last bit of each, and every so many in between."""
    counts, found = Counter[str](), Counter[str]()
    for name in names(lived, packs=False):
        bits = 8 * (lived / name).stat().st_size
        stride = max(every, bits // 8) if every > 8 else every  # trees are large, and most of it is one page
        for bit in sorted({0, bits - 1, *range(random.Random(SEED).randrange(stride), bits, stride)}):
            counts[kind_of(name)] += 1
            assert name in problems_with(lived, name, bit), f"bit {bit} of {name}"
            found[kind_of(name)] += 1
    assert verify(holdfast.open(lived), deep=True).ok
    print(f"\n{table(counts, found)}")


class One:
    """A storage with one object in it: what the check does to each, without all the others."""

    url = "one object"

    def __init__(self, name: str, data: bytearray) -> None:
        self.name, self.data = ObjectName(name), data

    def list(self, prefix: str) -> Iterator[Listed]:
        return iter([Listed(self.name, len(self.data))])

    def read(self, name: ObjectName) -> bytes:
        return bytes(self.data)


def is_found(store: Store, name: str) -> bool:
    """What the check says to an object itself, by the very functions that `verify` is made of."""
    if "/trees/" not in name:
        return [str(problem.object) for problem in read_small(store).problems] == [name]
    try:
        check_tree(store, ObjectName(name))
    except Damaged:
        return True
    return False


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_every_bit_of_every_small_object_is_covered(lived: Path, stride: int) -> None:
    """Hazards 13, without sampling in the long form; every eleventh, so all places in a byte, in the short one."""
    counts, found = Counter[str](), Counter[str]()
    info = holdfast.open(lived).info
    for name in names(lived, packs=False):
        one = One(name, bytearray((lived / name).read_bytes()))
        store = Store(storage=one, info=info)
        assert not is_found(store, name)
        for bit in range(0, 8 * len(one.data), stride):
            one.data[bit // 8] ^= 1 << bit % 8
            counts[kind_of(name)] += 1
            assert is_found(store, name), f"bit {bit} of {name}"
            found[kind_of(name)] += 1
            one.data[bit // 8] ^= 1 << bit % 8
    print(f"\n{table(counts, found)}")


@pytest.mark.parametrize("bits", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_the_deep_check_finds_any_bit_of_any_pack(lived: Path, bits: int) -> None:
    """Users-ask 5: a bit flip loads silently nowhere; payload, padding, header and footer alike."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    packs = names(lived, packs=True)
    sizes = [(lived / name).stat().st_size for name in packs]
    counts, found = Counter[str](), Counter[str]()
    for name in rng.choices(packs, weights=sizes, k=bits):
        bit = rng.randrange(8 * (lived / name).stat().st_size)
        counts[kind_of(name)] += 1
        assert name in problems_with(lived, name, bit), f"seed {seed}: bit {bit} of {name}"
        found[kind_of(name)] += 1
    assert verify(holdfast.open(lived), deep=True).ok
    print(table(counts, found))


def typed(store: Path) -> tuple[int, str]:
    """The exit code and the output of the command itself, in a process of its own."""
    code = "from holdfast.cli import main; main()"
    words = [sys.executable, "-c", code, "verify", "--deep", "--store", str(store)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_command_ends_with_the_code_of_damage_and_names_the_object(lived: Path) -> None:
    """Users-ask 5. In scripts the exit code is all that counts."""
    assert typed(lived)[0] == 0
    for kind in ("a record", "a tag", "a pack"):
        name = next(name for name in (*names(lived, packs=False), *names(lived, packs=True)) if kind_of(name) == kind)
        flip_bit(lived / name, 8 * 100)
        code, said = typed(lived)
        flip_bit(lived / name, 8 * 100)
        assert code == Damaged.exit_code
        assert name in "".join(said.split())
    assert typed(lived)[0] == 0
