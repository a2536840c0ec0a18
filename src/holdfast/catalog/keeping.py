"""A storage through which the packs of one folder cannot be deleted.

A shared pack is visible to other runs from the moment it is committed, and a
repacked one to saves and other repacks, so whoever wrote it must not take it
back when he fails later. A sweep will.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from holdfast.ids import Buffer, ObjectName
from holdfast.storage.protocol import Listed, Sink, Source, Storage


@dataclass(frozen=True, slots=True)
class Keeps:
    """As ``inner``, except that `delete` leaves ``folder`` alone."""

    inner: Storage
    folder: str
    """With ``/`` at its end."""

    @property
    def url(self) -> str:
        """As ``inner``."""
        return self.inner.url

    def create(self, name: ObjectName, data: Buffer) -> None:
        """As ``inner``."""
        self.inner.create(name, data)

    def read(self, name: ObjectName) -> bytes:
        """As ``inner``."""
        return self.inner.read(name)

    def size(self, name: ObjectName) -> int:
        """As ``inner``."""
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        """As ``inner``."""
        return self.inner.list(prefix)

    def delete(self, names: Iterable[ObjectName]) -> None:
        """Deletes those of ``names`` that do not lie in it."""
        self.inner.delete([name for name in names if not name.startswith(self.folder)])

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """As ``inner``."""
        return self.inner.sink(name, reserve)

    def source(self, name: ObjectName) -> Source:
        """As ``inner``."""
        return self.inner.source(name)

    def sweep_unfinished(self) -> int:
        """As ``inner``."""
        return self.inner.sweep_unfinished()

    def unfinished(self) -> int:
        """As ``inner``."""
        return self.inner.unfinished()
