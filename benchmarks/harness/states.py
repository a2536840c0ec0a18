"""The states that are saved: GPT-2 small under AdamW, a LoRA over a frozen base, and a small GPT that really trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RANK = 6


class Weights(nn.Module):
    """Parameters by name, with nothing to compute."""

    def __init__(self, trained: dict[str, Tensor], frozen: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in trained.items():
            self.register_parameter(name, nn.Parameter(value))
        for name, value in frozen.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one library is to save, and where."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path
    every: int = 1

    def flat(self) -> dict[str, Tensor]:
        """Every tensor once, by name; tied weights have one name."""
        found = {f"model.{name}": value.detach() for name, value in self.model.named_parameters()}
        found |= {f"model.{name}": value for name, value in self.model.named_buffers()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            found |= {f"{kind}.{name}": value for kind, value in state.items()}
        return found

    def trained(self) -> dict[str, Tensor]:
        """The part of `flat` that training changes."""
        frozen = {f"model.{name}" for name, one in self.model.named_parameters() if not one.requires_grad}
        return {name: value for name, value in self.flat().items() if name not in frozen}

    def nested(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.flat().values())

    def touch(self) -> None:
        """One step of the optimizer: everything that is trained changes, bit for bit."""
        assert any(one.grad is not None for one in self.model.parameters()), "without gradients nothing changes"
        self.optimizer.step()


def gpt2(folder: Path, *, quick: bool = False) -> Job:
    """124 M parameters and both moments of AdamW, fp32: 1.49 GB; of a small form 17 MB."""
    width, rows = (96, 2048) if quick else (768, 50257)
    shapes = {"wte": (rows, width), "wpe": (1024, width)}
    for layer in range(12):
        shapes |= {f"{kind}_{layer}": shape for kind, shape in _block(width).items()}
    return _job(folder, {name: _noise(shape) for name, shape in shapes.items()}, {})


def lora(folder: Path, *, quick: bool = False) -> Job:
    """A frozen base of 1.06 GB in bf16, and 2.4 M trained values in fp32 with both moments of AdamW: 28 MB."""
    width, rows = (96, 2048) if quick else (1536, 50257)
    frozen = {"wte": _noise((rows, width), torch.bfloat16)}
    trained: dict[str, Tensor] = {}
    for layer in range(16):
        for kind, shape in _block(width).items():
            frozen[f"{kind}_{layer}"] = _noise(shape, torch.bfloat16)
            if len(shape) == 2:
                trained[f"{kind}_{layer}_a"] = _noise((RANK, shape[1]))
                trained[f"{kind}_{layer}_b"] = _noise((shape[0], RANK))
    return _job(folder, trained, frozen)


STATES: dict[str, Callable[..., Job]] = {"gpt2": gpt2, "lora": lora}


def small_gpt(folder: Path, *, every: int, width: int, batch: int, context: int = 64) -> tuple[Job, Iterator[None]]:
    """A GPT that learns text, and its loop: it stops before each optimizer step, and again behind it."""
    text = _example()
    torch.manual_seed(0)
    model = text.GPT(width=width, layers=6, heads=8, context=context).to(torch.get_default_device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    job = Job(model=model, optimizer=optimizer, folder=folder, every=every)
    return job, _training(job, text.Text(context=context), batch)


def _training(job: Job, data: Any, batch: int) -> Iterator[None]:
    at = 0
    while True:
        rows = [data[(at + n) % len(data)] for n in range(batch)]
        at += batch
        device = torch.get_default_device()
        tokens, following = (torch.stack([row[side] for row in rows]).to(device) for side in (0, 1))
        loss = nn.functional.cross_entropy(job.model(tokens).flatten(0, 1), following.flatten())
        loss.backward()
        yield
        job.optimizer.step()
        job.optimizer.zero_grad()
        yield


def _example() -> Any:
    import runpy
    from types import SimpleNamespace

    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "gpt.py")))


def _job(folder: Path, trained: dict[str, Tensor], frozen: dict[str, Tensor]) -> Job:
    model = Weights(trained, frozen)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    for parameter in parameters:
        parameter.grad = _noise(tuple(parameter.shape), scale=1e-3)
    job = Job(model=model, optimizer=optimizer, folder=folder)
    job.touch()
    return job


def _block(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "qkv": (3 * width, width),
        "proj": (width, width),
        "fc": (4 * width, width),
        "out": (width, 4 * width),
        "ln_1": (width,),
        "ln_2": (width,),
    }


@cache
def _tile() -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    return torch.randn(1 << 22, generator=generator)


def _noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 0.02) -> Tensor:
    """Normal values, no two stretches alike: one tile, each time with another factor (randn would take seconds)."""
    value = torch.empty(shape, dtype=dtype)  # on the default device, which the worker sets
    for piece in value.view(-1).split(_tile().numel()):
        _noise.count += 1  # type: ignore[attr-defined]
        piece.copy_(_tile()[: piece.numel()] * (scale * (1 + _noise.count / 1009)))  # type: ignore[attr-defined]
    return value


_noise.count = 0  # type: ignore[attr-defined]
