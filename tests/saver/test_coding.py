"""``codec="auto"``: decided from a save, if that says enough."""

from __future__ import annotations

import pytest
from tiny_training import launched, records_of

from holdfast.packs import choosing
from holdfast.packs.choosing import Choice
from holdfast.packs.codec import Codec
from holdfast.packs.segment import Segment
from holdfast.records import Sizes, Timing
from holdfast.saver import coding
from holdfast.saver.coding import ENOUGH, decided
from holdfast.saver.jobs import Shape
from holdfast.trees import Lifetime, Skeleton, TensorSpec


class Content:
    """Twenty segments of each lifetime, named in their dtype."""

    def segments(self, lifetime):
        return (Segment(memoryview(bytes(4096)), f"{lifetime}-{number}") for number in range(20))

    def kept(self):
        return {}


SHAPE = Shape(
    Skeleton(tuple(TensorSpec(str(life), "float32", (2000,), life) for life in Lifetime)),
    b"{}",
    b"",
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    place = tmp_path_factory.mktemp("coding") / "s"
    launched(place, 2, saver="inline")
    return records_of(place)[-1]


def saved(record, *, stored, writing):
    sizes = Sizes(logical=stored, new=stored, stored=stored)
    timing = Timing(stall=1, staging=0, hashing=1, writing=writing)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return type(record)(**(fields | {"bytes": sizes, "timing": timing}))


@pytest.fixture
def asked(monkeypatch):
    """What `choose` was asked."""
    found = {}

    def choose(link, samples, threads):
        found.update(link=link, samples=samples, threads=threads)
        return Choice(Codec.ZSTD, "because")

    monkeypatch.setattr(coding, "choose", choose)
    return found


def test_a_save_with_few_new_bytes_decides_nothing(record):
    assert decided(saved(record, stored=ENOUGH - 1, writing=1.0), SHAPE, Content()) is None


def test_a_save_that_has_not_written_decides_nothing(record):
    assert decided(saved(record, stored=ENOUGH, writing=0.0), SHAPE, Content()) is None


def test_the_link_is_what_all_threads_together_got_through(record, asked):
    """Four threads that waited ten seconds each have written for ten seconds."""
    assert decided(saved(record, stored=ENOUGH, writing=40.0), SHAPE, Content(), 4) == ("zstd", "because")
    assert asked["link"] == ENOUGH / 10
    assert asked["threads"] == 4


def test_samples_are_of_all_that_is_trained_and_of_nothing_that_is_frozen(record, asked):
    decided(saved(record, stored=ENOUGH, writing=1.0), SHAPE, Content())
    kinds = [one.dtype.partition("-")[0] for one in asked["samples"]]
    assert set(kinds) == {str(life) for life in Lifetime} - {str(Lifetime.FROZEN)}
    assert len(kinds) == 3 * len(set(kinds))


def test_the_reason_is_a_sentence_with_figures(record):
    choice = decided(saved(record, stored=ENOUGH, writing=40.0), SHAPE, Content())
    assert choice is not None
    assert choice[0] in {str(codec) for codec in Codec}
    assert "of the bytes at" in choice[1]
    assert choosing.GAIN
