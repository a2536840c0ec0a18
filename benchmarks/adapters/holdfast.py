"""holdfast, through its public API alone."""

from __future__ import annotations

import inspect
import threading
import time
from pathlib import Path
from typing import Any

import holdfast
from adapters.base import Adapter
from holdfast import every, latest

from harness.files import files_of

INLINE: dict[str, Any] = {"saver": "inline"}
PROCESS: dict[str, Any] = {"saver": "process"}
if "saver" not in inspect.signature(holdfast.Checkpointer).parameters:
    INLINE = {}


class Holdfast(Adapter):
    settings: dict[str, Any] = {}
    keep = 3

    def prepare(self) -> None:
        self.store = self.job.folder / "store"
        self.watch: Watch | None = None
        self.checkpointer = self.checkpointer_of()
        self.loop = self.checkpointer.steps(1_000_000_000)
        next(self.loop)

    def checkpointer_of(self) -> holdfast.Checkpointer:
        return holdfast.Checkpointer(
            self.store,
            run="bench",
            state={"model": self.job.model, "optimizer": self.job.optimizer},
            save=every(steps=self.job.every),
            keep=latest(self.keep),
            **self.settings,
        )

    def after_step(self) -> None:
        """The loop goes on to the next step; in between, the policy saves."""
        self.count += 1
        if self.count % self.job.every == 0:
            self.wait()
            self.open = True
            self.watch = Watch(self.store, self.count)
        next(self.loop)

    def before_step(self) -> None:
        """Nothing to call: the hook that a Checkpointer puts ahead of the optimizer's step waits."""

    def finish(self, path: Path) -> None:
        assert self.watch is not None
        self.watch.join()

    def durable_at(self) -> float:
        self.wait()
        return self.watch.seen if self.watch else 0.0

    def load(self) -> None:
        """As after a restart; every byte is verified."""
        self.checkpointer.close()
        self.checkpointer = self.checkpointer_of()
        self.checkpointer.restore()

    def files(self) -> list[Path]:
        records = holdfast.open(self.store).run(1).records()
        newest = max(records, key=lambda one: one.step)
        return [self.store / name for name in newest.packs]

    def forget(self) -> None:
        """Retention has done that."""

    def stop(self) -> None:
        self.loop.close()
        self.checkpointer.close()

    def close(self) -> None:
        self.stop()

    @property
    def path(self) -> Path:
        return self.store

    def all_files(self) -> list[Path]:
        return files_of(self.store)


class Watch(threading.Thread):
    """When the record of a save appears: it is written last, when everything that it needs is durable."""

    def __init__(self, store: Path, step: int) -> None:
        super().__init__(daemon=True)
        self._records, self._step = store / "catalog" / "runs" / "001" / "records", f".{step:012}-"
        self.seen = 0.0
        self.start()

    def run(self) -> None:
        while not self._there():
            time.sleep(0.002)
        self.seen = time.perf_counter()

    def _there(self) -> bool:
        return self._records.exists() and any(self._step in one.name for one in self._records.iterdir())


class Inline(Holdfast):
    label = "holdfast, inline"
    how = "the loop waits until the save is durable, read back and old ones are deleted"
    settings = INLINE


class Process(Holdfast):
    label = "holdfast"
    how = "saver process"
    settings = PROCESS


class Zstd(Holdfast):
    label = "holdfast, zstd"
    settings = {**PROCESS, "codec": "zstd"}


class OpenZL(Holdfast):
    label = "holdfast, openzl"
    settings = {**PROCESS, "codec": "openzl"}


class Auto(Holdfast):
    label = "holdfast, auto"
    settings = {**PROCESS, "codec": "auto"}
