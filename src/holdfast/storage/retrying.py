"""A storage that tries again where an error may pass: a lost connection, a server that is too busy, a stale handle.

What is repeated, and why it may be:

- `read`, `size`, `list`, `delete`, `source`, `unfinished` and `sweep_unfinished` change nothing that a repetition would
  change again. A listing goes on after the last name that it gave.
- `create` after a lost answer finds its own object: `ObjectExists`, and the caller reads back whose it is.
- `sink` begins anew. A `write` puts the same bytes into the same place.
- `commit` is asked again, but a sink that had begun to commit is over and refuses; then the first error stands.
  So no descriptor is synced twice: after a failed sync the kernel has marked the lost pages clean, and the second
  one would lie. (On a filesystem a sink that has failed to write refuses as well.)
- `read_into` opens the object again first, for a stale handle stays stale. Objects never change, so it is the same.

Not tried again is what waiting does not mend (no space, no permission, no such object), what proves something
(`Corrupt`), and EIO: a disk has tried for long already, and after a failed sync of a folder a second one would lie, as
above. Those are for whoever decides about saves that fail.

Pauses grow and are drawn at random between nothing and their full length, so that a thousand trainers which were
cut off together do not come back together. Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture
Blog, 2015 ("full jitter").
"""

from __future__ import annotations

import errno
import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from holdfast.errors import InvalidInput
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.passing import PassingSink, PassingSource
from holdfast.storage.protocol import Listed, Sink, Source, Storage

T = TypeVar("T")

