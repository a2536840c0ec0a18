"""What the ranks say to each other at their end, through the store alone.

A rank whose training fails does not know whether the others fail too, train on, or wait for it in a collective. So it
sends nothing that they would have to answer: it leaves a parting word in the store and looks for theirs for a while.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

_DECISION = "parting"
_LOOK = 0.02
"""Seconds."""


@dataclass(frozen=True, slots=True)
class PartingWords:
    """Of one launch, once."""

    store: Store
    rank: int
    size: int

    def heard(self, mine: str, seconds: float) -> list[str] | None:
        """What all say, by rank; None: not all have come in time.

        Whoever decides first decides for all, rank 0 when all are there, anybody when its own time is over: with what
        one has given up another must not go on, nor take a word for news that was left long ago.

        Args:
            mine: what this rank says.
            seconds: how long it waits; 0: it has nothing to wait for, and only leaves its word.

        Raises:
            RuntimeError: the store does not answer.
        """
        self.store.set(f"parting/{self.rank}", mine)
        end = time.monotonic() + seconds
        if seconds <= 0:
            return self._decided([mine]) if self.rank == 0 else None
        if self.rank == 0:
            return self._decided(self._all(end))
        self._await([_DECISION], end)
        return self._decided(None)

    def _decided(self, words: list[str] | None) -> list[str] | None:
        decided: list[str] | None = json.loads(self.store.compare_set(_DECISION, "", json.dumps(words)))
        return decided

    def _all(self, end: float) -> list[str] | None:
        keys = [f"parting/{rank}" for rank in range(self.size)]
        return [self.store.get(key).decode() for key in keys] if self._await(keys, end) else None

    def _await(self, keys: list[str], end: float) -> bool:
        while not (there := self.store.check(keys)) and time.monotonic() < end:
            time.sleep(_LOOK)
        return bool(there)
