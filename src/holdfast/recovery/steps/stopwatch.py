"""How long a launch has trained: the time of its steps, which its saves have no part in."""

from __future__ import annotations

import time


class Stopwatch:
    """Counts while it runs. Not thread-safe."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._counted = 0.0

    def go(self) -> None:
        """A body begins, or a batch is fetched for it."""
        if self._since is None:
            self._since = time.monotonic()

    def halt(self) -> bool:
        """What follows is no training: a save, the end of the loop; whether it was running."""
        running = self._since is not None
        if self._since is not None:
            self._counted += time.monotonic() - self._since
            self._since = None
        return running

    @property
    def step_seconds(self) -> float:
        """Counted so far."""
        return self._counted + (time.monotonic() - self._since if self._since is not None else 0.0)
