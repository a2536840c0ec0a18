"""Holdings against the values that torch puts on each rank of real process groups, and against torch.chunk."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from itertools import pairwise, product

import holding_worker
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.boxes import Box, uncovered
from holdfast.state import holding
from holdfast.state.holding import Split, pieces, runs

REFUSED = {
    "partial": "partial has values that are not yet reduced (Partial(sum)); redistribute it to",
    "derived_placement": "derived_placement has the placement ",
}
SOMEWHERE_REFUSED = {
    "local_of_another_shape": "has the local shape [2, 3], but (Shard(dim=0),) make [",
    "strided_and_rows_where_the_meanings_differ": "] of [7, 3] at (",
}
HELD = [
    (world, name)
    for world, cases in holding_worker.CASES.items()
    for name in cases
    if name not in REFUSED | SOMEWHERE_REFUSED
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """What every rank of every world said, by world and case, in the order of ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    command = [sys.executable, holding_worker.__file__, str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=holding_worker.SECONDS + 30)
    assert done.returncode == 0, done.stderr[-8000:]
    return {world: by_case(folder, world) for world in holding_worker.CASES}


def by_case(folder, world):
    ranks = [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    return {name: [said[name] for said in ranks] for name in holding_worker.CASES[world]}


def window(values: torch.Tensor, begin, sizes) -> torch.Tensor:
    return values[tuple(slice(a, a + n) for a, n in zip(begin, sizes, strict=True))]


@pytest.mark.parametrize(("world", "name"), HELD)
def test_what_is_said_to_be_held_is_what_torch_has_put_there(worlds, world, name):
    for said in worlds[world][name]:
        whole = holding_worker.numbers(*said["shape"])
        local = torch.tensor(said["local"]).reshape(said["local_shape"])
        for offsets, sizes, at in said["pieces"]:
            assert torch.equal(window(local, at, sizes), window(whole, offsets, sizes)), said
        held = sum(Box(tuple(offsets), tuple(sizes)).elements for offsets, sizes, _ in said["pieces"])
        assert held == (local.numel() if said["holders"] else 0), said
        assert [at for *_, at in said["pieces"]] == sorted(at for *_, at in said["pieces"])


@pytest.mark.parametrize(("world", "name"), HELD)
def test_groups_of_holders_have_the_same_and_together_everything_once(worlds, world, name):
    ranks = worlds[world][name]
    groups = {tuple(said["holders"]): said for said in ranks if said["holders"]}
    assert all(said == groups[tuple(said["holders"])] for said in ranks if said["holders"])
    inside = [rank for holders in groups for rank in holders]
    assert len(inside) == len(set(inside))
    assert all(rank in said["holders"] for rank, said in enumerate(ranks) if said["holders"])
    held = [Box(tuple(a), tuple(n)) for said in groups.values() for a, n, _ in said["pieces"]]
    assert uncovered(ranks[0]["shape"], held) is None


@pytest.mark.parametrize(("world", "name"), HELD)
def test_a_tensor_like_one_before_gets_the_same_object(worlds, world, name):
    assert all(said["again"] for said in worlds[world][name] if said["holders"])


def test_holders_stand_in_the_order_of_the_mesh_and_others_hold_nothing(worlds):
    four = worlds[4]
    assert [said["holders"] for said in four["mesh_in_another_order"]] == [[2, 0], [3, 1], [2, 0], [3, 1]]
    assert [said["holders"] for said in four["mesh_of_some_ranks"]] == [[], [3, 1], [], [3, 1]]
    assert [said["pieces"] == [] for said in four["mesh_of_some_ranks"]] == [True, False, True, False]
    assert [said["holders"] for said in four["replicas_of_rows"]] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [said["holders"] for said in worlds[8]["hybrid_colwise"]][:4] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert [len(said["holders"]) for said in worlds[8]["hybrid_rowwise_bias"]] == [4] * 8


def test_the_cases_are_what_they_are_named_for(worlds):
    """Several runs, empty shards, uneven rows over tensor parallelism."""
    four = worlds[4]
    assert len(four["strided_by_hand"][0]["pieces"]) == 3
    assert [] in [said["pieces"] for said in four["fewer_rows_than_ranks"]]
    rows = [said["pieces"][0][0][0] for said in four["colwise_and_fully_sharded_uneven"]]
    assert rows == [0, 4, 2, 6]
    assert [said["pieces"] for said in worlds[6]["colwise_and_fully_sharded_over_three"]][4:] == [
        [],
        [[[6, 0], [1, 3], [0, 0]]],
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_boxes_is_refused_by_all(worlds, name):
    said = [said["refused"] for world in worlds.values() for said in world.get(name, ())]
    assert said
    assert all(text.startswith(REFUSED[name]) and "redistribute" in text for text in said), said


@pytest.mark.parametrize("name", SOMEWHERE_REFUSED)
def test_a_local_tensor_of_another_shape_than_its_placements_make_is_refused(worlds, name):
    """At least by a rank whose shape is another; that one alone ends the save."""
    said = [rank.get("refused") for world in worlds.values() for rank in world.get(name, ())]
    found = [text for text in said if text is not None]
    assert found
    assert all(text.startswith(name) and SOMEWHERE_REFUSED[name] in text for text in found), found


def indices(held) -> list[int]:
    return [i for begin, end in held for i in range(begin, end)]


def chunked(tensor: torch.Tensor, among: int) -> list[torch.Tensor]:
    """As torch does for shards: what torch.chunk leaves out is empty."""
    chunks = list(tensor.chunk(among)) if tensor.numel() else []
    return chunks + [tensor[:0]] * (among - len(chunks))


splits = st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(1, 5)))


