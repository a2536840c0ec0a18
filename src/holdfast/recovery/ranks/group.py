"""The ranks of one training come to the same decision, and no wait for another rank is without a deadline.

Messages go over a gloo group of our own (`wire`), never over the user's groups, and nothing of it is on the path of
saving. All calls belong to one thread, the one that trains.

Example:
    >>> group = Alone()
    >>> group.told(lambda: {"step": 500}, "the checkpoint to load")
    {'step': 500}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import msgspec
import torch.distributed as dist

from holdfast.errors import HoldfastError, InvalidInput, UnsupportedValue, error_of
from holdfast.ids import Buffer
from holdfast.recovery.environment.launcher import LauncherFacts
from holdfast.recovery.ranks.meeting import meet
from holdfast.recovery.ranks.wire import LONGEST, WORDS, Flight, Wire

_LONGEST_TEXT = 100_000
T = TypeVar("T")


class Group(Protocol):
    """All ranks of a training. Every rank makes the same calls in the same order, from the thread that trains.

    ``what`` says for messages what is waited for; it is the same text on all ranks.

    All but `close` raise, and then every later call raises the same at once:

    Raises:
        PeerLost: a rank has ended, or did not answer in time.
        InvalidInput: the ranks are not in the same call.
    """

    @property
    def rank(self) -> int:
        """This one, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def told(self, make: Callable[[], T], what: str, type_: Any = Any) -> T:
        """What rank 0 makes, on all ranks.

        It travels as msgpack and is read as ``type_``, on rank 0 too, so that all ranks have equal values. An error
        of rank 0 is raised on all, as the same class of ours if it is one.
        """

    def agreed(self, do: Callable[[], T], what: str) -> T:
        """What ``do`` gives on this rank, if it succeeds on every one.

        Otherwise this rank's own error, or that of the lowest rank that failed.
        """

    def gathered(self, mine: bytes, what: str) -> list[bytes]:
        """What every rank has to say, in the order of ranks; at most 64 MiB together."""

    def everywhere(self, flags: Buffer, what: str) -> bytes:
        """1 where all ranks have a 1, else 0; they have equally many."""

    def post(self, words: Sequence[int]) -> None:
        """Begins to find the largest of each word over all ranks, and returns; at most ten, one post at a time."""

    def result(self) -> list[int] | None:
        """The largest of each word that was posted; None if none were."""

    def at_the_end(self, mine: str, seconds: float) -> list[str] | None:
        """What every rank has to say at its end, if all come to it within so many seconds; None: not all do. Once.

        Who waits 0 seconds has refused: the others hear it, and all of them the same.
        Beside the order of all other calls: a rank that fails while the others go on must not disturb them. Raises
        nothing.
        """

    def longer(self, seconds: float) -> AbstractContextManager[None]:
        """Within it, every wait may take so many seconds more: what is waited for takes long on some ranks."""

    def close(self) -> None:
        """Ends it without waiting for anybody; idempotent."""


