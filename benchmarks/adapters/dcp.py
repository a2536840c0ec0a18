"""torch.distributed.checkpoint, in the loop and by its background process."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness.states import Job
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from adapters.base import Adapter


class Dcp(Adapter):
    label = "dcp.save"
    how = "FileSystemWriter(thread_count=2, sync_files=True), plan caching, no_dist"

    def begin(self, path: Path) -> None:
        writer = dcp.FileSystemWriter(path, thread_count=2, sync_files=True)
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(self.job.nested(), storage_writer=writer, planner=planner, no_dist=True)

    def load(self) -> None:
        state = self.job.nested()
        dcp.load(state, storage_reader=dcp.FileSystemReader(self.path), no_dist=True)


class DcpAsync(Dcp):
    label = "dcp.async_save"
    how = "PROCESS, DefaultStager in shared memory and in a thread of its own, thread_count=2, plan caching"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.staging: Any = None
        self.upload: Any = None

    def prepare(self) -> None:
        warnings.filterwarnings("ignore")
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=60))
        dist.init_process_group("cpu:gloo", store=store, rank=0, world_size=1)
        cuda = torch.cuda.is_available()
        options = StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=cuda
        )
        self.stager = DefaultStager(options)
        # Staging memory is cached by the identity of these objects, which Python would otherwise make anew.
        self.storages = [tensor.untyped_storage() for tensor in self.job.flat().values()]

    def begin(self, path: Path) -> None:
        response = dcp.async_save(
            self.job.nested(),
            storage_writer=dcp.FileSystemWriter(path, thread_count=2, sync_files=True),
            planner=DefaultSavePlanner(enable_plan_caching=True),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self.stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        self.staging, self.upload = response.staging_completion, response.upload_completion

    def before_step(self) -> None:
        if self.staging is not None:
            self.staging.result()

    def finish(self, path: Path) -> None:
        self.upload.result()

    def close(self) -> None:
        from torch.distributed.checkpoint import _async_process_executor as executor

        self.stager.close()
        executor._CHECKPOINT_PROCESS = None  # its __del__ ends the daemon
        dist.destroy_process_group()
