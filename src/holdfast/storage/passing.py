"""What wrappers of sinks and sources have in common: all that they do not change goes through."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from holdfast.storage.protocol import Sink, Source


class PassingSink:
    """The part of a `Sink` that only asks; a wrapper adds the verbs."""

    def __init__(self, inner: Sink) -> None:
        self._inner = inner

    @property
    def alignment(self) -> int:
        """See `Sink.alignment`."""
        return self._inner.alignment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._inner.__exit__(type_, e, tb)


class PassingSource:
    """The part of a `Source` that only asks or closes; a wrapper adds the reading."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner

    @property
    def size(self) -> int:
        """See `Source.size`."""
        return self._inner.size

    @property
    def alignment(self) -> int:
        """See `Source.alignment`."""
        return self._inner.alignment

    def at_hand(self, offset: int, length: int) -> bool:
        """See `Source.at_hand`."""
        return self._inner.at_hand(offset, length)

    def close(self) -> None:
        """See `Source.close`."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
