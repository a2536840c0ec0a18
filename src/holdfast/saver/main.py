"""The saver process: one per trainer, started by it, and able to outlive it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial

from holdfast.catalog.holds import find_saves
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.launches import Launch
from holdfast.catalog.owners import Liveness
from holdfast.catalog.standing import Standing, find_standing, saver_is_dead, stand
from holdfast.catalog.store import open_store
from holdfast.errors import StorageError
from holdfast.packs.codec import Codec
from holdfast.packs.parallel import Pace
from holdfast.policy import parse
from holdfast.saver import messages
from holdfast.saver.ballast import with_ballast
from holdfast.saver.beats import Beats
from holdfast.saver.channel import Channel, Closed, close_all
from holdfast.saver.control import LENGTH, Control
from holdfast.saver.following import Following
from holdfast.saver.memory import Slab
from holdfast.saver.orders import Orders
from holdfast.saver.readback import quarantined_packs
from holdfast.saver.rereading import Rereading
from holdfast.saver.saving import Saving
from holdfast.saver.watching import Watching
from holdfast.saver.worker import Worker

FORGOTTEN_SECONDS = 600.0
"""How long after the end of its socket a trainer that is still there counts as one that ends: drivers take a while."""
HELLO_SECONDS = 30.0


def main(descriptor: int) -> None:
    """Serves the trainer at the other end of a socket until there is nothing left to do."""
    channel = Channel(socket.socket(fileno=descriptor))
    if not channel.wait(HELLO_SECONDS):
        return
    received = channel.receive()
    if received is None or not isinstance(received[0], messages.Hello):
        return
    hello, descriptors = received[0], received[1]
    orders = Orders()
    signals = _mind_signals(hello.signals)
    logging.getLogger("holdfast").addHandler(_Forwarding(channel))
    control_fd, pidfd, wake, stacks, *slab_fds = descriptors
    slabs = {serial: Slab(fd, length, serial) for (serial, length), fd in zip(hello.slabs, slab_fds, strict=True)}
    listener = _Listener(channel, orders, slabs, pidfd=pidfd, wake=wake, signals=signals, watched=set(hello.signals))
    control = Control(Slab(control_fd, LENGTH))
    worker = _worker(hello, channel, orders, control, slabs)
    threading.excepthook = _end_with_thread
    threading.Thread(target=listener.run, name="holdfast-listen", daemon=True).start()
    watching = _watching(hello, worker, control, orders, pidfd, stacks)
    if hello.watch:
        watching.start()
    worker.run()
    watching.end()


def _watching(
    hello: messages.Hello, worker: Worker, control: Control, orders: Orders, pidfd: int, stacks: int
) -> Watching:
    return Watching(
        beats=Beats(control.slab),
        pid=hello.trainer,
        pidfd=pidfd,
        number=hello.watch,
        stacks=stacks,
        rank=hello.rank,
        journal=worker.journal,
        say=worker.say,
        gone=lambda: orders.orphaned,
    )


def _end_with_thread(args: threading.ExceptHookArgs) -> None:
    """A saver that cannot hear its trainer would outlive it for ever: it ends, and another one begins."""
    traceback.print_exception(args.exc_value)
    os._exit(1)


def _worker(
    hello: messages.Hello, channel: Channel, orders: Orders, control: Control, slabs: dict[int, Slab]
) -> Worker:
    store = open_store(hello.url, visibility=hello.visibility)
    launch, ballast = with_ballast(Launch(store.run(hello.run), hello.launch))
    run, store = launch.run, launch.run.store
    pace = Pace(hello.nice, orders.hurry)
    journal = JournalWriter(store, run.number, f"saver-{hello.launch}-{hello.rank}-{os.getpid()}")
    return Worker(
        saving=Saving(
            launch=launch,
            codec=Codec.RAW if hello.codec == "auto" else Codec(hello.codec),
            undecided=hello.codec == "auto",
            chosen=_chosen(channel, journal),
            ballast=ballast,
            pace=pace,
            damaged=quarantined_packs(store),
        ),
        following=Following(run=run, keep=parse(hello.keep), rank=hello.rank, pace=pace),
        rereading=Rereading(store=store, pace=pace),
        journal=journal,
        control=control,
        slabs=slabs,
        channel=channel,
        orders=orders,
        take_over=partial(_take_over, launch),
        pause_when_full=hello.on_full == "pause",
    )


def _chosen(channel: Channel, journal: JournalWriter) -> Callable[[Codec, str], None]:
    def chosen(codec: Codec, text: str) -> None:
        journal.add("codec", text)
        with contextlib.suppress(Closed):
            channel.send(messages.Chosen(codec=str(codec)))
            channel.send(messages.Said(level=logging.INFO, text=text))

    return chosen


def _take_over(launch: Launch) -> Standing:
    """Stands in for the launch, and removes what a saver left that was killed before: its work is done again here."""
    standing = stand(launch)
    try:
        _clear(launch, standing)
    except BaseException:
        with contextlib.suppress(StorageError):
            standing.end()  # the next try makes another one
        raise
    return standing


def _clear(launch: Launch, standing: Standing) -> None:
    store, run = launch.run.store, launch.run.number
    for other in find_standing(store, run):
        if other.launch == launch.number and other.name != standing.name and saver_is_dead(other):
            other.end()
    for found in find_saves(store, run):
        mine = found.publishes is not None and found.publishes.order.launch == launch.number
        if mine and found.liveness is Liveness.DEAD:
            store.storage.delete([found.name])


def _mind_signals(watched: Iterable[int]) -> int:
    """Signals to the whole job must not end what outlives the trainer; they say that time is short.

    Args:
        watched: what else asks the trainer to stop.

    Returns:
        A descriptor that can be read when one has come. Nothing is done in the handler: it runs in the middle of
        anything, the setting of an event too, and would wait for a lock that this very thread holds.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, *watched}:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


