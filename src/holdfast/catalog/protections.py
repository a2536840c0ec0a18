"""Everything that retention has to know about a run, read from the store at one time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from holdfast.catalog import layout
from holdfast.catalog.forks import read_forks
from holdfast.catalog.marks import read_marks
from holdfast.catalog.objects import load_each
from holdfast.catalog.retention import RetentionFacts
from holdfast.catalog.runs import Run
from holdfast.catalog.tags import read_tags
from holdfast.ids import RecordId
from holdfast.records import StartInfo

_START = re.compile(r"\d{6,}\.\d{3,}\.json")


def read_retention_facts(run: Run) -> RetentionFacts:
    """The facts for `holdfast.catalog.retention.plan_retention`.

    What cannot be read and might protect a record is part of the answer: a damaged tag, ``run.json`` or
    start. Execute a plan by a sweep only, which looks at tags, pins, forks and holds once more after it
    has announced what it deletes.

    Raises:
        StorageError: the store cannot be read.
    """
    starts = run.starts()
    tags = read_tags(run.store)
    return RetentionFacts(
        lineage=run.lineage(),
        marks=read_marks(run.store, run.number),
        tags={RecordId(id_): names for id_, names in tags.by_record().items()},
        forks=read_forks(run.store),
        resumed_from=starts[-1].resumed_from if starts else None,
        unreadable=[*(one.name for one in tags.damaged), *_unreadable(run)],
    )


def _unreadable(run: Run) -> Iterator[str]:
    """Where a fork point, or the line of the run itself, may be hidden."""
    yield from (one.name for one in run.store.damaged())
    listed = run.store.storage.list(f"{layout.run_folder(run.number)}launches/")
    starts = [one.name for one in listed if _START.fullmatch(one.name.leaf)]
    yield from (one.name for one in load_each(run.store.storage, starts, StartInfo)[1])
