"""Forks: a new run whose first parent is somebody else's record. Nothing is copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from holdfast.catalog.naming.references import Reference, resolve
from holdfast.catalog.runs import Run
from holdfast.ids import RecordId, RunNumber
from holdfast.records import RunInfo

if TYPE_CHECKING:
    from holdfast.catalog.store import Store


def fork(
    store: Store,
    reference: Reference | str,
    name: str | None = None,
    *,
    default_run: RunNumber | None = None,
    config: Mapping[str, Any] | None = None,
    job: str | None = None,
) -> Run:
    """A new run that begins at an existing record: atomic, durable, and no sweep deletes that record while it is there.

    Without ``name`` it has the name of the run that it leaves.

    Raises:
        UnknownReference: nothing answers to ``reference``.
        AmbiguousReference: more than one thing does.
        InvalidName: ``name`` cannot be a run name.
        BeingDeleted: a sweep is about to delete the record.
    """
    origin = resolve(store, reference, default_run)
    inherited = store.run(origin.run).info.name if name is None else name
    return store.create_run(inherited, config=config, forked_from=origin.address, job=job)


def read_forks(store: Store) -> dict[RecordId, list[RunNumber]]:
    """For every record that is a fork point, the runs that began there."""
    return forks_of(store.runs())


def forks_of(infos: Iterable[RunInfo]) -> dict[RecordId, list[RunNumber]]:
    """As `read_forks`, from what was read of the runs."""
    forks: dict[RecordId, list[RunNumber]] = defaultdict(list)
    for info in infos:
        if info.forked_from is not None:
            forks[RecordId(info.forked_from.id)].append(RunNumber(info.number))
    return dict(forks)
