"""The demo's kills, planned, and what came of them, compared: nothing here starts a process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

SAVE_STEPS = 10
"""The demo saves every so many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill."""

    step: int
    """Not before so many steps are done."""
    in_save: bool
    """In the middle of the next save; otherwise wherever the trainer happens to be."""
    delay: float
    """Seconds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A kill, and how the trainer came back."""

    step: int
    """Completed steps when it was killed."""
    in_save: bool
    """Whether a save was in flight."""
    resumed_at: int
    """Completed steps that it went on from."""
    seconds: float
    """From the start of the new process, torch's import included, to its first completed step."""

    @property
    def lost(self) -> int:
        """Steps that were made twice."""
        return self.step - self.resumed_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One checkpoint, as its record told."""

    logical: int
    stored: int
    stall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a training ended."""

    step: int
    loss: float | None
    """As its record has it."""
    weights: str
    """Digest over names, dtypes, shapes and content of the model."""
    tensors: str
    """The same over model and optimizer; generators that nobody seeded differ between any two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A whole training, with its kills."""

    result: Result
    seconds: float
    saved: Sequence[Saved]
    kills: Sequence[Kill] = field(default=())


def plan(*, kills: int, steps: int, seed: int) -> list[Moment]:
    """Moments spread over the training, every other one inside a save; equal seeds give equal plans.

    The last one leaves room for one more save, so that every kill takes place.

    Example:
        >>> [moment.in_save for moment in plan(kills=3, steps=100, seed=0)]
        [True, False, True]
    """
    chance = random.Random(seed)
    last = max(1, steps - SAVE_STEPS - 2)
    share = last / max(1, kills)
    starts = [int(share * (n + chance.uniform(0.2, 0.8))) for n in range(kills)]
    return [
        Moment(step=max(1, step), in_save=n % 2 == 0, delay=chance.uniform(0, 0.05 if n % 2 == 0 else 0.3))
        for n, step in enumerate(starts)
    ]


def differences(killed: Result, undisturbed: Result) -> list[str]:
    """What is not equal, in words."""
    return [
        f"{name}: {getattr(killed, name)} after the kills, {getattr(undisturbed, name)} undisturbed"
        for name in ("step", "loss", "weights", "tensors")
        if getattr(killed, name) != getattr(undisturbed, name)
    ]
