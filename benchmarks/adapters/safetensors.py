"""safetensors; the hyperparameters go into its header."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from adapters.base import Adapter


class Safetensors(Adapter):
    label = "safetensors"
    how = "save_file; load_file (mmap), copied into place"

    def begin(self, path: Path) -> None:
        groups = json.dumps(self.job.optimizer.state_dict()["param_groups"])
        save_file(self.job.flat(), path, metadata={"param_groups": groups})

    def load(self) -> None:
        state = load_file(self.path)
        for name, tensor in self.job.flat().items():
            tensor.copy_(state[name])
