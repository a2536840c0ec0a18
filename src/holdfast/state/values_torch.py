"""Codecs for the small values of torch and NumPy, and the states of random generators.

Importing this module registers them with `holdfast.values`. Tensors and arrays
are no values: state/tree.py puts them beside the tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from holdfast import values
from holdfast.errors import StateMismatch, UnsupportedValue

GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
"""What `generator_state` knows."""

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_WORDS = 625
"""Of the Mersenne Twister of Python: 624 words and a position."""


def generator_state(generator: Any) -> dict[str, Any]:
    """The state of a random generator as plain values, with its ``type``.

    Raises:
        UnsupportedValue: a generator without state (``SystemRandom``) or of an unknown version.
    """
    if isinstance(generator, torch.Generator):
        state: Any = tensor_bytes(generator.get_state())
        return {"type": f"torch.Generator on {generator.device.type}", "state": state}
    if isinstance(generator, random.Random):
        return {"type": "random.Random", "state": python_state(generator)}
    if isinstance(generator, np.random.RandomState):
        return {"type": "numpy.random.RandomState", "state": without_arrays(generator.get_state(legacy=False))}
    bits = getattr(generator, "bit_generator", generator)
    kind = "Generator" if isinstance(generator, np.random.Generator) else "BitGenerator"
    return {"type": f"numpy.random.{kind} of {type(bits).__name__}", "state": without_arrays(bits.state)}


def set_generator_state(generator: Any, stored: dict[str, Any]) -> None:
    """Puts a generator into a state that `generator_state` gave.

    Raises:
        StateMismatch: of another type, algorithm or device.
    """
    now = generator_state(generator)["type"]
    if now != stored["type"]:
        raise StateMismatch(f"the state of a {stored['type']} cannot be put into a {now}")
    state = stored["state"]
    if isinstance(generator, torch.Generator):
        generator.set_state(bytes_tensor(state))
    elif isinstance(generator, random.Random):
        set_python_state(generator, state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(with_arrays(state))
    else:
        getattr(generator, "bit_generator", generator).state = with_arrays(state)


def python_state(generator: Any) -> dict[str, Any]:
    """The state of a Python generator, or of the module ``random`` itself, with its words packed into bytes."""
    version, words, gauss = _python_getstate(generator)
    if version != 3 or len(words) != _WORDS:
        raise UnsupportedValue(f"{type(generator).__name__} has a state of version {version}; only version 3 is known")
    return {"words": np.asarray(words, dtype="<u4").tobytes(), "gauss": gauss}


def set_python_state(generator: Any, stored: dict[str, Any]) -> None:
    """The inverse of `python_state`."""
    words = tuple(int(word) for word in np.frombuffer(stored["words"], dtype="<u4"))
    generator.setstate((3, words, stored["gauss"]))


def tensor_bytes(state: torch.Tensor) -> bytes:
    """The bytes of a generator's state tensor."""
    return state.cpu().numpy().tobytes()


def bytes_tensor(state: bytes) -> torch.Tensor:
    """The inverse of `tensor_bytes`."""
    return torch.frombuffer(bytearray(state), dtype=torch.uint8).clone()


def without_arrays(value: Any) -> Any:
    """NumPy's state dictionaries with their (small) arrays as bytes."""
    if isinstance(value, dict):
        return {key: without_arrays(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "bytes": value.tobytes()}
    return value.item() if isinstance(value, np.generic) else value


def with_arrays(value: Any) -> Any:
    """The inverse of `without_arrays`."""
    if isinstance(value, dict) and set(value) == {"dtype", "bytes"}:
        return np.frombuffer(value["bytes"], dtype=value["dtype"]).copy()
    if isinstance(value, dict):
        return {key: with_arrays(item) for key, item in value.items()}
    return value


def _python_getstate(generator: Any) -> Any:
    try:
        return generator.getstate()
    except NotImplementedError as error:
        raise UnsupportedValue(f"{type(generator).__name__} has no state to save: {error}") from None


def _new_torch(stored: dict[str, Any]) -> torch.Generator:
    generator = torch.Generator(device=stored["type"].rpartition(" ")[2])
    set_generator_state(generator, stored)
    return generator


def _new_numpy(stored: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(_bit_generator(stored["state"]["bit_generator"]))
    set_generator_state(generator, stored)
    return generator


def _new_bits(stored: dict[str, Any]) -> np.random.BitGenerator:
    bits = _bit_generator(stored["state"]["bit_generator"])
    set_generator_state(bits, stored)
    return bits


def _bit_generator(name: str) -> np.random.BitGenerator:
    # From a list: the name comes from a file.
    if name not in _BIT_GENERATORS:
        raise ValueError(f"{name!r} is no bit generator of NumPy")
    return getattr(np.random, name)(0)  # type: ignore[no-any-return]


def _filled(make: Callable[[], Any]) -> Callable[[dict[str, Any]], Any]:
    def new(stored: dict[str, Any]) -> Any:
        generator = make()
        set_generator_state(generator, stored)
        return generator

    return new


def _torch_constant(type_: type) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        found = getattr(torch, name, None)
        if not isinstance(found, type_):
            raise ValueError(f"torch has no {type_.__name__} {name!r}")
        return found

    return find


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _register_torch() -> None:
    for type_ in (torch.dtype, torch.layout, torch.memory_format):
        values.register(
            type_, f"torch.{type_.__name__}", lambda v: str(v).removeprefix("torch."), _torch_constant(type_)
        )
    values.register(torch.device, "torch.device", str, _device)
    values.register(torch.Size, "torch.size", list, torch.Size)


def _register_generators() -> None:
    values.register(torch.Generator, "torch.generator", generator_state, _new_torch)
    values.register(np.random.Generator, "numpy.generator", generator_state, _new_numpy)
    values.register(
        np.random.RandomState, "numpy.randomstate", generator_state, _filled(lambda: np.random.RandomState(0))
    )
    values.register(random.Random, "random.random", generator_state, _filled(lambda: random.Random(0)))
    for name in _BIT_GENERATORS:
        values.register(getattr(np.random, name), f"numpy.{name.lower()}", generator_state, _new_bits)


def _register_scalars() -> None:
    names: set[str] = set()
    for type_ in dict.fromkeys(np.sctypeDict.values()):
        dtype = np.dtype(type_)
        # Extended precision differs by machine; times, objects and records have units and fields of their own.
        if dtype.kind not in "biufcSU" or type_ in (np.longdouble, np.clongdouble):
            continue
        # Two C types of one size are two scalar types in NumPy.
        name = dtype.name if dtype.name not in names else type_.__name__
        names.add(name)
        values.register(type_, f"numpy.{name}", lambda v: v.item(), type_)


_register_torch()
_register_generators()
_register_scalars()
