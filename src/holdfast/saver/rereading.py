"""Old packs that new checkpoints rely on, read back in turn.

What a hundred checkpoints share is written once, so one rotten sector would be
the loss of all of them, while the good bytes are in memory at every save. So
the saver reads each pack that is reused again after some saves, when it has
nothing else to do; a rotten one is no source any more, and the next save
writes what was in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from holdfast.catalog.store import Store
from holdfast.ids import ObjectName
from holdfast.packs.parallel import Pace
from holdfast.packs.verify import Problem, verify_pack
from holdfast.records import Record
from holdfast.saver.readback import note_damage

SAVES = 50
"""A pack is read again after so many saves that relied on it."""


@dataclass(slots=True, kw_only=True)
class Rereading:
    """Whose turn it is. Not thread-safe."""

    store: Store
    every: int = SAVES
    pace: Pace | None = None
    progress: Callable[[int], None] | None = None
    """Told of bytes as they are read."""
    newest: Record | None = None
    _unread: dict[ObjectName, int] = field(default_factory=dict)
    """Saves that relied on a pack since it was read."""

    def committed(self, record: Record, packs: Collection[str]) -> None:
        """A save was made: these packs of it are in use, others are no more."""
        self.newest, names = record, map(ObjectName, packs)
        self._unread = {name: self._unread.get(name, -1) + 1 for name in names}

    def turn(self) -> ObjectName | None:
        """The pack that has gone unread for longest, if that is long enough."""
        pack = max(self._unread, key=self._unread.__getitem__, default=None)
        return pack if pack is not None and self._unread[pack] >= self.every else None

    def read(self, pack: ObjectName) -> list[Problem]:
        """What is wrong with a pack, from the device; noted in the store, so that later launches know.

        Raises:
            StorageError: it cannot be read right now, which proves nothing; its turn comes again later.
        """
        self._unread[pack] = 0
        problems = verify_pack(self.store.storage, pack, progress=self.progress, pace=self.pace)
        if problems and self.newest is not None:
            note_damage(self.store, self.newest, problems)
        return problems
