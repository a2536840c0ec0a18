"""One small module per library, each in the best configuration that was found for it.

An adapter has the verbs of `adapters.base.Adapter`; nothing else in the benchmarks knows any library.
"""

from __future__ import annotations

import importlib

from adapters.base import Adapter

ADAPTERS = {
    "copy": "adapters.reference:Copy",
    "raw": "adapters.reference:Raw",
    "raw-huge": "adapters.reference:RawHuge",
    "none": "adapters.reference:Nothing",
    "holdfast": "adapters.holdfast:Process",
    "holdfast-inline": "adapters.holdfast:Inline",
    "holdfast-zstd": "adapters.holdfast:Zstd",
    "holdfast-openzl": "adapters.holdfast:OpenZL",
    "holdfast-auto": "adapters.holdfast:Auto",
    "torch.save": "adapters.torch_save:TorchSave",
    "safetensors": "adapters.safetensors:Safetensors",
    "dcp": "adapters.dcp:Dcp",
    "dcp-async": "adapters.dcp:DcpAsync",
    "torchsnapshot": "adapters.torchsnapshot:Take",
    "torchsnapshot-async": "adapters.torchsnapshot:AsyncTake",
    "torch_checkpointing": "adapters.torch_checkpointing:Manager",
    "lm-resiliency": "adapters.lm_resiliency:Flushed",
    "lm-resiliency-memory": "adapters.lm_resiliency:MemoryOnly",
}


def adapter(name: str) -> type[Adapter]:
    """The class; importing it imports the library."""
    module, _, attribute = ADAPTERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
