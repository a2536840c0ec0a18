"""`open_position`: the way to iterate a loader and to find the place again, by what the loader can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.errors import InvalidInput
from holdfast.state import loaders_samplers as samplers
from holdfast.state.loaders_indices import CursorPosition, IndexPosition, find_sampler
from holdfast.state.loaders_position import LoaderPosition, Progress, Replay
from holdfast.state.loaders_reading import ReadingPosition, SequencePosition
from holdfast.state.loaders_stateful import StatefulPosition

__all__ = ["LoaderPosition", "Progress", "Replay", "open_position"]


def open_position(loader: Any) -> LoaderPosition:
    """The position in a loader, at its start; the loader itself is not touched until it is iterated.

    A loader with ``state_dict`` keeps its own position; a `holdfast.Sampler` is sought
    at once; any other map-style torch loader has its indices drawn again, in its own
    order; a list of batches is taken by number; everything else is read again.

    Raises:
        InvalidInput: the loader cannot be iterated.

    Example:
        >>> position = open_position([10, 20, 30])
        >>> next(position.batches()), position.batch
        (10, 1)
        >>> again = open_position([10, 20, 30])
        >>> again.load(position.state())
        >>> list(again.batches()), again.epoch, again.batch
        ([20, 30], 1, 0)
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise InvalidInput(f"{type(loader).__name__} cannot be iterated; give a DataLoader or an iterable of batches")
    return _strategy(loader)(loader)


def _strategy(loader: Any) -> type[LoaderPosition]:
    if callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None)):
        return StatefulPosition
    if find_sampler(loader) is not None:
        return CursorPosition
    if samplers.is_map_style(loader):
        return IndexPosition
    return SequencePosition if isinstance(loader, Sequence) else ReadingPosition