class Alone:
    """A training of one rank: as `Group`, and nothing ever waits."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._posted: list[int] | None = None

    def told(self, make: Callable[[], T], what: str, type_: Any = Any) -> T:  # noqa: D102
        return make()

    def agreed(self, do: Callable[[], T], what: str) -> T:  # noqa: D102
        return do()

    def gathered(self, mine: bytes, what: str) -> list[bytes]:  # noqa: D102
        return [mine]

    def everywhere(self, flags: Buffer, what: str) -> bytes:  # noqa: D102
        return bytes(flags)

    def post(self, words: Sequence[int]) -> None:  # noqa: D102
        assert self._posted is None, "one post at a time"
        self._posted = list(words)

    def result(self) -> list[int] | None:  # noqa: D102
        posted, self._posted = self._posted, None
        return posted

    def at_the_end(self, mine: str, seconds: float) -> list[str] | None:  # noqa: D102
        return [mine]

    def longer(self, seconds: float) -> AbstractContextManager[None]:  # noqa: D102
        return nullcontext()

    def close(self) -> None:  # noqa: D102
        self._posted = None


def open_group(facts: LauncherFacts, timeout: float) -> Group:
    """The ranks of torch.distributed, or this process alone; a wait ends after ``timeout`` seconds.

    Raises:
        InvalidInput: the launcher started several ranks, and torch.distributed is not initialised.
        PeerLost: not all ranks came in time.
    """
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        return Ranks(meet(rank, size, timeout)) if size > 1 else Alone()
    if facts.world > 1:
        raise InvalidInput(
            f"WORLD_SIZE is {facts.world}, and torch.distributed is not initialised: "
            "call torch.distributed.init_process_group() before the first batches(), restore() or save()"
        )
    return Alone()


class Ranks:
    """Several ranks; as `Group`."""

    def __init__(self, wire: Wire) -> None:
        self.rank, self.size = wire.rank, wire.size
        self._wire = wire
        self._posted: tuple[Flight, int] | None = None

    def told(self, make: Callable[[], T], what: str, type_: Any = Any) -> T:  # noqa: D102
        def share() -> tuple[T | None, bytes | None]:
            if self.rank:
                return None, None
            sent = _packed(make())
            return _unpacked(sent, type_), sent

        value, heard = self._round(f"told({what!r})", share)
        return _unpacked(heard, type_) if value is None else value

    def agreed(self, do: Callable[[], T], what: str) -> T:  # noqa: D102
        return self._round(f"agreed({what!r})", lambda: (do(), None))[0]

    def gathered(self, mine: bytes, what: str) -> list[bytes]:  # noqa: D102
        with self._wire.during(call := f"gathered({what!r})"):
            longest = self._wire.reduced(call, length=len(mine)).longest
            if (longest + 8) * self.size > LONGEST:
                raise InvalidInput(f"{what}: {self.size} ranks of up to {longest} bytes; at most {LONGEST} are taken")
            return self._wire.gathered(mine, longest, call)

    def everywhere(self, flags: Buffer, what: str) -> bytes:  # noqa: D102
        with self._wire.during(call := f"everywhere({what!r})"):
            _, _, longest, shortest, _ = self._wire.reduced(call, length=len(flags))
            if longest != shortest or longest > LONGEST:
                raise InvalidInput(f"{what}: {shortest} to {longest} flags; all ranks need as many, at most {LONGEST}")
            return self._wire.smallest(flags, call)

    def post(self, words: Sequence[int]) -> None:  # noqa: D102
        self._wire.check()
        assert self._posted is None, "one post at a time"
        assert len(words) <= WORDS, f"at most {WORDS} words"
        with self._wire.during(call := f"post({len(words)} words)"):
            self._posted = self._wire.begin(call, words=words), len(words)

    def result(self) -> list[int] | None:  # noqa: D102
        self._wire.check()
        if self._posted is None:
            return None
        (flight, count), self._posted = self._posted, None
        with self._wire.during(flight.call):
            return self._wire.landed(flight).words[:count]

    def at_the_end(self, mine: str, seconds: float) -> list[str] | None:  # noqa: D102
        return self._wire.at_the_end(mine, seconds)

    def longer(self, seconds: float) -> AbstractContextManager[None]:  # noqa: D102
        return self._wire.longer(seconds)

    def close(self) -> None:  # noqa: D102
        self._posted = None
        self._wire.close()

    def _round(self, call: str, share: Callable[[], tuple[T, bytes | None]]) -> tuple[T, bytes]:
        """What this rank's share gives, and what was said: by the lowest rank that had something to say."""
        self._wire.check()
        try:
            value, mine = share()
        except Exception as error:
            try:
                self._exchange(call, _confessed(error), failed=True)
            except HoldfastError as lost:
                error.add_note(str(lost))
            raise
        except BaseException as error:
            # Telling would mean waiting; that it has left, the others see from the connection.
            self._wire.leave(call, error)
            raise
        return value, self._exchange(call, mine, failed=False)

    def _exchange(self, call: str, mine: bytes | None, *, failed: bool) -> bytes:
        # The largest voice is that of the lowest rank; the length of what it says comes with it.
        voice = 0 if mine is None else (self.size - self.rank) << 32 | len(mine)
        with self._wire.during(call):
            frame = self._wire.reduced(call, voice=voice, failed=failed)
            if not frame.voice:
                return b""
            speaker = self.size - (frame.voice >> 32)
            said = self._wire.spoken(mine, frame.voice & 0xFFFFFFFF, speaker, call)
        if frame.failed and not failed:
            kind, text = _unpacked(said, tuple[str, str])
            raise error_of(kind, f"rank {speaker}: {text}")
        return said


def _confessed(error: Exception) -> bytes:
    ours = isinstance(error, HoldfastError)
    text = str(error) if ours else f"{type(error).__name__}: {error}"
    return _packed((error.kind if isinstance(error, HoldfastError) else HoldfastError.kind, text[:_LONGEST_TEXT]))


def _packed(value: object) -> bytes:
    try:
        data = msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnsupportedValue(f"what rank 0 tells cannot be sent: {error}") from error
    if len(data) > LONGEST:
        raise UnsupportedValue(f"what rank 0 tells cannot be sent: {len(data)} bytes, and at most {LONGEST} are taken")
    return data


def _unpacked(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise UnsupportedValue(f"what rank 0 tells is no {type_}: {error}") from error
