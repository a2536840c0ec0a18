"""lm-resiliency: GEMINI's two slots in the memory of the trainer, and a flush of them to a local disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from harness.files import files_of
from lm_resiliency.checkpointing import InMemoryCheckpointManager, InMemoryCkptConfig

from adapters.base import Adapter

ALONE = SimpleNamespace(has_natural_replicas=True)
"""No peers: two slots instead of four."""


class MemoryOnly(Adapter):
    label = "lm-resiliency, memory"
    how = "save_tensors into the trainer's own memory, which ends with the trainer"
    durable = False

    def prepare(self) -> None:
        self.manager = self.manager_of()

    def manager_of(self) -> InMemoryCheckpointManager:
        folder = str(self.job.folder / "gemini")
        config = InMemoryCkptConfig(disk_flush_interval=0, disk_folder=folder, run_id="bench")
        return InMemoryCheckpointManager(config, parallelism_info=ALONE)

    def begin(self, path: Path) -> None:
        self.tensors = self.job.flat()
        self.manager.save_tensors(
            list(self.tensors.values()),
            step=self.saved,
            extra={"param_groups": self.job.optimizer.state_dict()["param_groups"]},
        )

    def before_step(self) -> None:
        self.manager.maybe_wait()

    def close(self) -> None:
        self.manager.close()


class Flushed(MemoryOnly):
    label = "lm-resiliency"
    how = "save_tensors, then flush_to_disk of that step; CRC-32 off, as by default"
    durable = True

    def begin(self, path: Path) -> None:
        super().begin(path)
        self.manager.maybe_wait()
        self.manager.flush_to_disk(self.saved)

    def finish(self, path: Path) -> None:
        self.manager._disk.wait()

    @property
    def path(self) -> Path:
        return self.manager._disk._folder / f"step-{self.saved}"

    def load(self) -> None:
        fresh = self.manager_of()  # as after a restart: one with nothing in its memory
        found = fresh.load_tensors(step=self.saved)
        assert found is not None
        for target, source in zip(self.job.flat().values(), found[0], strict=True):
            target.copy_(source)

    def forget(self) -> None:
        self.manager._disk.cleanup_older_than(self.saved)

    def files(self) -> list[Path]:
        return files_of(self.path)
