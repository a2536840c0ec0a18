"""torchsnapshot, in the loop and in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchsnapshot import Snapshot

from adapters.base import Adapter


class Take(Adapter):
    label = "torchsnapshot take"
    how = "Snapshot.take, batching as it comes"

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.job.model, "optimizer": self.job.optimizer}

    def begin(self, path: Path) -> None:
        Snapshot.take(str(path), self.state)

    def load(self) -> None:
        Snapshot(str(self.path)).restore(self.state)


class AsyncTake(Take):
    label = "torchsnapshot async"
    how = "Snapshot.async_take"

    def begin(self, path: Path) -> None:
        self.pending = Snapshot.async_take(str(path), self.state)

    def finish(self, path: Path) -> None:
        self.pending.wait()
