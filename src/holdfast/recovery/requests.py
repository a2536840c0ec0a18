"""What tells one save from another of the same name."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.ids import nonce


@dataclass(slots=True)
class Nonces:
    """One nonce for each boundary: what was kept in reserve there and what is saved there are the same state.

    So a save of a boundary whose reserve has become a checkpoint meanwhile finds its own record, not a conflict.
    """

    _at: tuple[int, int] | None = None
    _nonce: str = ""

    def of(self, timeline: int, step: int) -> str:
        """The nonce for the boundary after ``step``."""
        if self._at != (timeline, step):
            self._at, self._nonce = (timeline, step), nonce()
        return self._nonce
