"""From what was typed to a run or a record."""

from __future__ import annotations

import re

from holdfast.catalog.naming.references import named_run, newest_run, resolve
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.errors import Damaged
from holdfast.ids import RecordAddress
from holdfast.records import Record

_NUMBER = re.compile(r"run-(\d{1,9})")  # as in references; longer ones are none


def opened(url: str) -> Store:
    """The store that ``--store`` names; it is never created by a command that looks."""
    return open_store(url)


def find_run(store: Store, text: str | None) -> Run:
    """The run that a name or number means; without one, the newest.

    Raises:
        UnknownReference: no such run; near misses are named.
        InvalidReference: it is neither, nor a reference.
        AmbiguousReference: a newer run cannot be read, and may be the one that is meant.
    """
    if text is None:
        return newest_run(store)
    number = _NUMBER.fullmatch(text)
    if number:
        return store.run(int(number[1]))
    if store.named(text):
        return named_run(store, text)
    return store.run(resolve(store, text).run)


def find_record(store: Store, text: str) -> Record:
    """The record that a reference means; ``@500`` and the like are taken in the newest run."""
    return resolve(store, text)


def find_address(store: Store, text: str) -> RecordAddress:
    """As `find_record`, and damaged records too: by id or prefix of one, or as ``run-003@500``."""
    try:
        return find_record(store, text).address
    except Damaged:
        found = [address for number in store.claimed() for address in Run.by_number(store, number).addresses()]
        meant = [address for address in found if text in _names(address)]
        if len(meant) != 1:
            raise
        return meant[0]


def _names(address: RecordAddress) -> set[str]:
    return {f"{address.run}@{address.order.step}", *(address.id[:length] for length in range(6, 17))}
