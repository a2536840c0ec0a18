"""What an earlier saver had just saved when it was killed: nobody knows what of the rest was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.errors import Damaged, SaveFailed, StorageError
from holdfast.records import Record
from holdfast.saver.control import Control, Row
from holdfast.saver.memory import Slab


@dataclass(slots=True, kw_only=True)
class Inheriting:
    """The rows that it was through with. Belongs to the thread that works."""

    control: Control
    slabs: Mapping[int, Slab]
    finished: Callable[[Row], Record | None]
    """Reads what has become of a row; None: nothing."""
    committed: Callable[[Row, Record], None]
    given_up: Callable[[Row, str, str], None]
    unread: list[Row] = field(default_factory=list)
    """Those for which storage has not answered."""

    def find(self) -> None:
        """Tells what has become of them."""
        self.unread = [row for row in self._rows() if not row.pending and not self._told(row)]

    def again(self) -> bool:
        """As `find`, for what was not read; whether the trainer has used a slot of theirs again, and must look."""
        there = {row.generation for row in self._rows()}
        standing = [row for row in self.unread if row.generation in there]
        gone = len(standing) < len(self.unread)
        self.unread = [row for row in standing if not self._told(row)]
        return gone

    def _rows(self) -> list[Row]:
        return [row for row in self.control.rows() if row.slab in self.slabs]

    def _told(self, row: Row) -> bool:
        """Whether it was told; storage that does not answer now is asked again."""
        try:
            record = self.finished(row)
        except SaveFailed:
            return True  # the trainer fills the slot anew, and looks for itself once this saver stands by
        except StorageError:
            return False
        except Damaged as error:
            self.given_up(row, error.kind, str(error))
            return True
        if record is None:
            self.given_up(row, "save-failed", "an earlier saver gave it up, and died before it could say why")
        else:
            self.committed(row, record)
        return True
