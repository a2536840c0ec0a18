"""How much memory staging takes, decided once and said before the first save. Pure.

Example:
    >>> plan = plan_memory(trained=3 << 30, frozen=0, budget=8 << 30, wanted=2)
    >>> plan.slots, plan.peak >> 30
    (2, 6)
    >>> plan_memory(trained=3 << 30, frozen=0, budget=4 << 30, wanted=2).slots
    1
    >>> plan_memory(trained=3 << 30, frozen=0, budget=2 << 30, wanted=2).slots
    0
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What staging will take."""

    slots: int
    """Generations that fit: 2 or more let the next one be staged while one is saved; 1 makes it wait; 0: none fits."""
    peak: int
    """Bytes at most."""
    budget: int
    trained: int
    frozen: int

    def __str__(self) -> str:
        if not self.slots:
            need = _gib(self.trained + self.frozen)
            return (
                f"the state ({need}) does not fit into the {_gib(self.budget)} for staging: saves are made in the "
                "training loop, piece by piece, and survive nothing before they are durable; give a larger ram_budget="
            )
        how = f"{self.slots} x {_gib(self.trained)}" if self.trained else "nothing"
        rest = f", and {_gib(self.frozen)} while frozen tensors are staged" if self.frozen else ""
        wait = "; a save waits until the one before is durable" if self.slots == 1 else ""
        return f"staging takes {_gib(self.peak)} of memory at most ({how}{rest}) of {_gib(self.budget)} allowed{wait}"


def plan_memory(*, trained: int, frozen: int, budget: int, wanted: int) -> MemoryPlan:
    """As many generations as fit, up to ``wanted``; frozen tensors are staged once at a time, and given back.

    Args:
        trained: bytes of what is staged at every save.
        frozen: bytes of what is staged now and then.
        budget: bytes that may be taken.
        wanted: generations, from 1.
    """
    slots = next((count for count in range(wanted, 0, -1) if count * trained + frozen <= budget), 0)
    return MemoryPlan(
        slots=slots, peak=slots * trained + (frozen if slots else 0), budget=budget, trained=trained, frozen=frozen
    )


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 27 else f"{count / (1 << 20):.1f} MiB"
