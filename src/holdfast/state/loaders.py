"""`open_position`: the way to iterate a loader and to find the place again, by what the loader can do."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from holdfast.errors import InvalidInput
from holdfast.state import loaders_samplers as samplers
from holdfast.state.loaders_indices import CursorPosition, IndexPosition, find_sampler
from holdfast.state.loaders_position import LoaderPosition, Progress, Replay
from holdfast.state.loaders_reading import ReadingPosition, SequencePosition
from holdfast.state.loaders_stateful import StatefulPosition

logger = logging.getLogger(__name__)

__all__ = ["LoaderPosition", "Progress", "Replay", "open_position"]

_ENDLESS = (itertools.cycle, itertools.count, itertools.repeat)


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
    if _once_only(loader):
        logger.warning(
            "a %s can be read only once: one epoch, and nothing more, comes of it; give something that can be iterated "
            "again, such as a DataLoader, a list, or an object whose __iter__ starts anew",
            type(loader).__name__,
        )
    return _strategy(loader)(loader)


def _once_only(loader: Any) -> bool:
    """Whether ``iter(loader) is loader``, without asking it: asking some loaders starts them."""
    if isinstance(loader, _ENDLESS) or not hasattr(type(loader), "__next__"):
        return False
    return type(loader).__module__ in ("builtins", "itertools") or type(loader).__iter__ is Iterator.__iter__


def _strategy(loader: Any) -> type[LoaderPosition]:
    inner = samplers.innermost(loader)  # a wrapper may have these methods whether or not they lead anywhere
    if all(callable(getattr(inner, name, None)) for name in ("state_dict", "load_state_dict")):
        return StatefulPosition
    if find_sampler(loader) is not None:
        return CursorPosition
    if samplers.is_map_style(loader):
        return IndexPosition
    return SequencePosition if isinstance(loader, Sequence) else ReadingPosition
