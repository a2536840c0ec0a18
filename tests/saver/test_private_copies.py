"""After save() the live tensors may be overwritten at once: the checkpoint has what they held, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from staged_kit import check_store
from tiny_training import records_of
from torch import Tensor, nn

from holdfast import Checkpointer, latest
from holdfast.records import Record

SAVES = 4

SMALL, LARGE = (3, 5), (48, 40)  # below 1 KiB a tensor travels with the document, above it has memory of its own
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
COMPLEX = [torch.complex64, torch.complex128]


class Zoo(nn.Module):
    """A tensor of every kind that there is."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in [*FLOATS, *COMPLEX]:
            for shape in (SMALL, LARGE):
                name = f"{dtype}-{shape}".replace(".", "_")
                self.register_parameter(name, nn.Parameter(torch.ones(shape, dtype=dtype)))
        for dtype in [*INTEGERS, *NARROW, torch.bool]:
            for shape in (SMALL, LARGE):
                self.register_buffer(f"{dtype}-{shape}".replace(".", "_"), torch.zeros(shape).to(dtype))
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("scalar_int", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 9))
        self.turned = nn.Parameter(torch.ones(70, 90).t())
        self.cut = nn.Parameter(torch.ones(64, 64)[:, 7:41])
        self.image = nn.Parameter(torch.ones(8, 16, 5, 5).contiguous(memory_format=torch.channels_last))
        self.register_buffer("conjugated", torch.ones(30, 30, dtype=torch.complex64).conj())
        self.register_buffer("negated", torch.ones(30, 30, dtype=torch.complex64).conj().imag)
        self.register_buffer("expanded", torch.ones(1, 300).expand(40, 300))
        self.long_rows = nn.Parameter(torch.ones(2, 2_200_000))  # each longer than a segment
        self.many_rows = nn.Parameter(torch.ones(1500, 1700))  # 10 MB in short rows
        self.tied = self.many_rows
        self.frozen = nn.Parameter(torch.ones(500, 300), requires_grad=False)
        self.frozen_turned = nn.Parameter(torch.ones(300, 20).t(), requires_grad=False)
        self.still = nn.Parameter(torch.full((400, 20), 2.0), requires_grad=False)


def memory_of(tensor: Tensor) -> Tensor:
    """All bytes behind a tensor, whatever its dtype and strides; writing them leaves no trace in version counters."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())


def tensors_of(zoo: Zoo, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All that changes from save to save."""
    yield from (tensor for name, tensor in zoo.state_dict(keep_vars=True).items() if name != "still")
    for state in optimizer.state.values():
        yield from (part for part in state.values() if isinstance(part, Tensor))


def be_at(zoo: Zoo, optimizer: torch.optim.Optimizer, number: int) -> None:
    """The state of one save, the same in every process; the random states, too."""
    torch.manual_seed(number)
    for tensor in tensors_of(zoo, optimizer):
        memory = memory_of(tensor)
        # Zeros and ones only where a bool lies, and no NaN, so that an optimizer can work with the rest.
        memory.copy_(torch.randint(0, 2 if tensor.dtype is torch.bool else 100, memory.shape, dtype=torch.uint8))
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def scribble(zoo: Zoo, optimizer: torch.optim.Optimizer) -> None:
    """Other bytes everywhere."""
    for tensor in tensors_of(zoo, optimizer):
        memory_of(tensor).bitwise_xor_(1)


def write_data(zoo: Zoo, optimizer: torch.optim.Optimizer) -> None:
    """As much user code does it: through ``.data``, in place, and slot by slot."""
    for name, parameter in zoo.named_parameters():
        if name != "still":
            parameter.data.mul_(2)
    with torch.no_grad():
        for name, buffer in zoo.named_buffers():
            if buffer.numel() and name != "expanded":
                buffer[...] = torch.ones_like(buffer)


def replace(zoo: Zoo, optimizer: torch.optim.Optimizer) -> None:
    """The same parameters get other memory: who remembers where they lay saves what nobody trains any more."""
    for parameter in zoo.parameters():
        if parameter.is_contiguous():
            parameter.data = parameter.data.clone()
    for state in optimizer.state.values():
        state["exp_avg"] = torch.zeros_like(state["exp_avg"])


def step_on(zoo: Zoo, optimizer: torch.optim.Optimizer) -> None:
    """A fused optimizer writes without a trace in version counters."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def saved(store: Path, saver: str, then: Callable[[Zoo, torch.optim.Optimizer], object]) -> list[Record]:
    """Saves one state after the other, each overwritten as soon as save() returns."""
    zoo = Zoo()
    floats = [one for one in zoo.parameters() if one.requires_grad and one.dtype in (torch.float32, torch.float64)]
    optimizer = torch.optim.AdamW([one for one in floats if one is not zoo.long_rows], fused=True)
    step_on(zoo, optimizer)
    with Checkpointer(
        store, state={"zoo": zoo, "optimizer": optimizer}, saver=saver, keep=latest(SAVES + 1), ram_budget="1GB"
    ) as ckpt:
        for step in ckpt.steps(SAVES + 1):
            be_at(zoo, optimizer, step)
            if step:
                ckpt.save()
            then(zoo, optimizer)
            optimizer.step()
    return records_of(store)


@pytest.fixture(scope="module")
def in_line(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """What inline saving makes of the same states, which nobody touches meanwhile."""
    return saved(tmp_path_factory.mktemp("inline") / "s", "inline", lambda zoo, optimizer: None)


@pytest.mark.parametrize("then", [scribble, write_data, replace, step_on], ids=lambda then: then.__name__)
def test_what_happens_after_save_returns_changes_nothing_in_the_checkpoint(
    tmp_path: Path, in_line: list[Record], then: Callable[[Zoo, torch.optim.Optimizer], object]
) -> None:
    """Equal manifests: every value and every segment digest is that of an inline save of the same state."""
    found = saved(tmp_path / "s", "process", then)
    assert [record.step for record in found] == [record.step for record in in_line]
    assert any(record.fingerprinted for record in found), "what is frozen and still was copied again and again"
    assert [record.manifest for record in found[:SAVES]] == [record.manifest for record in in_line[:SAVES]]
    check_store(tmp_path / "s")
