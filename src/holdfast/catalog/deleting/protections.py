"""Everything that retention has to know about a run, read from the store at one time."""

from __future__ import annotations

from holdfast.catalog import layout
from holdfast.catalog.deleting.retention import RetentionFacts
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import read_marks
from holdfast.catalog.naming.forks import forks_of
from holdfast.catalog.naming.tags import read_tags
from holdfast.catalog.runs import Run
from holdfast.catalog.starts import newest_starts
from holdfast.ids import RecordId


def _good_after(run: Run) -> int | None:
    """As the newest launch has said it."""
    launches = run.launches()
    text = launches[-1].policies.get("good_after", "") if launches else ""
    return int(text) if text.isdecimal() else None


def read_retention_facts(run: Run) -> RetentionFacts:
    """The facts for `holdfast.catalog.deleting.retention.plan_retention`.

    What cannot be read and might protect a record is part of the answer: a damaged tag, ``run.json`` or
    start. Execute a plan by a sweep only, which looks at tags, pins, forks and holds once more after it
    has announced what it deletes.

    Raises:
        StorageError: the store cannot be read.
    """
    starts, broken = run.read_starts()
    infos, unreadable = run.store.run_infos()
    tags = read_tags(run.store)
    newest = newest_starts(run.store)
    unclear = dict.fromkeys(one.name for one in (*tags.damaged, *unreadable, *broken, *newest.damaged))
    return RetentionFacts(
        lineage=Lineage.of(run.records(), starts, run.info.forked_from, unreadable=broken),
        marks=read_marks(run.store, run.number),
        tags={RecordId(id_): names for id_, names in tags.by_record().items()},
        forks=forks_of(infos),
        resumed_from=starts[-1].resumed_from if starts else None,
        resumed_elsewhere=newest.elsewhere(run.number),
        # A fork point, or the line of the run itself, may be hidden in these.
        unreadable=list(unclear),
        good_after=_good_after(run),
        packs={str(one.name): one.size for one in run.store.storage.list(layout.private_packs(run.number))},
    )
