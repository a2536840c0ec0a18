"""The CPU random number generators that data loading draws from: captured, restored, kept apart.

Three are global (Python's ``random``, NumPy's legacy one, torch's default one).
Others are owned by samplers and loaders. States are plain values and tensors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from blake3 import blake3

State = dict[str, Any]
Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState

OWNED = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""Types that can be captured when an object owns one."""


class _Native(NamedTuple):
    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch: torch.Tensor

    @classmethod
    def here(cls) -> Self:
        return cls(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state())

    def apply(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)


def capture() -> State:
    """The states of the three global CPU generators, as plain values and byte tensors."""
    return _portable(_Native.here())


def restore(state: State) -> None:
    """Puts the three global CPU generators back to what `capture` gave."""
    _native(state).apply()


def seed(number: int) -> None:
    """Seeds the three global CPU generators from a number under 2**64; leaves those of accelerators alone."""
    random.seed(number)
    np.random.seed([number & 0xFFFFFFFF, number >> 32])
    # torch.manual_seed would seed the accelerators too, in the middle of somebody's training.
    torch.default_generator.manual_seed(number & 0x7FFFFFFFFFFFFFFF)


def hashed(*parts: object) -> int:
    """A number under 2**64 that is a pure function of the parts' text."""
    return int.from_bytes(blake3("/".join(map(str, parts)).encode()).digest()[:8], "little")


def entropy() -> int:
    """A number under 2**64 for a private stream; each global generator is advanced by one draw."""
    drawn = torch.empty((), dtype=torch.int64).random_().item()
    return hashed(random.getrandbits(64), np.random.randint(0, 2**31 - 1), drawn)


def signature() -> int:
    """A number under 2**64 made of the present states of the global generators, drawing nothing."""
    here = _Native.here()
    words = np.array(here.python[1], dtype=np.uint32).tobytes() + here.torch.numpy().tobytes()
    return hashed(words.hex(), _signature(here.numpy))


@contextmanager
def preserved() -> Iterator[None]:
    """Leaves the global generators as they were, whatever is drawn inside."""
    before = _Native.here()
    try:
        yield
    finally:
        before.apply()


class Stream:
    """A private course of the three global generators: what is drawn inside does not touch the training's.

    Example:
        >>> stream = Stream(7)
        >>> before = random.getstate()
        >>> with stream:
        ...     first = random.random()
        >>> random.getstate() == before
        True
    """

    def __init__(self, number: int) -> None:
        with preserved():
            seed(number)
            self._inside = _Native.here()
        self._outside: _Native | None = None

    def __enter__(self) -> Self:
        self._outside = _Native.here()
        self._inside.apply()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = _Native.here()
        if self._outside is not None:
            self._outside.apply()

    def state(self) -> State:
        """Where the stream stands."""
        return _portable(self._inside)

    def load(self, state: State) -> None:
        """Puts the stream to where another one stood."""
        self._inside = _native(state)


def generator_state(generator: Generator) -> Any:
    """The state of one owned generator, as plain values and tensors."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _python_out(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return _arrays_out(generator.get_state(legacy=False))
    return _arrays_out(dict(generator.bit_generator.state))


def set_generator_state(generator: Generator, state: Any) -> None:
    """The inverse of `generator_state`."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_python_in(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_arrays_in(state))
    else:
        generator.bit_generator.state = _arrays_in(state)


def _signature(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={_signature(value[key])}" for key in sorted(value))
    return value.tobytes().hex() if isinstance(value, np.ndarray) else str(value)


def _portable(native: _Native) -> State:
    return {"python": _python_out(native.python), "numpy": _arrays_out(native.numpy), "torch": native.torch}


def _native(state: State) -> _Native:
    return _Native(_python_in(state["python"]), _arrays_in(state["numpy"]), state["torch"])


def _python_out(state: tuple[Any, ...]) -> State:
    version, words, gauss = state
    return {"version": version, "words": _array_out(np.array(words, dtype=np.uint32)), "gauss": gauss}


def _python_in(state: State) -> tuple[Any, ...]:
    return state["version"], tuple(_array_in(state["words"]).tolist()), state["gauss"]


def _arrays_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays_out(item) for key, item in value.items()}
    return _array_out(value) if isinstance(value, np.ndarray) else value


def _arrays_in(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"dtype", "raw"}:
        return _array_in(value)
    if isinstance(value, dict):
        return {key: _arrays_in(item) for key, item in value.items()}
    return value


def _array_out(array: np.ndarray[Any, Any]) -> State:
    # Bytes, because unsigned dtypes are only half supported by torch before 2.6.
    return {"dtype": array.dtype.name, "raw": torch.from_numpy(array.view(np.uint8).copy())}


def _array_in(state: State) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = state["raw"].numpy().view(state["dtype"]).copy()
    return found
