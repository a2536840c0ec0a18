"""What trainer and saver tell each other, as msgpack over a socket that keeps messages apart.

Nothing that must not be lost is in a message only: what is staged is in shared
memory, what is saved is in the store. Every message is short.
"""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.errors import Corrupt
from holdfast.records import Target


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Hello(_Message, frozen=True, kw_only=True):
    """The first message to a saver: whom it works for.

    Comes with descriptors: the control slab, a pidfd of the trainer, where its signals arrive, where it writes stacks.
    """

    url: str
    run: int
    launch: int
    rank: int = 0
    trainer: int = 0
    """Its process id."""
    trainer_started: str = ""
    keep: str
    """The retention policy, as text."""
    codec: str
    nice: int
    on_full: str
    visibility: float = 0.0
    signals: tuple[int, ...] = (15, 2, 10)
    """What asks the trainer to stop: of what comes with its signals these count."""
    watch: int = 0
    """The signal upon which the trainer writes its stacks; 0: it is not watched."""
    slabs: list[tuple[int, int]] = []
    """Serial number and length of the slabs whose descriptors follow the others."""


class NewSlab(_Message, frozen=True, kw_only=True):
    """There is more memory; comes with its descriptor."""

    serial: int
    length: int
    instead: int
    """The slab that is of no use any more; 0: none."""


class Staged(_Message, frozen=True, kw_only=True):
    """A doorbell: a generation was sealed, or will be by its stream."""


class Hurry(_Message, frozen=True, kw_only=True):
    """The trainer waits for the saver (True), or does no more."""

    on: bool


class AddMetrics(_Message, frozen=True, kw_only=True):
    """Metrics of a record that may still be in the making."""

    target: Target
    metrics: bytes
    """Tagged JSON."""
    number: int = 0
    """For `Noted`; 0: nobody waits for it."""
    after: int = 0
    """The generation that has to be done first, also if its stream has not sealed it yet."""


class AddTag(_Message, frozen=True, kw_only=True):
    """A name for a record that may still be in the making."""

    target: Target
    tag: str
    number: int = 0
    """For `Noted`; 0: nobody waits for it."""
    after: int = 0
    """As for metrics."""


class AddMark(_Message, frozen=True, kw_only=True):
    """A fact about a record that may still be in the making."""

    target: Target
    kind: str
    """A `holdfast.records.MarkKind`."""
    number: int = 0
    """For `Noted`; 0: nobody waits for it."""
    after: int = 0
    """As for metrics."""


class FreeSpace(_Message, frozen=True, kw_only=True):
    """Remove what retention allows to remove, now."""


class Rescue(_Message, frozen=True, kw_only=True):
    """Save the newest generation that is kept in reserve."""

    kind: str
    reason: str


class Goodbye(_Message, frozen=True, kw_only=True):
    """Nothing more will be staged: finish and end."""


class Ready(_Message, frozen=True, kw_only=True):
    """The saver stands by."""

    pid: int


class Committed(_Message, frozen=True, kw_only=True):
    """A record is durable."""

    generation: int
    record: bytes
    """Sealed; empty if it is too long for a message: then it is read in the store."""


class GivenUp(_Message, frozen=True, kw_only=True):
    """A save has failed for good."""

    generation: int
    kind: str
    """Code of the error, as in `holdfast.errors`."""
    text: str
    restage: bool = False
    """Whether frozen tensors have to be staged again."""
    on_purpose: bool = False
    """Whether it was a reserve that not all ranks have saved: no failure."""


class Followed(_Message, frozen=True, kw_only=True):
    """What follows a save was done, or not."""

    generation: int
    damaged: list[str] = []
    """Packs that did not survive; not empty: the record is no good."""
    deleted: list[str] = []
    """Ids of the records that retention has removed."""
    restage: bool = False


class Noted(_Message, frozen=True, kw_only=True):
    """A name or metrics that were asked for are in the store, or cannot be; the next saver need not be asked again."""

    number: int


class Progress(_Message, frozen=True, kw_only=True):
    """How far a save is; may be left out when nobody listens."""

    generation: int
    done: int
    total: int


class Chosen(_Message, frozen=True, kw_only=True):
    """``codec="auto"`` is decided, for the whole launch: a saver that is started later need not try again."""

    codec: str


class Alive(_Message, frozen=True, kw_only=True):
    """What follows a save gets on; may be left out when nobody listens."""


class Said(_Message, frozen=True, kw_only=True):
    """A line for the trainer's log."""

    level: int
    text: str


Aside = AddMetrics | AddTag | AddMark
ToSaver = Hello | NewSlab | Staged | Hurry | Aside | FreeSpace | Rescue | Goodbye
ToTrainer = Ready | Committed | GivenUp | Followed | Noted | Progress | Chosen | Alive | Said
Message = ToSaver | ToTrainer

_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """One message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """The inverse of `encode`.

    Raises:
        Corrupt: something else was sent.
    """
    try:
        found: Message = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a message between trainer and saver is malformed: {error}") from error
    return found
