"""The document of a staged save: all that is needed to make the checkpoint, but for the bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.boxes import SEGMENT_BYTES
from holdfast.errors import Corrupt, Damaged
from holdfast.ids import Digest
from holdfast.records import Kind, Target
from holdfast.saver.jobs import Positions, SaveRequest, Shape, decode_job, encode_job
from holdfast.trees import Lifetime, Skeleton, TensorSpec

TRAINED, MOMENTS, FROZEN = Lifetime.PARAMETER, Lifetime.OPTIMIZER, Lifetime.FROZEN


def spec(name, elements, lifetime=TRAINED):
    return TensorSpec(name, "uint8", (elements,), lifetime)


def request(**fields):
    settings = {"timeline": 0, "step": 7, "epoch": None, "parent": None, "kind": Kind.BEST, "reason": "best(loss)"}
    return SaveRequest(**(settings | {"attempt": "a" * 16, "began": 1.5} | fields))


SHAPE = Shape(Skeleton((spec("a", 2000), spec("b", 10), spec("c", 3000, FROZEN))), b'{"x":1}', b"0123456789", ("odd",))


def test_what_is_encoded_is_decoded():
    asked = request(
        metrics={"loss": 0.5, "text": "so so"}, tags=["mine"], epoch=3, parent=target(6), anomalies=["well"], stall=0.25
    )
    found, shape, job = decode_job(encode_job(asked, SHAPE, [0, -1], stored_in=target(5)))
    assert found == asked
    assert (shape.skeleton, shape.values, shape.inline, shape.anomalies) == (
        SHAPE.skeleton,
        b'{"x":1}',
        b"0123456789",
        ("odd",),
    )
    assert job.offsets == [0, -1]
    assert job.stored_in == target(5)


def target(step):
    return Target(run=1, launch=2, timeline=0, step=step, id="0123456789abcdef")


def test_metrics_that_json_has_no_number_for_survive():
    asked = request(metrics={"inf": float("inf"), "count": 2**70})
    found, _, _ = decode_job(encode_job(asked, SHAPE, [0, 4096]))
    assert found.metrics == asked.metrics


@pytest.mark.parametrize(
    "bad", [b"", b"\x90", b"not msgpack at all", msgspec.msgpack.encode([b"", b"", b"", b"", [], []])]
)
def test_something_else_is_refused(bad):
    with pytest.raises(Damaged):
        decode_job(bad)


def test_a_request_that_was_changed_is_refused():
    document = encode_job(request(), SHAPE, [0, 4096])
    with pytest.raises(Corrupt):
        decode_job(document.replace(b"best(loss)", b"best(l0ss)"))


def test_large_tensors_are_those_that_are_not_inline():
    assert [one.name for one in SHAPE.large] == ["a", "c"]
    assert SHAPE.lifetimes == {TRAINED, FROZEN}
    assert SHAPE.logical_bytes == 5010


def digest(number):
    return Digest.of(number.to_bytes(4, "little"))


def test_digests_of_lifetimes_go_to_their_places():
    specs = [spec("a", 2000), spec("b", 2000, MOMENTS), spec("c", SEGMENT_BYTES + 1), spec("d", 2000, FROZEN)]
    positions = Positions(specs)
    assert positions.count == 5
    assert positions.starts == [0, 1, 2, 4]
    written = {TRAINED: [digest(0), digest(2), digest(3)], MOMENTS: [digest(1)]}
    assert list(positions.merged(written, {4: digest(4)})) == [digest(number) for number in range(5)]


@given(st.lists(st.sampled_from([TRAINED, MOMENTS, FROZEN]), max_size=12), st.data())
def test_every_way_of_keeping_some_and_writing_others_gives_the_same_order(lifetimes, data):
    specs = [spec(f"t{number}", 2000, lifetime) for number, lifetime in enumerate(lifetimes)]
    kept = data.draw(st.sets(st.integers(0, max(0, len(specs) - 1)))) if specs else set()
    written = {}
    for place, lifetime in enumerate(lifetimes):
        if place not in kept:
            written.setdefault(lifetime, []).append(digest(place))
    found = Positions(specs).merged(written, {place: digest(place) for place in kept})
    assert list(found) == [digest(place) for place in range(len(specs))]


def test_a_digest_too_many_or_too_few_is_no_checkpoint():
    positions = Positions([spec("a", 2000), spec("b", 2000)])
    for digests in ([digest(0)], [digest(0), digest(1), digest(2)]):
        with pytest.raises(ValueError, match="zip"):
            list(positions.merged({TRAINED: digests}, {}))
