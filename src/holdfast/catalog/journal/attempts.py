"""Notes of loads: that one begins, written and synced before it does, and what became of it.

A crash inside a load leaves nothing else behind. The notes are a journal of their own for each launch, so that the
next launch finds them without reading what a training of weeks has noted. They are evidence and nothing hangs on
them: what is lost or damaged here was never counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.journal.events import Exit, Progress, read_event
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.objects import ListsFolders, load_each
from holdfast.ids import ObjectName, RecordAddress, RunNumber
from holdfast.records import Batch, Event, Owner, Target

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

LOADING = "loading"
LOAD_FAILED = "load failed"
PASSED_OVER = "passed over"
MISMATCH = "mismatch"
CRASH_LOOP = "crash loop"
"""Kinds of events; they never change once released."""

_WRITER = re.compile(r"(?!saver-|attempts-).*-(\d+)")
T = TypeVar("T")


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """A segment whose bytes were not those that were written, also when they were read past the page cache."""

    pack: str
    digest: str
    host: str
    boot: str
    """As in `holdfast.records.Owner`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What one launch has noted of its loads."""

    tried: tuple[Target, ...] = ()
    """What it tried to begin with, in this order: the last one is what it went on from, or was loading."""
    error: str = ""
    """The exception that has ended a load, and was no damage."""
    passed: Target | None = None
    """The newest checkpoint that it has passed over: it could not read it, or launches before it did not survive it."""
    stopped: str = ""
    """Why it was not let begin."""
    mismatches: tuple[Mismatch, ...] = ()


class Attempts:
    """Writes the notes of one launch, each durable when the call returns. Not thread-safe; for one process only.

    Args:
        store: where the run lies.
        run: its number.
        launch: the number of the launch.

    Every call raises `holdfast.errors.StorageError` if the note is not known to be written.
    """

    def __init__(self, store: Store, run: RunNumber, launch: int) -> None:
        self._launch = launch
        self._journal = JournalWriter(store, run, layout.attempts_writer(launch))

    def begins(self, address: RecordAddress, timeline: int) -> None:
        """A load begins; ``timeline`` is the one that it opens."""
        self._note(LOADING, str(address), target=_built(Target.of(address)), timeline=timeline)

    def failed(self, error: BaseException) -> None:
        """A load has ended with an exception that is no damage."""
        text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        self._note(LOAD_FAILED, text, error=text)

    def passed_over(self, address: RecordAddress, why: str, timeline: int = 0) -> None:
        """A checkpoint is not used, or after others: that may be of this launch alone.

        Args:
            address: of the checkpoint.
            why: for people.
            timeline: that would have begun with it; only 0 is of interest to later launches.
        """
        self._note(PASSED_OVER, f"{address}: {why}", target=_built(Target.of(address)), timeline=timeline)

    def mismatched(self, mismatch: Mismatch, why: str) -> None:
        """A segment has other bytes than it should, and repeatedly."""
        self._note(MISMATCH, why, **_built(mismatch))

    def stopped(self, why: str) -> None:
        """The launch ends here."""
        self._note(CRASH_LOOP, why, why=why)

    def _note(self, kind: str, message: str, **data: Any) -> None:
        self._journal.add(kind, message, launch=self._launch, **data)
        self._journal.flush()


def mismatch_of(pack: str, digest: bytes, owner: Owner) -> Mismatch:
    """What this process has found in ``pack``."""
    return Mismatch(pack=str(pack), digest=digest.hex(), host=owner.host, boot=owner.boot)


def read_attempts(store: Store, run: RunNumber, launch: int) -> Noted:
    """What a launch has noted of its loads, as far as it can be read."""
    events = list(_events(store, _names(store, layout.attempts_folder(run, launch))))
    texts = {event.kind: event.data for event in events}
    return Noted(
        tried=tuple(
            target
            for event in events
            if event.kind == LOADING and event.data.get("timeline") == 0 and (target := _target(event.data))
        ),
        error=str(texts.get(LOAD_FAILED, {}).get("error", "")),
        passed=next(
            (
                _target(event.data)
                for event in events
                if event.kind == PASSED_OVER and event.data.get("timeline", 0) == 0
            ),
            None,
        ),
        stopped=str(texts.get(CRASH_LOOP, {}).get("why", "")),
        mismatches=tuple(
            found
            for event in events
            if event.kind == MISMATCH and (found := _converted(event.data, Mismatch)) is not None
        ),
    )


def read_ends(store: Store, run: RunNumber, launches: Collection[int]) -> dict[int, list[Progress | Exit]]:
    """What the trainers of some launches have said of their steps and their end."""
    found: dict[int, list[Progress | Exit]] = defaultdict(list)
    folder = layout.journals_folder(run)
    for writer in _writers(store, folder):
        match = _WRITER.fullmatch(writer)
        if match is None or (launch := int(match[1])) not in launches:
            continue
        for event in _events(store, _names(store, f"{folder}{writer}/")):
            if (said := read_event(event.kind, event.data, launch)) is not None and said.launch == launch:
                found[launch].append(said)
    return found


def _writers(store: Store, folder: str) -> list[str]:
    if isinstance(store.storage, ListsFolders):
        return list(store.storage.folders(folder))
    return sorted({listed.name.removeprefix(folder).partition("/")[0] for listed in store.storage.list(folder)})


def _names(store: Store, folder: str) -> list[ObjectName]:
    return [listed.name for listed in store.storage.list(folder)]


def _events(store: Store, names: list[ObjectName]) -> Iterator[Event]:
    batches, _ = load_each(store.storage, names, Batch)
    for batch in sorted(batches, key=lambda batch: (batch.writer, batch.number)):
        yield from batch.events


def _built(content: msgspec.Struct) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(content)
    return built


def _target(data: Mapping[str, Any]) -> Target | None:
    return _converted(data.get("target"), Target)


def _converted(data: object, type_: type[T]) -> T | None:
    try:
        return msgspec.convert(_known(data, type_), type_)
    except (msgspec.ValidationError, TypeError, ValueError):
        return None


def _known(data: object, type_: type) -> object:
    fields = {field.encode_name for field in msgspec.structs.fields(type_)}
    return {key: value for key, value in data.items() if key in fields} if isinstance(data, Mapping) else data
