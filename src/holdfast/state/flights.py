"""A generation that devices may still be copying, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from holdfast.state.comparing import AtBoundary
from holdfast.state.staging import Destination


class Lost(NamedTuple):
    """A generation that is not what it should be."""

    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Split:
    """Which of some tensors are copied when; places in the order given."""

    host: tuple[int, ...]
    eager: Mapping[int, tuple[int, ...]]
    """Per device: before the save returns."""
    lazy: Mapping[int, tuple[int, ...]]
    """Per device: while the training goes on."""


def split(devices: Sequence[int | None], lazy: Iterable[int]) -> Split:
    """Sorts places by device and haste. Pure.

    Example:
        >>> found = split([0, None, 1, 0], lazy={3})
        >>> found.host, found.eager, found.lazy
        ((1,), {0: (0,), 1: (2,)}, {0: (3,), 1: ()})
    """
    late, known = set(lazy), sorted({device for device in devices if device is not None})
    on = {device: [place for place, one in enumerate(devices) if one == device] for device in known}
    return Split(
        host=tuple(place for place, device in enumerate(devices) if device is None),
        eager={device: tuple(place for place in places if place not in late) for device, places in on.items()},
        lazy={device: tuple(place for place in places if place in late) for device, places in on.items()},
    )


@dataclass(slots=True)
class Flight:
    """A generation that devices may still be copying."""

    destination: Destination
    lazy: tuple[int, ...]
    """Places in the layout."""
    sources: tuple[Tensor, ...]
    """Of these. Their memory would be given to somebody else if the program let go of them."""
    events: dict[int, Any] = field(default_factory=dict)
    """The last copy of each device."""
    sealed: Any = None
    """The event of the seal."""
    slot: int = -1
    generation: int = 0
    boundary: AtBoundary | None = None
    """To compare with, before it is sealed."""
    why: str | None = None
    """Why it is not what it should be."""

    @property
    def last(self) -> list[Any]:
        """What has to happen until nothing of it is under way."""
        return list(self.events.values()) if self.sealed is None else [self.sealed]
