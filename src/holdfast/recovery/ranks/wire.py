"""A gloo group of our own, whose first failure is its last.

It shares nothing with the user's groups but the store through which torch.distributed started, and has its own
connection even there. So their backend, their order and their timeouts do not matter.

Whatever is called, its first message is a *frame*: sixteen integers, reduced to their largest. A frame of another
length would end the process (gloo checks lengths where nobody can catch it), and an equal one shows whether all ranks
are in the same call. What follows, and how long it is, is then known to all of them.

When a wait does not end well, a rank says in the store why it gives up, looks there who else does, and names those of
whom nothing is heard. It lets go of its connections before it looks, so that whoever waits for it learns of it at once.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import itertools
import json
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from blake3 import blake3
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BroadcastOptions,
    ReduceOp,
    Store,
)

from holdfast.errors import HoldfastError, InvalidInput, PeerLost
from holdfast.ids import Buffer
from holdfast.recovery.ranks.parting import PartingWords
from holdfast.state.tensors import row_bytes

LONGEST = 64 * 1024 * 1024
"""Bytes of one message."""
WORDS = 10
"""Integers of one post."""

_SLICE = 0.25
"""Seconds after which a wait lets the handlers of signals run."""
_UNHURRIED = timedelta(days=1)
"""Gloo's patience with a post, which may be in flight while rank 0 evaluates for an hour; waiting has a deadline."""
_MANY = 8
"""Ranks that a message names."""
EVERY_RANK = "Checkpointer must be used on every rank, not under `if rank == 0`"

_GLOO = 0

T = TypeVar("T")

_Notes = dict[int, tuple[str, str]]
"""By rank: whether it waits, differs or has left, and the call in which it does, or its reason."""


class Frame(NamedTuple):
    """The largest of each word over all ranks."""

    voice: int
    failed: int
    longest: int
    shortest: int
    words: list[int]


@dataclass(slots=True)
class Flight:
    """A frame under way, into which gloo writes."""

    call: str
    same: int
    ticket: int
    frame: Tensor


