"""The few words of shared memory by which trainer and saver agree on what is staged where.

One row a slot. The trainer unseals a row, fills the slot, and seals it with the
number of the generation, which is the last thing that it writes; on a GPU the
last copy of the stream does. The saver notes which generation it has done.
Nothing else is needed to finish a save after either of them was killed.

    row, 128 bytes, little-endian
       8  seal: number of the generation in the slot; 0: none
       8  1: to be saved; 2: kept in reserve, in case the trainer dies
       8  where the document lies in the slot
       8  its length
      32  its digest
       8  done: the generation that the saver is through with, saved or not
       8  taken: the generation that the saver is at work on
       8  serial number of the slab that the slot lies in
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple

from holdfast.errors import SaveFailed
from holdfast.ids import Digest
from holdfast.saver.memory import Slab

SLOTS = 3
"""At most: one that is being saved, one that is complete, one that is being filled."""

_ROW = 128
_WORDS = _ROW // 8
LENGTH = 4096
_LOCK_SECONDS = 5.0


class Intent(IntEnum):
    """What a generation is staged for."""

    SAVE = 1
    RESERVE = 2


class Row(NamedTuple):
    """A sealed slot."""

    slot: int
    generation: int
    intent: Intent
    offset: int
    length: int
    digest: bytes
    done: int
    taken: int
    slab: int

    @property
    def pending(self) -> bool:
        """Whether it holds something that the saver is not through with."""
        return self.generation != self.done


class Control:
    """The control words in a shared `Slab` of `LENGTH` bytes."""

    def __init__(self, slab: Slab) -> None:
        self.slab = slab
        self._words = slab.memory.cast("Q")

    def row(self, slot: int) -> Row | None:
        """What is sealed in a slot; None: nothing."""
        base = slot * _WORDS
        generation = self._words[base]
        if not generation:
            return None
        intent, offset, length = self._words[base + 1 : base + 4].tolist()
        done, taken, slab = self._words[base + 8 : base + 11].tolist()
        digest = bytes(self.slab.memory[slot * _ROW + 32 : slot * _ROW + 64])
        return Row(slot, generation, Intent(intent), offset, length, digest, done, taken, slab)

    def rows(self) -> list[Row]:
        """All sealed slots, oldest generation first."""
        found = [row for row in map(self.row, range(SLOTS)) if row is not None]
        return sorted(found, key=lambda row: row.generation)

    def finished(self) -> int:
        """The newest generation that the saver is through with, saved or not."""
        return max(self._words[slot * _WORDS + 8] for slot in range(SLOTS))

    def unseal(self, slot: int) -> None:
        """Says that nothing is in a slot; before anything in it is changed."""
        self._words[slot * _WORDS] = 0

    def describe(self, slot: int, intent: Intent, slab: int, offset: int, document: bytes) -> None:
        """Notes the document of what will be sealed, and the slab that all of it lies in."""
        base = slot * _WORDS
        self._words[base + 10] = slab
        self._words[base + 1], self._words[base + 2], self._words[base + 3] = intent, offset, len(document)
        self.slab.memory[slot * _ROW + 32 : slot * _ROW + 64] = Digest.of(document)

    def seal(self, slot: int, generation: int) -> None:
        """The slot holds all of ``generation``: from now on it will be saved, whatever happens to the trainer."""
        self._words[slot * _WORDS] = generation

    def seal_place(self, slot: int) -> int:
        """Where the seal lies in the slab, in bytes: for a stream that writes it itself."""
        return slot * _ROW

    def taken(self, row: Row) -> bool:
        """The saver begins with a generation; False: the trainer has taken it back."""
        with self.lock():
            if self._words[row.slot * _WORDS] != row.generation:
                return False
            self._words[row.slot * _WORDS + 9] = row.generation
            return True

    def done(self, row: Row) -> None:
        """The saver is through with a generation: the slot is free."""
        self._words[row.slot * _WORDS + 8] = row.generation

    def take_back(self, row: Row) -> bool:
        """The trainer wants the slot of a generation that nobody has begun to save; False: too late."""
        with self.lock():
            if self._words[row.slot * _WORDS + 9] == row.generation:
                return False  # also if it is done by now: it may have become a checkpoint, and the slot is free anyway
            self.unseal(row.slot)
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For the instant of a decision; released by the kernel if its holder dies.

        Raises:
            SaveFailed: the other process holds it for seconds: it was stopped right there.
        """
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(self.slab.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise SaveFailed(f"the other process holds the lock of the staging memory: {error}") from error
                time.sleep(0.001)
        try:
            yield
        finally:
            fcntl.lockf(self.slab.descriptor, fcntl.LOCK_UN)
