"""How launches say that they have ended: a look at a journal of weeks that reads the last batch of each writer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.journal.events import ON_PURPOSE, Exit, read_event
from holdfast.catalog.objects import load_each
from holdfast.ids import ObjectName, RunNumber
from holdfast.records import Batch

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_TRAINER = re.compile(r"(?!saver-|attempts-).*-(\d+)")


def ended_on_purpose(store: Store, run: RunNumber, launches: Collection[int]) -> set[int]:
    """Those of ``launches`` that have said so, and of which no rank says otherwise.

    What cannot be read was not said.

    Raises:
        StorageError: the journal cannot be listed.
    """
    said = last_words(store, run, launches)
    return {launch for launch, exits in said.items() if all(one.how in ON_PURPOSE for one in exits)}


def last_words(store: Store, run: RunNumber, launches: Collection[int]) -> dict[int, list[Exit]]:
    """How those of ``launches`` that have said so have ended, by what each of their ranks says; errors as above."""
    found: dict[int, list[Exit]] = defaultdict(list)
    batches, _ = load_each(store.storage, _last_batches(store, run, launches) if launches else [], Batch)
    for event in (event for batch in batches for event in batch.events):
        if isinstance(one := read_event(event.kind, event.data), Exit) and one.launch in launches:
            found[one.launch].append(one)
    return found


def _last_batches(store: Store, run: RunNumber, launches: Collection[int]) -> list[ObjectName]:
    """Of each training process: how it ended is the last that it notes."""
    folder = layout.journals_folder(run)
    last: dict[str, ObjectName] = {}
    for listed in store.storage.list(folder):
        writer = listed.name.removeprefix(folder).partition("/")[0]
        match = _TRAINER.fullmatch(writer)
        if match is not None and int(match[1]) in launches:
            last[writer] = max(listed.name, last.get(writer, listed.name), key=lambda name: (len(name), name))
    return list(last.values())
