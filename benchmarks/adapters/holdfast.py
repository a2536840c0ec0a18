"""holdfast, through its public API alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from harness.files import files_of

import holdfast
from adapters.base import Adapter
from holdfast import every, latest

INLINE: dict[str, Any] = {"saver": "inline"}
PROCESS: dict[str, Any] = {"saver": "process"}


class Holdfast(Adapter):
    settings: ClassVar[dict[str, Any]] = {}
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
        """The loop goes on when there is a copy."""

    def finish(self, path: Path) -> None:
        assert self.watch is not None
        self.watch.join()
        if not self.watch.id:
            raise TimeoutError("no record after 120 s")

    def durable_at(self) -> float:
        self.wait()
        return self.watch.seen if self.watch else 0.0

    def unload(self) -> None:
        self.checkpointer.close()

    def load(self) -> None:
        """As after a restart; every byte is verified."""
        self.checkpointer = self.checkpointer_of()
        self.checkpointer.restore()

    def files(self) -> list[Path]:
        records = holdfast.open(self.store).run(1).records()
        newest = max(records, key=lambda one: one.step)
        return [self.store / name for name in newest.packs]

    def forget(self) -> None:
        """Retention does that; it and the reading back, which follow a save, are waited for."""
        while self.watch and not self.watch.followed(self.keep):
            time.sleep(0.01)

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
        self._store, self._step = store, f".{step:012}-"
        self._run = store / "catalog" / "runs" / "001"
        self._until = time.monotonic() + 120
        self.id, self.seen = "", 0.0
        self.start()

    def run(self) -> None:
        while not self.id and time.monotonic() < self._until:
            time.sleep(0.002)
            self.id = next((name for name in self._records() if self._step in name), "")
        self.seen = time.perf_counter()

    def followed(self, keep: int) -> bool:
        """Whether it was read back, and what it replaces is gone, packs included."""
        id_ = self.id.partition("-")[2].removesuffix(".json")
        verified = any((self._run / "marks" / id_).glob("verified-*"))
        return verified and len(self._records()) <= keep and not self._unused()

    def _unused(self) -> set[str]:
        """Packs that no record needs."""
        needed = {name for one in holdfast.open(self._store).run(1).records() for name in one.packs}
        return {f"data/runs/001/{one.name}" for one in (self._store / "data/runs/001").iterdir()} - needed

    def _records(self) -> list[str]:
        try:
            return [one.name for one in (self._run / "records").iterdir()]
        except FileNotFoundError:
            return []


class Inline(Holdfast):
    label = "holdfast, inline"
    how = 'saver="inline": the loop waits until the save is durable and read back, and retention is done'
    settings = INLINE


class Process(Holdfast):
    label = "holdfast"
    how = "as by default: saver process, two slots in shared memory"
    settings = PROCESS


class Zstd(Holdfast):
    label = "holdfast, zstd"
    settings: ClassVar = {**PROCESS, "codec": "zstd"}


class OpenZL(Holdfast):
    label = "holdfast, openzl"
    settings: ClassVar = {**PROCESS, "codec": "openzl"}


class Auto(Holdfast):
    label = "holdfast, auto"
    settings: ClassVar = {**PROCESS, "codec": "auto"}
