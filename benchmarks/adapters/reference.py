"""What the machine itself can do with the same bytes."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from adapters.base import Adapter

BLOCK = 8 << 20
THREADS = 4


class Nothing(Adapter):
    """A loop that saves nothing."""

    label = "no saving"
    durable = False


class Copy(Adapter):
    """The least that a private copy can cost."""

    label = "torch.Tensor.copy_"
    how = "into memory that has been touched, torch's threads"
    durable = False

    def prepare(self) -> None:
        pinned = torch.cuda.is_available()
        tensors = self.job.flat().values()
        self.copies = [torch.empty_like(one, device="cpu", pin_memory=pinned).fill_(0) for one in tensors]

    def begin(self, path: Path) -> None:
        for copy, tensor in zip(self.copies, self.job.flat().values(), strict=True):
            copy.copy_(tensor, non_blocking=True)


class Raw(Adapter):
    """As many bytes from one aligned piece of memory: what the disk can do."""

    label = "raw direct I/O"
    how = f"O_DIRECT, {THREADS} threads, pieces of 8 MiB, preallocated, fsync of file and folder"
    checked = False
    huge = False

    def prepare(self) -> None:
        self.starts = range(0, self.job.bytes, BLOCK)
        memory = mmap.mmap(-1, len(self.starts) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self.huge:
            memory.madvise(mmap.MADV_HUGEPAGE)
        at = 0
        for tensor in self.job.flat().values():
            memory[at : at + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
            at += tensor.nbytes
        self.memory = memoryview(memory)
        self.pool = ThreadPoolExecutor(THREADS)

    def begin(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(fd, 0, len(self.memory))
        list(self.pool.map(lambda at: os.pwrite(fd, self.memory[at : at + BLOCK], at), self.starts))
        os.fsync(fd)
        os.close(fd)

    def load(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        list(self.pool.map(lambda at: os.preadv(fd, [self.memory[at : at + BLOCK]], at), self.starts))
        os.close(fd)


class RawHuge(Raw):
    """The same from huge pages, which the kernel pins with 512 times fewer steps."""

    label = "raw direct I/O, huge pages"
    how = "MADV_HUGEPAGE"
    huge = True