log = logging.getLogger(__name__)

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "ENOBUFS"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ESTALE", "EREMOTEIO", "ENOTCONN", "ESHUTDOWN"),  # NFS; FUSE and Lustre after their server went away
    )
    if hasattr(errno, name)
)

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_SERVER_MAY_RECOVER = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often, how long and how densely one operation is tried.

    Raises:
        InvalidInput: less than one attempt, or a negative time.
    """

    attempts: int = 5
    """The first one included."""
    seconds: float = 60.0
    """No attempt begins later than this after the first one began; one that hangs is not cut short."""
    first_pause: float = 0.2
    """The longest pause before the second attempt; it doubles with each."""
    longest_pause: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.seconds, self.first_pause, self.longest_pause) < 0:
            raise InvalidInput(f"{self} makes no sense: it wants at least one attempt, and no negative times")

    def pause(self, failures: int) -> float:
        """The longest pause, in seconds, after so many failures."""
        return float(min(self.longest_pause, self.first_pause * 2 ** min(failures - 1, 60)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Time and chance, replaceable so that tests need no real ones. Thread-safe."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # Not the module's own functions: a draw from the training's generator would change what it does after a resume.
    draw: Callable[[], float] = random.SystemRandom().random
    """A number from 0 up to 1."""


def may_pass(error: Exception) -> bool:
    """Whether the same operation may well succeed a moment later.

    Knows the errors of this library and of the operating system by their ``errno``, and those of obstore by what they
    say: it has no class for "too busy", and tries again itself unless told otherwise.

    Example:
        >>> from holdfast.errors import StorageFull, StorageUnavailable
        >>> may_pass(StorageUnavailable("no answer", errno=errno.ETIMEDOUT)), may_pass(StorageFull("no space"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno in _PASSING or isinstance(error, TimeoutError | ConnectionError)
    # Whoever uses it has imported it, and nobody else should.
    generic = getattr(sys.modules.get("obstore.exceptions"), "GenericError", None)
    if generic is None or not isinstance(error, generic):
        return False
    status = _STATUS.search(str(error))
    return int(status[1]) in _SERVER_MAY_RECOVER if status else "HTTP error" in str(error)


class RetryingStorage:
    """A `Storage` that passes everything to ``inner``, and again where that may help. Thread-safe.

    Every repetition is logged as a warning. The last error is raised as it came.

    Example:
        >>> from holdfast.errors import StorageUnavailable
        >>> from holdfast.storage.faults import Fail, FaultyStorage, When
        >>> from holdfast.storage.memory import memory_storage
        >>> down = StorageUnavailable("no answer", errno=errno.ETIMEDOUT)
        >>> flaky = FaultyStorage(memory_storage(), Fail(error=down, when=When(times=2)))
        >>> storage = RetryingStorage(flaky, Patience(first_pause=0.001))
        >>> storage.create(ObjectName("a"), b"abc")
        >>> storage.read(ObjectName("a"))
        b'abc'
    """

    def __init__(self, inner: Storage, patience: Patience | None = None, chance: Chance | None = None) -> None:
        self._inner = inner
        self._patience = patience or Patience()
        self._chance = chance or Chance()

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._inner.url

    def create(self, name: ObjectName, data: Buffer) -> None:
        """See `Storage.create`."""
        self.again("create", name, lambda: self._inner.create(name, data))

    def read(self, name: ObjectName) -> bytes:
        """See `Storage.read`."""
        return self.again("read", name, lambda: self._inner.read(name))

    def size(self, name: ObjectName) -> int:
        """See `Storage.size`."""
        return self.again("look at", name, lambda: self._inner.size(name))

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Storage.list`."""
        begun = self.again("list", prefix, lambda: self._inner.list(prefix))
        return self._listed(prefix, begun)

    def delete(self, names: Iterable[ObjectName]) -> None:
        """See `Storage.delete`."""
        wanted = [*names]
        self.again("delete", ", ".join(wanted[:3]), lambda: self._inner.delete(wanted))

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """See `Storage.sink`."""
        return _RetryingSink(self, name, self.again("begin", name, lambda: self._inner.sink(name, reserve)))

    def source(self, name: ObjectName) -> Source:
        """See `Storage.source`."""

        def reopen() -> Source:
            return self._inner.source(name)

        return _RetryingSource(self, name, self.again("open", name, reopen), reopen)

    def sweep_unfinished(self) -> int:
        """See `Storage.sweep_unfinished`; of repeated sweeps, what the last one freed."""
        return self.again("clean up", "", self._inner.sweep_unfinished)

    def unfinished(self) -> int:
        """See `Storage.unfinished`."""
        return self.again("look for leftovers in", "", self._inner.unfinished)

    def again(self, verb: str, name: str, call: Callable[[], T]) -> T:
        """What ``call`` returns in the end.

        Raises:
            Exception: what ``call`` raised last, if it may not pass or the patience is at its end.
        """
        return self._tries(verb, name).run(call)

    def _tries(self, verb: str, name: str) -> _Tries:
        return _Tries(f"{verb} {name or 'everything'} in {self.url}", self._patience, self._chance)

    def _listed(self, prefix: str, begun: Iterator[Listed]) -> Iterator[Listed]:
        found: Iterator[Listed] | None = begun
        last = ""

        def following() -> Listed | None:
            nonlocal found
            if found is None:
                found = (item for item in self._inner.list(prefix) if item.name > last)
            try:
                return next(found, None)
            except Exception:
                # An iterator that has failed is over: asked again it would say that there is nothing more.
                found = None
                raise

        tries = self._tries("list", prefix)
        while (item := tries.run(following)) is not None:
            last = item.name
            yield item


@runtime_checkable
class _NamesFolders(Protocol):
    def folders(self, prefix: str) -> tuple[str, ...]: ...


class _RetryingFolders(RetryingStorage):
    """Over a storage that can name folders without listing what is in them."""

    def __init__(self, inner: Storage, named: _NamesFolders, patience: Patience | None, chance: Chance | None) -> None:
        super().__init__(inner, patience, chance)
        self._named = named

    def folders(self, prefix: str) -> tuple[str, ...]:
        """The names of the folders right below ``prefix``, sorted."""
        return self.again("list", prefix, lambda: self._named.folders(prefix))


def retrying(inner: Storage, patience: Patience | None = None, chance: Chance | None = None) -> RetryingStorage:
    """A `RetryingStorage` that can do what ``inner`` can: naming folders, too, where it has that."""
    if isinstance(inner, _NamesFolders):
        return _RetryingFolders(inner, inner, patience, chance)
    return RetryingStorage(inner, patience, chance)


class _Tries:
    """The attempts at one operation, or at the parts of one listing."""

    def __init__(self, doing: str, patience: Patience, chance: Chance) -> None:
        self._doing = doing
        self._patience = patience
        self._chance = chance
        self._failures = 0

    def run(self, call: Callable[[], T]) -> T:
        began = self._chance.now()
        while True:
            try:
                return call()
            except Exception as error:
                if not may_pass(error) or not self._waited(error, began):
                    raise

    def _waited(self, error: Exception, began: float) -> bool:
        """Wait for the next attempt; False if there is none."""
        self._failures += 1
        pause = self._chance.draw() * self._patience.pause(self._failures)
        spent = self._chance.now() - began
        if self._failures >= self._patience.attempts or spent + pause > self._patience.seconds:
            error.add_note(f"given up at attempt {self._failures}, {spent:.1f} s after the first")
            return False
        log.warning(
            "cannot %s: %s; attempt %d of %d follows in %.1f s",
            *(self._doing, error, self._failures + 1, self._patience.attempts, pause),
        )
        self._chance.sleep(pause)
        return True


class _RetryingSink(PassingSink):
    def __init__(self, storage: RetryingStorage, name: ObjectName, inner: Sink) -> None:
        super().__init__(inner)
        self._storage, self._name = storage, name

    def write(self, offset: int, data: Buffer) -> None:
        self._storage.again("write", self._name, lambda: self._inner.write(offset, data))

    def commit(self, length: int) -> None:
        failed: list[Exception] = []

        def call() -> Exception | None:
            try:
                self._inner.commit(length)
            except InvalidInput:
                # After a failure this means that the sink is over; what that failure says is what is known.
                if not failed:
                    raise
                return failed[0]
            except Exception as error:
                failed.append(error)
                raise
            return None

        if (stands := self._storage.again("commit", self._name, call)) is not None:
            raise stands

    def abort(self) -> None:
        self._inner.abort()


class _RetryingSource(PassingSource):
    def __init__(self, storage: RetryingStorage, name: ObjectName, inner: Source, reopen: Callable[[], Source]) -> None:
        super().__init__(inner)
        self._storage, self._name, self._reopen = storage, name, reopen
        self._lock = threading.Lock()
        self._opened = [inner]
        self._closed = False

    def read_into(self, offset: int, into: memoryview) -> None:
        failed: Source | None = None

        def call() -> None:
            nonlocal failed
            source = failed = self._other_than(failed)
            source.read_into(offset, into)

        self._storage.again("read", self._name, call)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for source in self._opened:
                source.close()

    def _other_than(self, failed: Source | None) -> Source:
        with self._lock:
            if self._inner is failed and not self._closed:
                self._inner = self._reopen()
                # The old one stays open until the end: other threads may be reading from it.
                self._opened.append(self._inner)
            return self._inner
