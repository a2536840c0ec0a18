"""Whether it is noticed that the values of the user are others: whatever may be among them."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import pytest
import torch

from holdfast.recovery.steps.sketching import MOST, sketch


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ({"seen": 1}, lambda value: value.update(seen=2)),
        ([[[1]]], lambda value: value[0][0].append(2)),
        (deque([1, 2], maxlen=2), lambda value: value.append(1)),
        ({1, 2}, lambda value: (value.remove(1), value.add(3))),
        (np.zeros(3), lambda value: value.__setitem__(0, 1.0)),
        (np.array(1.0), lambda value: value.__setitem__((), 2.0)),
        (torch.zeros(2), lambda value: value.add_(1)),
        ({"nan": float("nan")}, lambda value: value.update(nan=0.0)),
        ([0] * MOST * 2, lambda value: value.append(0)),
    ],
    ids=["dict", "nested", "full deque", "set", "array", "array without dimensions", "tensor", "NaN", "long list"],
)
def test_what_has_changed_is_noticed_and_what_has_not_is_the_same(value, change) -> None:
    before = sketch({"it": value})
    assert sketch({"it": value}) == before
    change(value)
    assert sketch({"it": value}) != before


@pytest.mark.parametrize(
    "made",
    [lambda n: torch.full((3,), n), lambda n: np.int64(n), lambda n: np.full(3, n), lambda n: Odd()],
    ids=["tensor", "number of NumPy", "array", "object"],
)
def test_what_is_replaced_is_noticed_though_a_new_one_lies_where_the_old_one_lay(made) -> None:
    """Memory that is let go is given out again at once: an address says nothing of what was there."""
    for _ in range(50):
        values = {"it": made(1)}
        before = sketch(values)
        for number in (2, 3):
            values["it"] = made(number)
        assert sketch(values) != before


class Odd:
    """Nothing that a sketch knows."""


def test_a_sketch_keeps_no_tensor_in_memory() -> None:
    values = {"it": torch.zeros(3)}
    gone = weakref.ref(values["it"])
    before = sketch(values)
    values.clear()
    assert gone() is None
    assert sketch(values) != before


def test_numbers_of_numpy_are_equal_by_their_value() -> None:
    assert sketch({"it": np.float32("nan")}) == sketch({"it": np.float32("nan")})
    assert sketch({"it": np.int64(1)}) != sketch({"it": np.int64(2)})


def test_no_more_is_looked_at_than_costs_nothing() -> None:
    looked = []

    class Watched(list):
        def __iter__(self):
            looked.append(len(self))
            return super().__iter__()

    sketch({str(n): [Watched([1] * 32) for _ in range(32)] for n in range(32)})
    assert sum(looked) <= MOST


def test_odd_arrays_and_tensors_are_no_obstacle() -> None:
    with torch.inference_mode():
        made = torch.zeros(2)
    values = {"made": made, "array": np.array(["a"], dtype=object), "none": None}
    assert sketch(values) == sketch(values)
