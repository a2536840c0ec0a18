"""Where the thread that trains spends a save of holdfast: clocks around the functions that it waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from holdfast.recovery.handover import background
from holdfast.recovery.handover.slots import Slots
from holdfast.recovery.saving.taking import Taking
from holdfast.recovery.stopping.decisions import Decisions

WATCHED: dict[str, list[tuple[Any, str]]] = {
    "agreement": [(Decisions, "due")],
    "capture": [(Taking, "snapshot")],
    "fingerprints of replicas": [(Taking, "compared")],
    "structure compared": [(background.BackgroundSaves, "prepare")],
    "copy": [(Slots, "copy")],
    "document": [(background, "encode_job"), (Slots, "write")],
}
"""What is measured, by a word of the report; none of them calls another."""


class Phases:
    """Seconds of every phase, save by save."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in WATCHED}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """One save, or several that count as one."""
        for values in self._seconds.values():
            values.append(0.0)
        with ExitStack() as stack:
            for name, functions in WATCHED.items():
                for owner, attribute in functions:
                    stack.enter_context(patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self._seconds.items() if values}

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._seconds[name][-1] += time.perf_counter() - began

        return timed
