"""What sweeps remember of packs and manifests: as much as there is, and no more with every save."""

from __future__ import annotations

import random

from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.reach import forget
from holdfast.ids import ObjectName


def test_memory_does_not_grow_with_saves_of_which_few_are_kept(store, saver):
    """I9: a thousand saves later a training remembers the packs that it kept, not those that it had."""
    one = saver()
    kept = []
    for step in range(1, 13):
        kept.append(one.save(step, {"w": random.Random(step).randbytes(3_000)}))
        if len(kept) > 2:
            execute(store, plan_sweep(store, one.run, [kept.pop(0).address]), run=one.run)
    there = {listed.name for listed in store.storage.list("data/")}
    assert len(there) == len(store.footers) == len(kept)
    manifests = [read_manifest(one.run, record.manifest_digest) for record in kept]
    digests = {bytes(digest) for manifest in manifests for digest in manifest.segment_digests()}
    assert set(one.run.holders._holders) == digests
    assert set(one.run.holders._packs) == there
    assert len(one.run.holders._reached) == len(kept)


def test_what_a_record_reaches_is_told_anew_when_one_of_its_packs_is_gone(store, saver):
    """After a repack the segments lie elsewhere, and the old pack must not be taken for what keeps them."""
    one = saver()
    first = one.save(1, {"w": random.Random(1).randbytes(3_000)})
    holders = one.run.holders
    footers = [store.footers.get(ObjectName(name)) for name in first.packs]
    holders.add(footers)
    assert holders.reached(one.run, first).packs == set(first.packs)
    forget(store, one.run, [ObjectName(name) for name in first.packs])
    assert holders.reached(one.run, first).packs == set()
    holders.add(footers)
    assert holders.reached(one.run, first).packs == set(first.packs)
