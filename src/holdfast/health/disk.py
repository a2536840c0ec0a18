"""``disk_low``: too little room for the checkpoints to come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.health import arguments
from holdfast.health.base import Check, Look
from holdfast.health.memory import warned
from holdfast.health.observation import Disk, Fact, Observation
from holdfast.health.writing import written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers
from holdfast.policy.sizes import show_size

_OFTEN = every(seconds=30)


@dataclass(frozen=True, slots=True)
class DiskLow(Check):
    """See `disk_low`."""

    facts: ClassVar[frozenset[Fact]] = frozenset({Fact.DISK})
    checkpoints: int = 2
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.count("disk_low(checkpoints=)", self.checkpoints)
        arguments.cadence("disk_low(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        disk = observation.machine.disk
        if disk is None or (disk.free_bytes is None and disk.free_inodes is None):
            return Look(state, seen=False)
        return warned(observation, state, "; ".join(self._lacking(disk)) or None)

    def _lacking(self, disk: Disk) -> Iterator[str]:
        where = disk.where or "the disk of the store"
        what = "the next checkpoint" if self.checkpoints == 1 else f"the next {self.checkpoints} checkpoints"
        # A full disk is low whatever the next checkpoint needs: not even a record can be written.
        bytes_needed = self.checkpoints * (disk.next_bytes or 0) + disk.once_bytes
        if disk.free_bytes is not None and disk.free_bytes < max(1, bytes_needed):
            shared = f" and {show_size(disk.once_bytes)} that they share" if disk.once_bytes else ""
            needed = f"{what} of {show_size(disk.next_bytes)} each{shared}" if disk.next_bytes else "anything"
            yield f"{show_size(disk.free_bytes)} are free on {where}, too little for {needed}"
        if disk.free_inodes is not None and disk.free_inodes < max(1, self.checkpoints * (disk.next_files or 0)):
            needed = f"{what} of {disk.next_files} files each" if disk.next_files else "anything"
            yield f"{disk.free_inodes} inodes are free on {where}, too few for {needed}"

    def __str__(self) -> str:
        return written("disk_low", self)


def disk_low(checkpoints: int = 2, *, every: Every | None = None) -> DiskLow:
    """The store's disk has not room (bytes or inodes) for so many more checkpoints of the predicted size.

    Looked at before the first step, and then every 30 seconds. Before there is a checkpoint its size is that of the
    state, with what optimizers will hold after a step, and what is frozen counts once. Quotas cannot be seen, and
    storages that are no disk are never low.

    Raises:
        InvalidPolicy: ``checkpoints`` below 1, or no cadence.

    Example:
        >>> from holdfast.health.observation import Machine
        >>> disk = Disk(where="scratch", free_bytes=5 << 30, next_bytes=3 << 30)
        >>> seen = Observation(step=0, seconds=0.0, machine=Machine(disk=disk))
        >>> disk_low().look(seen, None).finding.message
        '5.0 GiB are free on scratch, too little for the next 2 checkpoints of 3.0 GiB each'
    """
    return DiskLow(checkpoints, every or _OFTEN)
