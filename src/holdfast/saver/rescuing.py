"""What is in reserve becomes a checkpoint: for a trainer that is gone, or says so, or was signalled and may be stuck.

Of several ranks a signal may have come to some alone, and trainers that are not
stuck agree on something newer at their next boundary. So what a signal has had
begun goes on only if all ranks do it, and makes way for what the trainers say.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from holdfast.records import Kind
from holdfast.saver.control import Control, Intent, Row
from holdfast.saver.jobs import SaveRequest
from holdfast.saver.orders import Orders
from holdfast.saver.together import NotTogether


@dataclass(slots=True, kw_only=True)
class Rescuing:
    """The rescues of one saver, one at a time. Belongs to the thread that works."""

    orders: Orders
    control: Control
    under_way: bool = False
    """Whether what is being saved was in reserve."""

    def begun(self, request: SaveRequest) -> SaveRequest:
        """What is said of a reserve that becomes a checkpoint."""
        rescue = self.orders.rescue
        kind = Kind(rescue.kind) if rescue else Kind.PREEMPTED
        why = rescue.reason if rescue else "the trainer was killed"
        return msgspec.structs.replace(request, kind=kind, reason=f"{why}; staged at step {request.step}")

    def unsure(self) -> bool:
        """Whether only a signal has it done: other ranks may have got none, and the trainer may get on."""
        return self.under_way and self.orders.signalled and not self.orders.orphaned

    def overtaken(self) -> bool:
        """Whether the trainer does get on: what it has handed over, or waits to, all ranks have."""
        return self.unsure() and (self.orders.awaited or self.orders.over or self._asked())

    def made_way(self, row: Row, error: Exception) -> bool:
        """Whether a reserve was not saved for it needs all ranks: no failure, as the trainer goes on by itself."""
        return row.intent is Intent.RESERVE and isinstance(error, NotTogether) and not self.orders.orphaned

    def _asked(self) -> bool:
        return any(row.pending and row.intent is Intent.SAVE for row in self.control.rows())
