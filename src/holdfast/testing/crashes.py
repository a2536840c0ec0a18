"""Power cuts without a power switch: every legal state of a disk after a recorded piece of work was cut off.

Kills prove nothing about syncs, for the page cache survives a killed process.
So the operations of real work are recorded at the `Files` seam, and for every
point of the record the states are built that a filesystem may be in after the
power fails there:

- what was written to a file and not synced may be there, or be missing, or be zeros, or be half there,
  each write for itself;
- an entry that was made in or removed from a folder and not synced may be there or not, each for itself;
- a sync of a file covers its bytes and length, not its name; a sync of a folder covers its entries, not the
  folder's own entry one level up.

This is stricter than common filesystems, which order more than they promise.
Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.

Example:
    >>> import tempfile
    >>> from holdfast.ids import ObjectName
    >>> from holdfast.storage.local import LocalStorage
    >>> root = Path(tempfile.mkdtemp())
    >>> files = RecordingFiles(root)
    >>> LocalStorage(root, files).create(ObjectName("a"), b"abc")
    >>> files.trace.note("a is there")
    >>> found = {state.files.get("a") for state in crash_states(files.trace, seed=0) if state.notes}
    >>> found
    {b'abc'}
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blake3 import blake3

from holdfast.testing.recording import (
    ROOT,
    Barrier,
    Change,
    Enter,
    Inode,
    Note,
    RecordingFiles,
    Resize,
    Trace,
    Write,
    without_sync,
)

__all__ = ["CrashState", "Fate", "RecordingFiles", "Trace", "crash_states", "materialise", "without_sync"]

_PAIRS = 12  # above so many unsynced operations pairs are drawn at random
_FIXED = 4


class Fate(StrEnum):
    """What becomes of one unsynced change in a power cut; the last two only of writes."""

    KEPT = "kept"
    LOST = "lost"
    ZEROS = "zeros"
    HALF = "half"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashState:
    """What is on the disk after one power cut."""

    files: dict[str, bytes]
    """Path below the root -> content."""
    folders: frozenset[str]
    """Paths below the root."""
    notes: tuple[str, ...]
    """What had been noted before the cut."""
    position: int
    """The cut came after so many steps."""
    story: str
    """What became of the changes that were not durable, for the message of a failed test."""


def crash_states(trace: Trace, *, seed: int, limit: int = 2000) -> Iterator[CrashState]:
    """States that a power cut may leave, each once: all lost, all kept, single ones, pairs, random ones.

    Args:
        trace: recorded work.
        seed: for what is drawn at random where there is too much; print it.
        limit: about so many states are built; short traces have fewer and are then covered fully up to pairs.
    """
    rng = random.Random(seed)
    positions = _positions(len(trace.steps), limit // _FIXED, rng)
    share = max(_FIXED, limit // len(positions))
    disk, seen = _Disk(trace), set[bytes]()
    for position in positions:
        disk.cut(position)
        for fates in _choices(disk.pending, share, rng):
            key = disk.key(fates)
            if key not in seen:
                seen.add(key)
                yield disk.state(fates)


def materialise(state: CrashState, into: Path) -> None:
    """Write a state into the folder ``into``, which is made and must be empty."""
    into.mkdir(parents=True, exist_ok=True)
    for folder in sorted(state.folders):
        (into / folder).mkdir()
    for path, content in state.files.items():
        (into / path).write_bytes(content)


def _positions(steps: int, most: int, rng: random.Random) -> list[int]:
    """Where to cut: after every step, or at the end and as many other places as are allowed."""
    if steps < most:
        return list(range(steps + 1))
    return [*sorted(rng.sample(range(steps), max(0, most - 1))), steps]


Fates = tuple[Fate, ...]


def _choices(pending: Sequence[Change], share: int, rng: random.Random) -> Iterator[Fates]:
    """Fates for the pending changes: the four plain ones, then as many others as the share allows."""
    yield from _plain(pending)
    others = list(_near(pending))
    room = max(0, share - _FIXED)
    yield from others if len(others) <= room else rng.sample(others, room)
    if len(pending) > 2:
        for _ in range(min(room - len(others), 2 * len(pending))):
            yield tuple(rng.choice(_possible(change)) for change in pending)


def _plain(pending: Sequence[Change]) -> Iterator[Fates]:
    for of_writes, of_others in (
        (Fate.LOST, Fate.LOST),
        (Fate.KEPT, Fate.KEPT),
        (Fate.ZEROS, Fate.KEPT),
        (Fate.LOST, Fate.KEPT),
    ):
        yield tuple(of_writes if isinstance(change, Write) else of_others for change in pending)


def _near(pending: Sequence[Change]) -> Iterator[Fates]:
    """One or two changes that differ from all the others."""
    numbers = range(len(pending))
    pairs = itertools.combinations(numbers, 2) if len(pending) <= _PAIRS else ()
    for chosen in (*((number,) for number in numbers), *pairs):
        yield tuple(Fate.LOST if number in chosen else Fate.KEPT for number in numbers)
        yield tuple(Fate.KEPT if number in chosen else Fate.LOST for number in numbers)
    for torn, damage in itertools.product(numbers, (Fate.ZEROS, Fate.HALF)):
        if isinstance(pending[torn], Write):
            yield tuple(damage if number == torn else Fate.KEPT for number in numbers)


def _possible(change: Change) -> list[Fate]:
    return list(Fate) if isinstance(change, Write) else [Fate.KEPT, Fate.LOST]


class _Disk:
    """A trace cut at one position, and what the disk holds then for given fates of the pending changes."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._position = 0
        self._notes: tuple[str, ...] = ()
        self._changes: dict[Inode, list[tuple[Change, int | None]]] = {}
        self._contents: dict[tuple[Inode, tuple[tuple[int, Fate], ...]], tuple[bytes, bytes]] = {}
        self.pending: list[Change] = []

    def cut(self, position: int) -> None:
        """Cut after so many steps."""
        steps = self._trace.steps[:position]
        last = {step.inode: place for place, step in enumerate(steps) if isinstance(step, Barrier)}
        self._position, self._changes, self.pending = position, {}, []
        self._notes = tuple(step.text for step in steps if isinstance(step, Note))
        self._contents.clear()
        for place, step in enumerate(steps):
            if isinstance(step, Note | Barrier):
                continue
            durable = place < last.get(step.inode, -1)
            self._changes.setdefault(step.inode, []).append((step, None if durable else len(self.pending)))
            if not durable:
                self.pending.append(step)

    def key(self, fates: Fates) -> bytes:
        """Equal for states that no test could tell apart."""
        files, folders = self._tree(fates)
        facts = [f"{path}={self._content(number, fates)[1].hex()}" for path, number in sorted(files.items())]
        return blake3("\n".join([str(len(self._notes)), *sorted(folders), "", *facts]).encode()).digest()

    def state(self, fates: Fates) -> CrashState:
        files, folders = self._tree(fates)
        return CrashState(
            files={path: self._content(number, fates)[0] for path, number in files.items()},
            folders=frozenset(folders),
            notes=self._notes,
            position=self._position,
            story=_story(self.pending, fates),
        )

    def _tree(self, fates: Fates) -> tuple[dict[str, Inode], list[str]]:
        files: dict[str, Inode] = {}
        folders: list[str] = []
        waiting = [("", ROOT)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, number in self._entries(folder, fates).items():
                if isinstance(self._trace.base[number], dict):
                    folders.append(f"{prefix}{name}")
                    waiting.append((f"{prefix}{name}/", number))
                else:
                    files[f"{prefix}{name}"] = number
        return files, folders

    def _entries(self, folder: Inode, fates: Fates) -> dict[str, Inode]:
        base = self._trace.base[folder]
        entries = dict(base) if isinstance(base, dict) else {}
        for change, number in self._changes.get(folder, ()):
            if isinstance(change, Enter) and (number is None or fates[number] is Fate.KEPT):
                for name, target in change.entries:
                    entries.pop(name, None)
                    if target is not None:
                        entries[name] = target
        return entries

    def _content(self, file: Inode, fates: Fates) -> tuple[bytes, bytes]:
        changes = self._changes.get(file, [])
        key = (file, tuple((number, fates[number]) for _, number in changes if number is not None))
        if key not in self._contents:
            base = self._trace.base[file]
            data = bytearray(base if isinstance(base, bytes) else b"")
            for change, number in changes:
                _apply(data, change, Fate.KEPT if number is None else fates[number])
            self._contents[key] = (bytes(data), blake3(data).digest())
        return self._contents[key]


def _apply(data: bytearray, change: Change, fate: Fate) -> None:
    if fate is Fate.LOST:
        return
    match change:
        case Write(offset=offset, data=written):
            kept = {Fate.KEPT: len(written), Fate.HALF: len(written) // 2}.get(fate, 0)
            data.extend(bytes(max(0, offset + len(written) - len(data))))
            data[offset : offset + len(written)] = written[:kept] + bytes(len(written) - kept)
        case Resize(length=length, grow=grow):
            data.extend(bytes(max(0, length - len(data))))
            if not grow:
                del data[length:]


def _story(pending: Sequence[Change], fates: Fates) -> str:
    told = [f"{_describe(change)} {fate}" for change, fate in zip(pending, fates, strict=True)]
    return "; ".join(told[:20]) + (f"; and {len(told) - 20} more" if len(told) > 20 else "") or "nothing was pending"


def _describe(change: Change) -> str:
    match change:
        case Write(inode=inode, offset=offset, data=data):
            return f"write of #{inode} at {offset} ({len(data)} bytes)"
        case Resize(inode=inode, length=length):
            return f"length {length} of #{inode}"
        case Enter(inode=inode, entries=entries):
            return f"entry {'/'.join(name for name, _ in entries)} in #{inode}"