@given(size=st.integers(0, 60), several=st.lists(splits, max_size=3))
def test_runs_are_what_torch_chunk_leaves(size, several):
    left = torch.arange(size)
    for among, mine, factor in several:
        left = torch.cat([chunked(chunk, among)[mine] for chunk in chunked(left, factor)])
    (found,) = runs((size,), [Split(0, *split) for split in several])
    assert indices(found) == left.tolist()
    assert all(begin < end for begin, end in found)
    assert all(one[1] != next_one[0] for one, next_one in pairwise(found))


@given(size=st.integers(0, 40), among=st.integers(1, 6), factor=st.integers(1, 6))
def test_strided_runs_are_those_of_torch(size, among, factor):
    from torch.distributed.tensor.placement_types import _StridedShard

    parts, _ = _StridedShard(0, split_factor=factor)._split_tensor(torch.arange(size), among, with_padding=False)
    assert [indices(runs((size,), [Split(0, among, i, factor)])[0]) for i in range(among)] == [
        p.tolist() for p in parts
    ]


run_lists = st.lists(st.integers(0, 30), max_size=6, unique=True).map(
    lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@given(st.lists(run_lists, max_size=3))
def test_pieces_put_every_index_where_the_local_tensor_has_it(held):
    found = {}
    for box, at in pieces(held):
        for step in product(*map(range, box.sizes)):
            place = tuple(a + i for a, i in zip(at, step, strict=True))
            assert place not in found
            found[place] = tuple(a + i for a, i in zip(box.offsets, step, strict=True))
    lists = [indices(one) for one in held]
    assert found == {
        place: tuple(one[i] for one, i in zip(lists, place, strict=True))
        for place in product(*(range(len(one)) for one in lists))
    }


def test_where_the_two_meanings_of_a_strided_shard_differ_some_rank_has_another_length():
    """What distribute_tensor makes of such placements differs from what fully_shard does; it cannot pass unseen."""
    differing = 0
    for outer, inner, size in product(range(1, 6), range(2, 6), range(50)):
        ranks = list(product(range(outer), range(inner)))
        order = [runs((size,), [Split(0, inner, j), Split(0, outer, i)])[0] for i, j in ranks]
        chunks = [runs((size,), [Split(0, outer, i, inner), Split(0, inner, j)])[0] for i, j in ranks]
        if order != chunks:
            differing += 1
            assert [len(indices(held)) for held in order] != [len(indices(held)) for held in chunks]
    assert differing


def test_the_module_can_be_imported_where_torch_has_no_distributed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    spec = importlib.util.spec_from_file_location("holding_alone", holding.__file__)
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "holding_alone", alone)
    spec.loader.exec_module(alone)
    assert alone.runs((4,), [Split(0, 2, 1)]) == [[(2, 4)]]
