"""Parts of ranks become one manifest: whoever has what, in whatever order, every digest lies where readers look."""

import random
from itertools import pairwise

import msgspec
import pytest

from holdfast.boxes import SEGMENT_BYTES, Box, cut_count, whole
from holdfast.catalog.parts import Part, Prints
from holdfast.errors import SaveFailed
from holdfast.ids import Digest
from holdfast.payload import Places, counts, tensors_in_order
from holdfast.saver.merging import Merging, pack_boxes, without_boxes
from holdfast.saver.merging_values import merge_values
from holdfast.saver.together import drifted
from holdfast.trees import Lifetime, Skeleton, Spread, TensorSpec, decode_skeleton, item_bytes

LARGE = SEGMENT_BYTES // 64


def spec(name, shape, boxes=None, dtype="float32"):
    spread = None if boxes is None else Spread(tuple(boxes), (0,) * len(boxes))
    return TensorSpec(name, dtype, tuple(shape), Lifetime.PARAMETER, spread=spread)


def digest(name, box, number):
    return bytes(Digest.of(f"{name} {box} {number}".encode()))


def digests_of(specs, salt=""):
    return b"".join(
        digest(one.name + salt, box, number)
        for one in specs
        if not one.inline
        for box in one.boxes
        for number in range(cut_count(box, item_bytes(one.dtype)))
    )


def part(rank, specs, world, inline=b"", salt=""):
    structure = without_boxes(Skeleton(tuple(specs)))
    packed, boxes = pack_boxes(specs)
    made = Part(
        rank=rank,
        world=world,
        tensors=bytes(Digest.of(structure.encode())),
        values=bytes(32),
        counts=packed,
        boxes=boxes,
        digests=digests_of(specs, salt),
        inline=inline,
        own=f'{{"rank":{rank}}}'.encode(),
    )
    return made, structure


def merged(ranks, merging=None, inline=None, salts=None):
    made = [
        part(rank, specs, len(ranks), (inline or {}).get(rank, b""), (salts or {}).get(rank, ""))
        for rank, specs in enumerate(ranks)
    ]
    return (merging or Merging()).merge([p for p, _ in made], {p.tensors: s for p, s in made}, b"{}")


def rows(shape, edges):
    return [whole(shape).rows(first, last) for first, last in pairwise(edges)]


