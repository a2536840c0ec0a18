"""torch.save and torch.load."""

from __future__ import annotations

from pathlib import Path

import torch

from adapters.base import Adapter, restore


class TorchSave(Adapter):
    label = "torch.save"
    how = "set_crc32_options(False); loads with mmap=True"

    def prepare(self) -> None:
        torch.serialization.set_crc32_options(False)  # nothing ever verifies them

    def begin(self, path: Path) -> None:
        torch.save(self.job.nested(), path)

    def load(self) -> None:
        restore(self.job, torch.load(self.path, weights_only=True, mmap=True))
