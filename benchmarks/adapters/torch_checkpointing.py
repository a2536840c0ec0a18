"""torch_checkpointing, Meta's successor to DCP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch_checkpointing import CheckpointManager, ItemSpec
from torch_checkpointing.checkpoint_writer import CheckpointWriterConfig
from torch_checkpointing.config import AsyncCheckpointSaverConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from adapters.base import Adapter


class Manager(Adapter):
    label = "torch_checkpointing"
    how = "prewarm_staging, writer process, 3 files by 2 threads, frozen weights not copied, use_direct_io=False"

    def prepare(self) -> None:
        writer = CheckpointWriterConfig(file_write_max_threads=2)
        config = CheckpointManager.Config(
            items={"frozen": ItemSpec(requires_copy=False, required=False)},
            save=AsyncCheckpointSaverConfig(writer_config=writer),
            # With its default of True every write fails on ext4: O_DIRECT, and buffers that are not aligned.
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        )
        self.manager = CheckpointManager(config)
        self.manager.prewarm_staging(self.items())

    def items(self) -> dict[str, Any]:
        """Several items, for one item is one file, written by one thread."""
        trained = {name for name, one in self.job.model.named_parameters() if one.requires_grad}
        weights = self.job.model.state_dict()
        frozen = {name: value for name, value in weights.items() if name not in trained}
        state = self.job.optimizer.state_dict()
        found: dict[str, Any] = {
            "weights": {name: value for name, value in weights.items() if name in trained},
            "moments_1": {key: {"exp_avg": one["exp_avg"]} for key, one in state["state"].items()},
            "moments_2": {key: {**one, "exp_avg": None} for key, one in state["state"].items()},
            "groups": state["param_groups"],
        }
        return found | ({"frozen": frozen} if frozen else {})

    def begin(self, path: Path) -> None:
        self.written = self.manager.save(str(path), self.items())

    def before_step(self) -> None:
        with self.manager.lock():
            pass

    def finish(self, path: Path) -> None:
        self.written.result()

    def load(self) -> None:
        self.manager.load(self.path, into=self.items())

    def close(self) -> None:
        self.manager.close()
