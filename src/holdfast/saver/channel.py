"""A socket between trainer and saver: whole messages, descriptors with them, and never a wait that does not end."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
import time
from collections import deque

from holdfast.errors import InvalidInput
from holdfast.saver.messages import Alive, Message, Progress, Said, decode, encode

LONGEST = 128 * 1024
"""Bytes of a message."""
_DESCRIPTORS = 16
_WAITING = 1000
"""Messages kept while the other side does not read."""


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end. `send` and `flush` are thread-safe; `receive` belongs to one thread.

    The kernel keeps messages apart and delivers what was sent also after the sender has died.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._out: deque[tuple[Message, list[int]]] = deque()
        self._lock = threading.Lock()

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """A new channel and its other end, for another process."""
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (mine, other):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LONGEST)
        return Channel(mine), other

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Sends, or keeps it until the other side reads; reports of progress are dropped then.

        Raises:
            Closed: the other side is gone.
            InvalidInput: longer than `LONGEST`: the other side could not take it.
        """
        if (length := len(encode(message))) > LONGEST:
            raise InvalidInput(f"a message of {length} bytes between trainer and saver; at most {LONGEST} are taken")
        with self._lock:
            self._flush()
            if self._out and (isinstance(message, Progress | Alive) or self._crowded(message)):
                return
            self._out.append((message, descriptors or []))
            self._flush()

    def _crowded(self, message: Message) -> bool:
        """Whether a line of the log has to go; what becomes of saves is never dropped."""
        return isinstance(message, Said) and len(self._out) >= _WAITING

    def flush(self, seconds: float = 0.0) -> bool:
        """Sends what was kept; whether nothing is left. Raises as `send`."""
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                self._flush()
                if not self._out:
                    return True
            if time.monotonic() >= end:
                return False
            _poll(self._socket, select.POLLOUT, 0.05)

    def _flush(self) -> None:
        while self._out:
            message, descriptors = self._out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self._socket.sendmsg([encode(message)], rights)
            except BlockingIOError:
                return
            except OSError as error:
                raise Closed(str(error)) from error
            self._out.popleft()

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors; None: there is none now.

        Raises:
            Closed: the other side is gone, and nothing of it is left.
        """
        try:
            data, ancillary = self._next()
        except BlockingIOError:
            return None
        except OSError as error:
            raise Closed(str(error)) from error
        descriptors = [number for item in ancillary for number in _numbers(item[2])]
        if not data:
            raise Closed("the other side has closed the socket")
        return decode(data), descriptors

    def _next(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        try:
            return self._take()
        except ConnectionResetError:
            # Linux says so once if a process has died before it had read everything, and before what it had to say.
            return self._take()

    def _take(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        rights = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        return self._socket.recvmsg(LONGEST, rights, socket.MSG_CMSG_CLOEXEC)[:2]

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, or the other side is gone, within ``seconds``."""
        return _poll(self._socket, select.POLLIN, seconds)

    def close(self) -> None:
        """Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _poll(one: socket.socket, events: int, seconds: float) -> bool:
    poll = select.poll()  # select() refuses descriptors from 1024 up
    poll.register(one, events)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _numbers(data: bytes) -> list[int]:
    numbers = array.array("i")
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers.tolist()


def close_all(descriptors: list[int]) -> None:
    """Closes descriptors that came with a message and are of no use any more."""
    for number in descriptors:
        with contextlib.suppress(OSError):
            os.close(number)
