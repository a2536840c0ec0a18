"""The global random generators: Python, NumPy, torch on the CPU and on every device in use.

Captured without being asked, restored last. A device that the program has not
initialised is left alone: its generator has not been drawn from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from holdfast.state.values_torch import (
    bytes_tensor,
    python_state,
    set_python_state,
    tensor_bytes,
    with_arrays,
    without_arrays,
)


def capture() -> dict[str, Any]:
    """The states of all global generators as plain values."""
    state: dict[str, Any] = {
        "python": python_state(random),
        "numpy": without_arrays(np.random.get_state(legacy=False)),
        "torch": tensor_bytes(torch.get_rng_state()),
    }
    for kind, (devices, get, _) in _accelerators().items():
        state[kind] = [tensor_bytes(get(index)) for index in range(devices)]
    return state


def restore(state: dict[str, Any]) -> list[str]:
    """Puts the global generators into a state that `capture` gave; answers what could not be put back.

    Call it last: making iterators, models and optimizers draws numbers.
    """
    set_python_state(random, state["python"])
    np.random.set_state(with_arrays(state["numpy"]))
    torch.set_rng_state(bytes_tensor(state["torch"]))
    notes = []
    accelerators = _accelerators(initialised=False)
    for kind in ("cuda", "xpu", "mps"):
        stored = state.get(kind, [])
        devices, _, put = accelerators.get(kind, (0, None, None))
        for index, raw in enumerate(stored[:devices]):
            put(bytes_tensor(raw), index)  # type: ignore[misc]  # set whenever devices is not 0
        if len(stored) != devices and (stored or kind in _accelerators()):
            notes.append(f"random state of {len(stored)} {kind} devices was stored, and there are {devices} now")
    return notes


def _accelerators(
    *, initialised: bool = True
) -> dict[str, tuple[int, Callable[[int], Any], Callable[[Any, int], Any]]]:
    """Per kind: number of devices, get, set; with ``initialised`` only what the program uses already."""
    found: dict[str, tuple[int, Callable[[int], Any], Callable[[Any, int], Any]]] = {}
    if torch.cuda.is_available() and (not initialised or torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        found["cuda"] = (torch.cuda.device_count(), torch.cuda.get_rng_state, torch.cuda.set_rng_state)
    if torch.xpu.is_available() and (not initialised or torch.xpu.is_initialized()):  # type: ignore[no-untyped-call]
        found["xpu"] = (torch.xpu.device_count(), torch.xpu.get_rng_state, torch.xpu.set_rng_state)
    if torch.backends.mps.is_available():
        found["mps"] = (1, lambda _: torch.mps.get_rng_state(), lambda state, _: torch.mps.set_rng_state(state))
    return found


def derived(seed: str, rank: int) -> dict[str, Any]:
    """States of the global generators for a rank that has none stored: equal for equal arguments, and no two alike.

    Source of the numbers: 64 bits of BLAKE3 for each kind of generator.
    """
    before = capture()
    try:
        random.seed(_word(seed, rank, "python"))
        np.random.seed(_word(seed, rank, "numpy") >> 32)
        torch.manual_seed(_word(seed, rank, "torch") >> 1)  # all devices too
        return capture()
    finally:
        restore(before)


def _word(seed: str, rank: int, kind: str) -> int:
    return int.from_bytes(blake3(f"{seed} {rank} {kind}".encode()).digest(8), "little")
