"""What saves a state that several ranks hold together: the verbs of `adapters.base.Adapter`, called on every rank."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness.files import sync
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

import holdfast
from adapters.base import Adapter
from adapters.holdfast import Process
from adapters.reference import Copy
from holdfast import every, latest


class Ranks(Adapter):
    """One checkpoint of all ranks."""

    moves = True
    """Whether another number of ranks can load it."""

    def find(self) -> None:
        """What another world has saved is the newest checkpoint."""
        self.saved = max((int(one.name.partition("-")[2]) for one in self.job.folder.glob("step-*")), default=0)

    def durable_at(self) -> float:
        self.wait()
        dist.barrier()  # some libraries have the first rank finish what all have written
        if self.saved:
            sync(self.path)
        return time.perf_counter()

    def forget(self) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            super().forget()
        dist.barrier()


class Reference(Copy):
    """The least that a private copy can cost; nothing to be loaded."""

    moves = False


class Holdfast(Process):
    """As by default; a step is what the loop says, for several libraries share one optimizer here."""

    moves = True

    def checkpointer_of(self) -> holdfast.Checkpointer:
        return holdfast.Checkpointer(
            self.store,
            run="bench",
            state={"model": self.job.model, "optimizer": self.job.optimizer},
            save=every(steps=self.job.every),
            keep=latest(self.keep),
            accumulate=1,
            **self.settings,
        )

    def find(self) -> None:
        self.store, self.watch = self.job.folder / "store", None
        self.checkpointer = self.checkpointer_of()

    def stop(self) -> None:
        if loop := getattr(self, "loop", None):  # there is none where nothing was saved
            loop.close()
        self.checkpointer.close()

    def forget(self) -> None:
        """Waits until every rank has read back what it wrote; retention may come with the next save."""
        marks = self.store / "catalog" / "runs" / "001" / "marks"
        id_ = self.watch.id.partition("-")[2].removesuffix(".json") if self.watch else ""
        while self.watch and len(list((marks / id_).glob("verified-*"))) < dist.get_world_size():
            time.sleep(0.01)
        time.sleep(0.1)  # of rank 0, retention


class DcpSave(Ranks):
    label = "dcp.save"
    how = "FileSystemWriter as by default: one thread a rank, sync_files=True"

    def begin(self, path: Path) -> None:
        dcp.save(self.job.nested(), checkpoint_id=path)

    def load(self) -> None:
        dcp.load(self.job.nested(), checkpoint_id=self.path)


class DcpAsync(DcpSave):
    label = "dcp.async_save"
    how = "THREAD, a gloo group of its own, a DefaultStager that keeps its memory"
    stager: Any = None
    """Where something is saved."""

    def prepare(self) -> None:
        self.group = dist.new_group(backend="gloo")
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        # Staging memory is cached by the identity of these objects, which Python would otherwise make anew.
        self.storages = [tensor.untyped_storage() for tensor in self.job.flat().values()]

    def begin(self, path: Path) -> None:
        self.upload: Any = dcp.async_save(
            self.job.nested(), checkpoint_id=path, process_group=self.group, async_stager=self.stager
        )

    def finish(self, path: Path) -> None:
        self.upload.result()

    def close(self) -> None:
        if self.stager is not None:
            self.stager.close()


class PerRank(Ranks):
    """The floor: no metadata, and no other number of ranks can load it."""

    label = "safetensors, one file a rank"
    how = "save_file of what the rank holds; load_file (mmap), copied into place; no other world can load it"
    moves = False

    def begin(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        save_file(self.job.flat(), self.file)

    def durable_at(self) -> float:
        if self.saved:
            sync(self.file)
        return time.perf_counter()

    @property
    def file(self) -> Path:
        return self.path / f"{dist.get_rank()}.safetensors"

    def load(self) -> None:
        state = load_file(self.file)
        for name, tensor in self.job.flat().items():
            tensor.copy_(state[name])


class TorchCheckpointing(Ranks):
    label = "torch_checkpointing"
    how = (
        "prewarm_staging, a writer process a rank, use_direct_io=False; no DefaultResharder, which gathers what ranks "
        "have over CUDA alone, so that no other world can load it"
    )
    moves = False

    def prepare(self) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        self.manager = CheckpointManager(CheckpointManager.Config(storage_config=storage))
        self.manager.prewarm_staging(self.job.nested())

    def begin(self, path: Path) -> None:
        self.written: Any = self.manager.save(str(path), self.job.nested())

    def before_step(self) -> None:
        with self.manager.lock():
            pass

    def finish(self, path: Path) -> None:
        self.written.result()

    def load(self) -> None:
        self.manager.load(self.path, into=self.job.nested())

    def close(self) -> None:
        self.manager.close()


SHARDED: dict[str, type[Any]] = {
    "copy": Reference,
    "holdfast": Holdfast,
    "dcp": DcpSave,
    "dcp-async": DcpAsync,
    "torch_checkpointing": TorchCheckpointing,
    "per-rank": PerRank,
}