class Wire:
    """Our gloo group, whose first failure is its last, and our part of the store."""

    def __init__(self, store: Store, gloo: Any, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size = rank, size
        self._store = store
        # The group, and by ticket the works that are not awaited yet. Each of them keeps the connections open, so
        # nothing else may hold one: a local would live on in the traceback of the error that ends the group.
        self._held: dict[int, Any] = {_GLOO: gloo}
        weakref.finalize(self, _reap, self._held)
        self._tickets = itertools.count(_GLOO + 1)
        self._timeout = timeout
        self._patience = timedelta(seconds=timeout)
        self._asking = asking(timeout)
        self._calls = itertools.count(1)
        self._over: HoldfastError | None = None

    def check(self) -> None:
        """Raises what ended it, if something has."""
        if self._over is not None:
            raise copy.copy(self._over)

    @contextlib.contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Ends it when the body is interrupted: the others could not know how far this rank came in ``call``."""
        self.check()
        try:
            yield
        except HoldfastError:
            raise
        except BaseException as error:
            self.leave(call, error)
            raise

    @contextlib.contextmanager
    def longer(self, seconds: float) -> Iterator[None]:
        """Within it, every wait may take so much longer."""
        before = self._timeout, self._patience
        self._timeout += seconds
        self._patience = timedelta(seconds=self._timeout)
        try:
            yield
        finally:
            self._timeout, self._patience = before

    def reduced(self, call: str, *, voice: int = 0, failed: bool = False, length: int = 0) -> Frame:
        """The frame of this call, the largest of every word."""
        return self.landed(self.begin(call, voice=voice, failed=failed, length=length, patience=self._patience))

    def begin(
        self,
        call: str,
        *,
        voice: int = 0,
        failed: bool = False,
        length: int = 0,
        words: Sequence[int] = (),
        patience: timedelta = _UNHURRIED,
    ) -> Flight:
        """Sends a frame off."""
        call = f"{call}, its call {next(self._calls)}"
        same = int.from_bytes(blake3(call.encode()).digest(length=7), "big")
        fixed = [same, -same, voice, int(failed), length, -length]
        frame = torch.tensor([*fixed, *words, *[0] * (WORDS - len(words))], dtype=torch.int64, device="cpu")
        return Flight(call, same, self._begun(call, "allreduce", [frame], _reduction(ReduceOp.MAX, patience)), frame)

    def landed(self, flight: Flight) -> Frame:
        """The frame, once it is known that all ranks sent it in the same call."""
        self._await(flight.call, flight.ticket)
        same, same_negative, voice, failed, longest, shortest, *words = flight.frame.tolist()
        if (same, same_negative) != (flight.same, -flight.same):
            self._over = _differing(self.rank, flight.call, {})
            self._over = _differing(self.rank, flight.call, self._end("differs", flight.call) or {})
            self.check()
        return Frame(voice, failed, longest, -shortest, words)

    def spoken(self, mine: bytes | None, length: int, speaker: int, call: str) -> bytes:
        """What ``speaker`` says."""
        said = _memory(length, mine if speaker == self.rank else None)
        options = BroadcastOptions()
        options.rootRank, options.timeout = speaker, self._patience
        self._await(call, self._begun(call, "broadcast", [said], options))
        return bytes(row_bytes(said))

    def gathered(self, mine: bytes, longest: int, call: str) -> list[bytes]:
        """What all say, of which the longest has ``longest`` bytes."""
        said = _memory(8 + longest, len(mine).to_bytes(8, "big") + mine)
        heard = [_memory(8 + longest) for _ in range(self.size)]
        options = AllgatherOptions()
        options.timeout = self._patience
        self._await(call, self._begun(call, "allgather", [heard], [said], options))
        return [data[8 : 8 + int.from_bytes(data[:8], "big")] for data in map(bytes, map(row_bytes, heard))]

    def smallest(self, flags: Buffer, call: str) -> bytes:
        """The smallest of each flag; all ranks have as many."""
        if not flags:
            return b""
        shared = _memory(len(flags), flags)
        self._await(call, self._begun(call, "allreduce", [shared], _reduction(ReduceOp.MIN, self._patience)))
        return bytes(row_bytes(shared))

    def leave(self, call: str, error: BaseException) -> None:
        """Ends it because this rank was interrupted."""
        reason = f"rank {self.rank} was interrupted in {call} ({type(error).__name__})"
        self._over = PeerLost(reason)
        self._end("left", reason, look=False)

    def at_the_end(self, mine: str, seconds: float) -> list[str] | None:
        """What all ranks say, as rank 0 has heard it in time, through the store alone; None: not all came, or it fails.

        Whoever gives up first gives up for all, for a clock of each would part them.
        """
        meeting = PartingWords(self._store, self.rank, self.size)
        try:
            return bounded(lambda: meeting.heard(mine, seconds), seconds + 2 * self._asking)
        except (RuntimeError, Late):
            return None

    def close(self) -> None:
        """Ends it; what is still in flight gets a moment."""
        self._over = self._over or InvalidInput("this group of ranks is closed")
        if (thread := _reap(self._held)).is_alive():
            thread.join(self._asking)

    def _begun(self, call: str, name: str, *arguments: object) -> int:
        """Begins a collective, and gives the ticket of its work."""
        self.check()
        ticket = next(self._tickets)
        try:
            self._held[ticket] = getattr(self._held[_GLOO], name)(*arguments)
        except RuntimeError as error:
            raise self._lost(call, f"lost a connection ({first_line(error)})") from None
        return ticket

    def _await(self, call: str, ticket: int) -> None:
        """Returns when a work is done; slice by slice, since no handler of a signal runs while gloo waits."""
        end = time.monotonic() + self._timeout - 2 * self._asking
        try:
            while not self._held[ticket].is_completed():
                if (left := end - time.monotonic()) <= 0:
                    raise self._lost(call, f"got no answer within {self._timeout:g} s")
                # That this slice is over, or that the work has failed: the next lines see which.
                with contextlib.suppress(RuntimeError):
                    self._held[ticket].wait(timedelta(seconds=max(0.001, min(left, _SLICE))))
            self._held[ticket].wait()
        except RuntimeError as error:
            raise self._lost(call, f"lost a connection ({first_line(error)})") from None
        del self._held[ticket]

    def _lost(self, call: str, how: str) -> HoldfastError:
        self._over = PeerLost(f"rank {self.rank} {how} in {call}")
        self._over = _explained(self.rank, self.size, call, how, self._end("waits", call))
        return copy.copy(self._over)

    def _end(self, kind: str, text: str, *, look: bool = True) -> _Notes | None:
        """Says why this rank gives up, lets go of the others, and gives what they say; None: the store is silent."""

        def tell() -> _Notes:
            self._store.set(f"over/{self.rank}", json.dumps([kind, text]))
            _reap(self._held)
            return self._notes(self._asking) if look else {}

        try:
            return bounded(tell, 2 * self._asking)
        except (RuntimeError, Late):
            return None
        finally:
            _reap(self._held)

    def _notes(self, seconds: float) -> _Notes:
        """What other ranks say about why they gave up, as soon as all have, or when the time is over."""
        end = time.monotonic() + seconds
        missing = [rank for rank in range(self.size) if rank != self.rank]
        notes: _Notes = {}
        while missing and time.monotonic() < end:
            for rank in missing:
                if time.monotonic() < end and self._store.check([f"over/{rank}"]):
                    notes[rank] = _note(self._store.get(f"over/{rank}"))
            missing = [rank for rank in missing if rank not in notes]
            time.sleep(0.02)
        return notes


def _explained(rank: int, size: int, call: str, how: str, notes: _Notes | None) -> HoldfastError:
    """The error of a rank whose wait did not end well."""
    if any(kind == "differs" for kind, _ in (notes or {}).values()):
        return _differing(rank, call, notes or {})
    silent = tuple(other for other in range(size) if other != rank and other not in notes) if notes is not None else ()
    said = [text for kind, text in (notes or {}).values() if kind == "left"]
    if silent:
        said.append(f"nothing is heard of {named(silent)}, which ended, hangs, or does not come to this call")
    if notes is None:
        said.append("the store of torch.distributed (kept by rank 0, or by torchrun) does not answer either")
    advice = "end this rank too and start the job again; it goes on from the last committed checkpoint"
    why = "; ".join(said) or "all others have given up as well"
    return PeerLost(f"rank {rank} {how} in {call}: {why}; {advice}", ranks=silent)


def _differing(rank: int, call: str, notes: _Notes) -> InvalidInput:
    others = [f"rank {other} is in {text}" for other, (kind, text) in sorted(notes.items()) if kind != "left"]
    elsewhere = ", ".join(others[:_MANY]) or "another rank is elsewhere"
    return InvalidInput(f"the ranks do not make the same calls: rank {rank} is in {call}, {elsewhere}; {EVERY_RANK}")


class Late(Exception):
    """Something did not return in time."""


def bounded(do: Callable[[], T], seconds: float) -> T:
    """What ``do`` gives, in a thread of its own that is left behind if it takes longer."""
    done: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = do()
        except BaseException as error:
            done.append(_raiser(error))
        else:
            done.append(lambda: value)

    thread = threading.Thread(target=run, name="holdfast-group", daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise Late
    return done.pop()()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again


def _reap(held: dict[int, Any]) -> threading.Thread:
    """Lets go of a gloo group in a thread, since that lasts as long as what it has in flight: for ever, maybe."""
    thread = threading.Thread(target=held.clear, name="holdfast-group-end", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The interpreter is ending and starts no thread any more: what is never let go of is not waited for.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    return thread


def asking(timeout: float) -> float:
    """Seconds at the end of a wait, in which it is found out who is missing."""
    return min(1.0, timeout / 5)


def named(ranks: Sequence[int]) -> str:
    """Ranks for a message."""
    shown = ", ".join(map(str, ranks[:_MANY]))
    more = f" and {len(ranks) - _MANY} more" if len(ranks) > _MANY else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _reduction(how: Any, patience: timedelta) -> AllreduceOptions:
    options = AllreduceOptions()
    options.reduceOp, options.timeout = how, patience
    return options


def _memory(length: int, data: Buffer | None = None) -> Tensor:
    """Memory of torch's own for ``length`` bytes, whatever the default device is; the rest of ``data`` is zero."""
    made = torch.zeros(length, dtype=torch.uint8, device="cpu")
    if data is not None:
        row_bytes(made)[: len(data)] = data
    return made


def _note(data: bytes) -> tuple[str, str]:
    kind, text = json.loads(data)
    return kind, text


def first_line(error: Exception) -> str:
    """What gloo says, without its source file and its advice, which is not ASCII."""
    said = re.sub(r"^\[[^\]]*\] *", "", (str(error).splitlines() or [""])[0])
    return said.partition(". ")[0].encode("ascii", "replace").decode()[:200]
