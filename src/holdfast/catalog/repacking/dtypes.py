"""What kind of numbers segments hold: packs do not say, skeletons do. It is a hint for codecs: damage costs nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from holdfast.catalog.deleting.sweep_facts import runs_of
from holdfast.catalog.manifests import read_reach, read_skeleton
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.ids import Digest
from holdfast.payload import tensors_in_order
from holdfast.records import Record

UNKNOWN = "uint8"
"""Stands for what no skeleton tells: bytes."""


def read_dtypes(store: Store, run: Run | None, wanted: Collection[bytes]) -> dict[bytes, str]:
    """The dtypes of those ``wanted`` segments that committed records of ``run`` (None: of all runs) need.

    Of a segment that is part of several tensors, that of one of them.

    Raises:
        StorageError: the store cannot be read.
    """
    wanted, found = frozenset(wanted), dict[bytes, str]()
    if not wanted:
        return found
    for one in runs_of(store, run):
        known: dict[Digest, list[str]] = {}  # records of a run share their skeletons
        for record in one.published().records:
            if len(found) == len(wanted):
                return found
            found.update((digest, dtype) for digest, dtype in _dtypes(one, record, known) if digest in wanted)
    return found


def _dtypes(run: Run, record: Record, known: dict[Digest, list[str]]) -> Iterator[tuple[bytes, str]]:
    try:
        reach = read_reach(run, record.manifest_digest)
        if reach.skeleton not in known:
            skeleton, most = read_skeleton(run, reach.skeleton), len(reach.digests) // 32
            places = islice(tensors_in_order(skeleton), most)
            known[reach.skeleton] = [skeleton.tensors[place].dtype for place in places]
    except Damaged:
        return
    for at, dtype in enumerate(known[reach.skeleton]):
        yield reach.digests[32 * at : 32 * at + 32], dtype
