"""Arguments that cannot be right are refused by name, in Python as in a file; NumPy's numbers are numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny

from holdfast import Checkpointer
from holdfast.errors import InvalidInput
from holdfast.recovery.launching.keys import fit


def made(store: Path, **arguments) -> Checkpointer:
    model, optimizer = tiny()
    return Checkpointer(store, **({"run": "toy", "state": {"model": model, "optimizer": optimizer}} | arguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accumulate", 2.5),
        ("accumulate", "4"),
        ("accumulate", True),
        ("on_preempt", "x"),
        ("progress", "no"),
        ("check_staging", "no"),
        ("progress", None),
        ("peer_timeout", "600"),
        ("peer_timeout", None),
        ("peer_timeout", float("nan")),
        ("grace", "30"),
        ("grace", -1),
        ("grace", 0),
        ("grace", float("inf")),
        ("grace", float("nan")),
        ("signals", None),
        ("signals", "SIGTERM"),
        ("good_after", True),
        ("run", 1.5),
        ("run", True),
        ("run", Path("x")),
        ("prefix", 3),
        ("resume", True),
        ("resume", False),
        ("resume", None),
        ("stage", "x"),
    ],
)
def test_the_constructor_names_the_argument_and_its_value(tmp_path: Path, name: str, value: object) -> None:
    """The first ones were taken in silence; the others ended in a TypeError of the insides, or named another one."""
    with pytest.raises(InvalidInput) as refused:
        made(tmp_path / "s", **{name: value})
    assert str(refused.value).startswith(f"{name}=")
    assert repr(value) in str(refused.value)
    assert "wants" in str(refused.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("store", [None, "", 5])
def test_a_store_that_is_no_path_is_refused_by_the_constructor(store: object) -> None:
    with pytest.raises(InvalidInput, match=r"store=.*: wants the path of a folder"):
        made(store)  # type: ignore[arg-type]


def test_a_name_of_state_is_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"state\[1\]: a name of state is text"):
        made(tmp_path / "s", state={1: torch.nn.Linear(1, 1)})


@pytest.mark.parametrize("value", [-6, 2.5, "6", True, float("inf"), -1.0])
@pytest.mark.parametrize("name", ["total_steps", "epochs"])
def test_an_end_is_an_integer_of_at_least_zero(tmp_path: Path, name: str, value: object) -> None:
    """``epochs=0.25`` trained a whole epoch, and ``total_steps=-6`` ended at once."""
    with made(tmp_path / "s") as ckpt, pytest.raises(InvalidInput) as refused:
        next(ckpt.batches([torch.zeros(1)], **{name: value}))
    assert str(refused.value) == f"{name}={value!r}: wants an integer of at least 0"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", [None, -1, 2.5, "6"])
def test_steps_wants_an_integer_too(tmp_path: Path, value: object) -> None:
    with made(tmp_path / "s") as ckpt, pytest.raises(InvalidInput, match=r"total_steps=.*: wants an integer"):
        next(ckpt.steps(value))


def test_nothing_to_do_is_nothing_wrong(tmp_path: Path) -> None:
    with made(tmp_path / "s", saver="inline") as ckpt:
        assert list(ckpt.steps(0)) == list(ckpt.steps(0.0)) == []
        assert list(ckpt.batches([torch.zeros(1)], total_steps=0)) == []
        assert list(ckpt.batches([torch.zeros(1)], epochs=0)) == []


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    more = {
        "accumulate": np.int64(2),
        "grace": np.float32(30),
        "peer_timeout": np.int64(60),
        "good_after": np.int64(9),
        "saver": "inline",
    }
    with made(tmp_path / "s", state=state, **more) as ckpt:
        for _ in ckpt.batches([torch.zeros(1)] * 4, total_steps=np.int64(3), epochs=np.int32(9)):
            pass
    assert type(ckpt.step) is int
    assert ckpt.last is not None
    assert ckpt.last.step == 3


def test_a_total_may_be_written_as_people_write_large_numbers() -> None:
    assert fit("total_steps", 1e5) == 100_000