class _Listener:
    """The thread that hears the trainer: messages, its signals, its end."""

    def __init__(
        self,
        channel: Channel,
        orders: Orders,
        slabs: dict[int, Slab],
        *,
        pidfd: int,
        wake: int,
        signals: int,
        watched: set[int],
    ) -> None:
        self._watched = watched
        self._channel, self._orders, self._slabs = channel, orders, slabs
        self._pidfd, self._wake, self._signals = pidfd, wake, signals
        self._open, self._closed_at = True, 0.0

    def run(self) -> None:
        """Until the trainer is gone."""
        poll = select.poll()
        for descriptor in (self._pidfd, self._wake, self._signals, self._channel.fileno()):
            poll.register(descriptor, select.POLLIN)
        while not self._gone():
            for descriptor, _ in poll.poll(1000):
                if descriptor == self._wake:
                    self._signalled(os.read(self._wake, 64), poll)
                elif descriptor == self._signals:
                    os.read(self._signals, 64)
                    self._orders.hurry.set()
                elif descriptor == self._channel.fileno() and not self._hear():
                    poll.unregister(descriptor)
            if not self._open and time.monotonic() > self._closed_at + FORGOTTEN_SECONDS:
                self._end_too()
        while self._open and self._hear():  # what it said last
            pass
        self._orders.orphaned = True
        self._orders.hurry.set()
        self._orders.notify()

    def _end_too(self) -> None:
        """The trainer goes on and has let its end go: a Checkpointer that nobody has closed was collected."""
        if not self._orders.over:
            self._orders.over = True
            self._orders.hurry.set()
            self._orders.notify()

    def _gone(self) -> bool:
        """The trainer has ended. Not the end of the socket: forked children of the trainer may hold that open."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _hear(self) -> bool:
        """Takes one message; False: there is none, and there will be none."""
        try:
            received = self._channel.receive()
        except Closed:
            self._open, self._closed_at = False, time.monotonic()
            return False
        if received is not None:
            self._take(*received)
        with contextlib.suppress(Closed):  # first everything that it has said is heard
            self._channel.flush()
        self._orders.notify()
        return received is not None or not self._gone()

    def _take(self, message: messages.Message, descriptors: list[int]) -> None:
        orders = self._orders
        if isinstance(message, messages.NewSlab):
            self._slabs[message.serial] = Slab(descriptors.pop(), message.length, message.serial)
            if message.instead in self._slabs:
                self._slabs.pop(message.instead).close()
        elif isinstance(message, messages.Hurry):
            orders.awaited = message.on
            orders.hurry.set() if message.on else orders.hurry.clear()
        elif isinstance(message, messages.Aside):
            orders.asides.append(message)
        elif isinstance(message, messages.FreeSpace):
            orders.free_space = True
        elif isinstance(message, messages.Rescue):
            orders.rescue, orders.signalled = message, False
            orders.hurry.set()
        elif isinstance(message, messages.Goodbye):
            orders.over = True
            orders.hurry.set()
        close_all(descriptors)

    def _signalled(self, numbers: bytes, poll: select.poll) -> None:
        if not numbers:
            poll.unregister(self._wake)
        for number in numbers:
            if number in self._watched:
                # The trainer may be stuck in a collective: what is in reserve is saved at once, without it.
                self._orders.signal(_name(number))


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time one


class _Forwarding(logging.Handler):
    """What this process has to say is said by the trainer, in whose log somebody looks."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one line."""
        with contextlib.suppress(Closed):
            self._channel.send(messages.Said(level=record.levelno, text=record.getMessage()[:8000]))
