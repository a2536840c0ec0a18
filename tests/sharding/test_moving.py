"""One run on 1, 2, 4 and 1 ranks again: the data goes on where it was, and a frozen base is stored once."""

import json
from collections import Counter

import pytest
import worlds

import holdfast
from holdfast.catalog.verifying.verify import verify

PLAN = {4: 1, 8: 2, 12: 4, 16: 1}
"""Up to which step, and on how many ranks. An epoch has 90 samples, a step 12."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("moving")
    for total, size in PLAN.items():
        worlds.run(found / f"life-{total}", "moving_worker.py", size, found, total)
    return found


def said(folder, total):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"used-{total}.rank*.json"))]


def test_no_sample_is_lost_or_seen_twice_on_any_number_of_ranks(folder):
    used = Counter()
    for total in PLAN:
        used.update(
            number for one in said(folder, total) for step, batch in one["used"] if step < 7 for number in batch
        )
    assert max(used.values()) == 1
    assert len(used) == 7 * 12


def test_steps_follow_each_other_whoever_makes_them(folder):
    steps = [step for total in PLAN for step, _ in said(folder, total)[0]["used"]]
    assert steps == list(range(16))


def test_moments_keep_their_dtype_beside_parameters_of_another(folder):
    assert {tuple(one["moments"]) for total in PLAN for one in said(folder, total)} == {("torch.float32",)}


def test_a_frozen_base_is_stored_once_whatever_the_number_of_ranks(folder):
    """Segments are cut on global rows: another world size makes them anew, bit for bit, but for the edges of shards."""
    packs = sorted((folder / "s/data/shared").glob("*.pack"), key=lambda path: path.stat().st_mtime)
    base = 40 * 400_000 * 4
    # Two more of at most 8 MiB for each of the four edges that there are in all.
    assert base <= sum(pack.stat().st_size for pack in packs) < 1.6 * base
    records = holdfast.open(folder / "s").run(1).records()
    assert {record.world for record in records} == {1, 2, 4}


def test_everything_that_is_left_is_in_order(folder):
    assert verify(holdfast.open(folder / "s"), deep=True).problems == ()
    assert not list((folder / "s/catalog/runs/001/parts").rglob("*.part"))