@pytest.mark.parametrize("seed", range(30))
def test_every_digest_is_found_where_readers_look_for_it(seed):
    numbers = random.Random(seed)
    world = numbers.randrange(1, 6)
    shapes = {f"t{i}": (numbers.randrange(1, 60), numbers.choice([300, LARGE, SEGMENT_BYTES // 2])) for i in range(6)}
    ranks = [[] for _ in range(world)]
    for name, shape in shapes.items():
        owners = sorted(numbers.sample(range(world), numbers.randrange(1, world + 1)))
        edges = [0, *sorted(numbers.randrange(shape[0] + 1) for _ in owners[1:]), shape[0]]
        for rank, box in zip(owners, rows(shape, edges), strict=True):
            ranks[rank].append(spec(name, shape, [box] if box.elements else []))
    for specs in ranks:
        numbers.shuffle(specs)
    manifest = merged(ranks)
    skeleton = decode_skeleton("x", manifest.skeleton.encode(), manifest.skeleton_digest)
    assert counts(skeleton) == manifest.by_part
    places = Places(skeleton, manifest.by_part)
    assert {one.name for one in skeleton.tensors} == set(shapes)
    for at, one in enumerate(skeleton.tensors):
        for number, box in enumerate(one.boxes):
            found = [manifest.digest(place) for place in places.of(at, number)]
            assert found == [digest(one.name, box, n) for n in range(cut_count(box, 4))]
    owners = list(tensors_in_order(skeleton))
    assert len(owners) == len(manifest.digests) // 32
    assert manifest.own == tuple(f'{{"rank":{rank}}}'.encode() for rank in range(world))


def test_an_unchanged_structure_is_not_looked_at_again():
    merging, shape = Merging(), (8, LARGE)
    ranks = [[spec("a", shape, [box])] for box in rows(shape, [0, 5, 8])]
    first, second = merged(ranks, merging), merged(ranks, merging, salts={1: "changed"})
    assert second.skeleton is first.skeleton
    assert second.digests != first.digests


def test_what_two_ranks_have_without_evidence_is_kept_once_if_it_is_equal():
    specs = [spec("a", (900, 3)), spec("b", (700, 2))]
    manifest = merged([specs, list(reversed(specs))])
    assert manifest.by_part == (2, 0)
    assert all(one.spread is None for one in manifest.skeleton.tensors)


def test_and_refused_if_it_is_not():
    with pytest.raises(SaveFailed, match=r"a is not the same on rank 0 and on rank 1.*per_rank.*prefix="):
        merged([[spec("a", (900, 3))]] * 2, salts={1: "other"})


@pytest.mark.parametrize(
    ("edges", "text"), [([0, 4, 7], r"nobody has \[7:8, :\]"), ([0, 5, 8], r"2 have \[4:5, 0:131072\]")]
)
def test_a_tensor_that_is_not_covered_exactly_once_is_named(edges, text):
    shape = (8, LARGE)
    first, second = rows(shape, [0, 4, 8])
    boxes = {7: [first, second.rows(4, 7)], 8: [first.rows(0, 5), second]}[edges[-1]]
    with pytest.raises(SaveFailed, match=rf"a of shape .* cannot be put together: {text}"):
        merged([[spec("a", shape, [box])] for box in boxes])


def test_structures_that_contradict_each_other_are_named():
    with pytest.raises(SaveFailed, match=r"a has another shape on rank 1 \(\[901, 3\]\) than on rank 0 \(\[900, 3\]\)"):
        merged([[spec("a", (900, 3))], [spec("a", (901, 3))]])


def test_small_tensors_are_put_together_from_pieces():
    box = Box((0, 0), (2, 3)), Box((0, 3), (2, 1)), Box((2, 0), (1, 4))
    ranks = [[spec("s", (3, 4), [one], "uint8")] for one in box]
    pages = {0: b"abcefg", 1: b"dh", 2: b"ijkl"}
    assert merged(ranks, inline=pages).inline == b"abcdefghijkl"


def test_small_tensors_that_are_whole_on_some_ranks_must_be_the_same():
    ranks = [[spec("s", (3,), dtype="uint8")], [spec("s", (3,), dtype="uint8")], [spec("s", (3,), [], "uint8")]]
    assert merged(ranks, inline={0: b"abc", 1: b"abc"}).inline == b"abc"
    with pytest.raises(SaveFailed, match="s is not the same on rank 0 and on rank 1"):
        merged(ranks, inline={0: b"abc", 1: b"abd"})
    with pytest.raises(SaveFailed, match="s cannot be put together"):
        merged([ranks[2]])


def document(params, lr=1, **parts):
    data = {"groups": [{"params": params, "values": {"lr": lr}}], "state": {"m": {params[0][1]: {}}}, "other": {}}
    return {"objects": {"o": {"kind": "optimizer", "data": data}}, "values": {"user": {}, "files": {}, **parts}}


def joined(*documents):
    encoded = {3 * at: msgspec.json.encode(one) for at, one in enumerate(documents)}
    return msgspec.json.decode(merge_values(encoded))


def test_values_are_joined_by_name_and_conflicts_are_named():
    a, b = document([["m", "a"]]), document([["m", "b"]])
    data = joined(a, b)["objects"]["o"]["data"]
    assert data["groups"][0]["params"] == [["m", "a"], ["m", "b"]]
    assert list(data["state"]["m"]) == ["a", "b"]
    with pytest.raises(SaveFailed, match=r"o/groups/0/values/lr is 1 on rank 0 and 2 on rank 3"):
        joined(a, document([["m", "b"]], lr=2))


def test_plain_values_are_joined_by_name_alone():
    a, b = document([["m", "a"]], user={"x": 1}), document([["m", "a"]], user={"y": [2]}, empty_files=["z"])
    assert joined(a, b)["values"] == {"user": {"x": 1, "y": [2]}, "files": {}, "empty_files": ["z"]}
    for one, other in (({"c": 3}, {"d": 5}), ([0], [1]), (1, True)):
        with pytest.raises(SaveFailed, match=r"values/user/params.*ckpt.values are the same on all ranks"):
            joined(document([["m", "a"]], user={"params": one}), document([["m", "a"]], user={"params": other}))


def test_state_of_other_objects_is_never_mixed():
    counters = [{"kind": "object", "data": {name: 1}} for name in ("code", "web")]
    with pytest.raises(SaveFailed, match="mixture"):
        joined(*({"objects": {"mixture": one}, "values": {}} for one in counters))


def test_the_rank_that_differs_from_most_is_the_one_that_has_drifted():
    specs = [spec("a", (900, 3)), spec("b", (700, 2))]
    made = []
    for rank in range(3):
        one, structure = part(rank, specs, 3)
        prints = bytes(16) + (b"x" if rank == 1 else b"y") * 16
        places = b"".join(number.to_bytes(4, "little") for number in (0, 1))
        made.append(msgspec.structs.replace(one, prints=[Prints((0, 1, 2), places, prints)]))
    (text,) = drifted(made, {made[0].tensors: structure})
    assert "b on rank 1 differs from the other replicas" in text
    assert drifted(made[::2], {made[0].tensors: structure}) == []
