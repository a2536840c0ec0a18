"""Recoding: what is live in packs goes into new packs with another codec, and the old ones go.

Raw bytes and their digests stay, so no record and no manifest changes: this is
a repack (`holdfast.catalog.repacking.repack`), as safe as that one at any moment and
beside anybody, done a few gigabytes at a time, so that a store needs no room
for all of itself twice and an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from holdfast.catalog.holds import Report
from holdfast.catalog.repacking.recode_plans import PackPlan, Part, RecodePlan, plan_recode
from holdfast.catalog.repacking.repack import Repacked, execute_repack
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.packs.codec import check_available

__all__ = ["PackPlan", "Part", "RecodePlan", "execute_recode", "plan_recode"]

_log = logging.getLogger(__name__)

BATCH_BYTES = 4 * 1024**3
"""Packs of about so many bytes are replaced at a time: so much room is needed meanwhile."""


def execute_recode(
    store: Store,
    plan: RecodePlan,
    *,
    run: Run | None = None,
    seconds: float = 0.0,
    report: Report = _log.info,
    progress: Callable[[int], None] | None = None,
) -> Repacked:
    """Replaces the packs of ``plan``; those that somebody may be using stay, and then no more are tried.

    Safe at any moment, also if it is killed half-way, as a repack is.

    Args:
        store: the store.
        plan: from `plan_recode`; it may be old.
        run: the plan's run, if it is at hand.
        seconds: how long saves and readers at work may take to finish, each time.
        report: told what is waited for.
        progress: called with stored bytes as they are copied.

    Raises:
        InvalidInput: the package of the codec is not installed; nothing was done.
        Damaged, StorageError: nothing is lost; run it again.
    """
    check_available(plan.codec)
    done = Repacked()
    batches = _batches(plan.packs)
    for batch in batches:
        some = execute_repack(
            store, plan.repack(batch), run=run, seconds=seconds, report=report, progress=progress or _no_progress
        )
        done = _joined(done, some)
        if some.kept and not some.deleted:
            # Whoever stood in the way still does: more copies would only take room.
            why = f"not tried, as {some.kept[0][1]}"
            return _joined(done, Repacked(kept=tuple((pack.name, why) for rest in batches for pack in rest)))
    return done


def _batches(packs: Iterable[PackPlan]) -> Iterator[list[PackPlan]]:
    batch: list[PackPlan] = []
    for pack in packs:
        batch.append(pack)
        if sum(one.size for one in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _joined(one: Repacked, other: Repacked) -> Repacked:
    return Repacked(
        written=one.written + other.written, deleted=one.deleted + other.deleted, kept=one.kept + other.kept
    )


def _no_progress(_: int) -> None:
    pass
