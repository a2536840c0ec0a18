"""The trainer's side of its saver: started, talked to, replaced when it dies, and let go."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

import msgspec

from holdfast.catalog.owners import this_process
from holdfast.errors import SaveFailed
from holdfast.saver import messages, starting
from holdfast.saver.channel import Channel, Closed
from holdfast.saver.control import LENGTH, Control
from holdfast.saver.forks import blind, is_over, stays_with_parent
from holdfast.saver.memory import Slab

logger = logging.getLogger(__name__)

RESTARTS = 3
"""How often a saver is replaced without a save in between; the next one that dies is the last."""
_LAST_WORDS = 2000


@dataclass(slots=True, eq=False, weakref_slot=True)
class SaverProcess:
    """One saver after the other, for one launch. Belongs to one thread.

    Args:
        introduce: makes the first message for a new saver, without slabs and trainer.
        told: what to do with a sentence that somebody should hear.
    """

    introduce: Callable[[], messages.Hello]
    told: Callable[[int, str], None]
    control: Control = field(init=False)
    stacks: IO[bytes] = field(init=False)
    """Where the trainer writes its stacks when the saver wants to see them."""
    slabs: dict[int, Slab] = field(default_factory=dict)
    ready: bool = False
    """Whether the saver that runs now stands by: only then will a later launch wait for it."""
    starts: int = 0
    """How many savers there were."""
    codec: str | None = None
    """What ``codec="auto"`` has turned out to be."""
    _process: subprocess.Popen[bytes] | None = None
    _channel: Channel | None = None
    _errors: IO[bytes] | None = None
    _wake: tuple[int, int] | None = None
    _other: socket.socket | None = None
    """The end of a saver that is just being started."""
    _deaths: int = 0
    _newest: int = 0
    """The newest generation that was committed: another saver tells of it again, and has done nothing for it."""

    def __post_init__(self) -> None:
        self.control = Control(Slab.make(LENGTH))
        self.control.slab.reserve(0, LENGTH)
        self.stacks = os.fdopen(os.memfd_create("holdfast-stacks"), "w+b")
        self._wake = _pipe()
        stays_with_parent(self)

    @property
    def pid(self) -> int | None:
        """Of the saver that runs now."""
        return self._process.pid if self._process else None

    @property
    def wake(self) -> int:
        """A descriptor for `signal.set_wakeup_fd`: the saver hears of a signal while the trainer hangs."""
        assert self._wake is not None
        return self._wake[1]

    def begin(self) -> None:
        """Starts a saver, if none runs and not too many have died; errors as in `start`."""
        if self._channel is None and self._deaths <= RESTARTS:
            self.start()

    def start(self) -> None:
        """Starts a saver and tells it everything; does not wait for it.

        Raises:
            SaveFailed: no process could be started.
        """
        self.ready = False
        self._forget_errors()
        try:
            self._errors = starting.error_file()
            self._start(*Channel.pair())
        except (OSError, Closed) as error:
            raise SaveFailed(f"the saver process could not be started: {error}") from error
        self.starts += 1

    def _start(self, channel: Channel, other: socket.socket) -> None:
        assert self._errors is not None
        try:
            self._other = other
            with other:
                self._process = starting.start(other.fileno(), self._errors)
            self._other, self._channel = None, channel
            self._introduce()
        except BaseException:
            self._other = self._channel = None
            channel.close()
            raise

    def add_slab(self, slot: int, slab: Slab) -> None:
        """A slot gets (other) memory; the old one goes."""
        old = self.slabs.pop(slot, None)
        self.slabs[slot] = slab
        instead = old.serial if old else 0
        self.send(messages.NewSlab(serial=slab.serial, length=slab.length, instead=instead), [slab.descriptor])
        if old is not None:
            old.close()

    def send(self, message: messages.ToSaver, descriptors: list[int] | None = None) -> None:
        """Tells the saver; what is lost with a dead one, the next one is told or finds in the control words."""
        if self._channel is not None:
            with contextlib.suppress(Closed):
                self._channel.send(message, descriptors)

    def received(self) -> list[messages.Message]:
        """What the saver has said since; a dead one is replaced."""
        found: list[messages.Message] = []
        while self._channel is not None:
            assert self._process is not None
            # Not by its socket alone, of which a forked child may hold the other end; first, to miss no last word.
            over = self._process.poll() is not None
            message = self._heard()
            if message is not None:
                found.append(message)
                self._take(message)
            elif over or self._channel is None:
                self._died()
            else:
                self._flush()
                break
        return found

    def _heard(self) -> messages.Message | None:
        """The next thing that the saver has said; without a channel afterwards: it will say nothing more."""
        assert self._channel is not None
        try:
            received = self._channel.receive()
        except Closed:
            self._channel.close()
            self._channel = None
            return None
        return None if received is None else received[0]

    def _take(self, message: messages.Message) -> None:
        self.ready = self.ready or isinstance(message, messages.Ready)
        if isinstance(message, messages.Committed) and message.generation > self._newest:
            self._newest, self._deaths = message.generation, 0
        elif isinstance(message, messages.Chosen):
            self.codec = message.codec

    def _flush(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(Closed):  # it is noticed once everything that it has said is heard
                self._channel.flush()

    def wait(self, seconds: float) -> None:
        """Until the saver has something to say, or has ended."""
        if self._channel is None:
            time.sleep(min(seconds, 0.01))
        else:
            self._channel.wait(seconds)

    def await_ready(self, seconds: float, listen: Callable[[], None]) -> bool:
        """Waits until the saver stands by, or there is none any more; False: it takes longer."""
        end = time.monotonic() + seconds
        while not self.ready and not self.lost and time.monotonic() < end:
            self.wait(0.5)
            listen()
        return self.ready or self.lost

    @property
    def lost(self) -> bool:
        """Whether no saver runs, and none will be started."""
        return self._channel is None

    def close(self, seconds: float, heard: Callable[[messages.Message], None]) -> bool:
        """Waits for the saver to end, for at most so long, and lets it go; it finishes by itself even if not.

        Args:
            seconds: how long.
            heard: what to do with what it says until then.
        """
        try:
            if self._process is None:
                return True
            self.send(messages.Goodbye())
            return self._ended(time.monotonic() + seconds, heard)
        finally:  # also where Ctrl-C ends the wait
            self.forget()

    def _ended(self, end: float, heard: Callable[[messages.Message], None]) -> bool:
        """Listens until the saver has nothing more to say."""
        assert self._process is not None
        with contextlib.suppress(Closed):
            while self._channel is not None and time.monotonic() < end:
                self._flush()
                if self._channel.wait(0.2) and (message := self._channel.receive()) is not None:
                    heard(message[0])
        try:
            self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        if self._process.returncode:
            self.told(logging.ERROR, f"the saver process {self._process.pid} has died at its end: {self._cause()}")
        return True

    def forget(self) -> None:
        """Closes everything that this process has of it."""
        is_over(self)
        if self._channel is not None:
            self._channel.close()
        for slab in (*self.slabs.values(), self.control.slab):
            slab.close()
        for number in self._wake or ():
            os.close(number)
        self._forget_errors()
        self.stacks.close()
        self.slabs, self._channel, self._wake = {}, None, None
        self._let_go()

    def left_behind(self) -> None:
        """See `holdfast.saver.forks`."""
        for slab in (*self.slabs.values(), self.control.slab):
            slab.left_behind()
        files = (self._channel, self._other, self._errors, None if self.stacks.closed else self.stacks)
        mine = [*(self._wake or ()), *(one.fileno() for one in files if one is not None)]
        blind(mine)
        self._channel = self._other = self._process = None

    def _forget_errors(self) -> None:
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _let_go(self) -> None:
        """A saver that still runs is meant to; Python would warn of a child that nobody waited for."""
        if self._process is not None and self._process.returncode is None:
            self._process.returncode = 0
        self._process = None

    def _introduce(self) -> None:
        assert self._channel is not None
        assert self._wake is not None
        owner = this_process()
        first = self.introduce()
        hello = msgspec.structs.replace(
            first,
            codec=self.codec or first.codec,
            trainer=owner.pid,
            trainer_started=owner.started,
            slabs=[(slab.serial, slab.length) for slab in self.slabs.values()],
        )
        pidfd = os.pidfd_open(os.getpid())
        try:
            slabs = [slab.descriptor for slab in self.slabs.values()]
            always = [self.control.slab.descriptor, pidfd, self._wake[0], self.stacks.fileno()]
            self._channel.send(hello, [*always, *slabs])
        finally:
            os.close(pidfd)

    def _died(self) -> None:
        """Says it, and starts another one, which finishes what is sealed."""
        assert self._process is not None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._deaths += 1
        self.told(logging.ERROR, f"the saver process {self._process.pid} has died: {self._cause()}")
        if self._deaths > RESTARTS:
            self.told(logging.ERROR, f"it has died {self._deaths} times without a save: no other one is started")
            return
        try:
            self.start()
            self.told(logging.WARNING, f"another saver ({self.pid}) finishes what was staged")
        except SaveFailed as error:
            self.told(logging.ERROR, str(error))

    def _cause(self) -> str:
        assert self._process is not None
        code = self._process.returncode
        if code is None:
            return "it has closed its socket"
        name = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
        words = ""
        if self._errors is not None:
            self._errors.seek(0)
            words = self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()
        return f"{name}{': ' + words if words else ''}"


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
