"""The watchdog: a training that makes no step for too long has its stacks written to the journal, or is ended.

It lives here, for a training that hangs cannot watch itself. That it is ended
is asked for, with a time of its own; whoever is under a debugger, stopped, or
compiling is never ended.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.catalog.journal import JournalWriter
from holdfast.errors import StorageError
from holdfast.saver.beats import Beat, Beats
from holdfast.saver.stacks import dump, held

LOOK_SECONDS = 0.5
END_SECONDS = 6.0
"""How long the end of the saver waits for stacks that are being written."""
MOST = 20
"""Silences of which the stacks are written; with a limit that is too short every step would be one."""


@dataclass(slots=True, kw_only=True)
class Watching:
    """Watches one trainer.

    Args:
        beats: its signs of life.
        pid: of the trainer.
        pidfd: of it.
        number: the signal upon which it writes its stacks.
        stacks: the file to which it does.
        rank: of it.
        journal: where it is noted.
        say: what somebody should hear.
        gone: whether the trainer has ended.
    """

    beats: Beats
    pid: int
    pidfd: int
    number: int
    stacks: int
    rank: int
    journal: JournalWriter
    say: Callable[[int, str], None]
    gone: Callable[[], bool]
    _seen: Beat | None = None
    """The silence of which the stacks were written."""
    _spared: bool = False
    _dumps: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """In a thread of its own: storage that does not answer must not keep the saver from hearing its trainer."""
        self._thread = threading.Thread(target=self.run, name="holdfast-watch", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Until the trainer has ended, or needs nobody any more."""
        over = False
        while not self.gone() and not over:
            over = self._over.wait(LOOK_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                self.look()

    def end(self) -> None:
        """Waits a moment for what is being written: what was found last is in the journal, too."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def look(self) -> None:
        """Does what is due now."""
        now = self.beats.read()
        if self._seen is not None and self._seen.at != now.at:
            self._recovered(now)
        if not now.hung or now.silent < now.hung or held(self.pid):
            return
        if self._seen is None:
            self._dump(now)
        if now.end and now.silent >= now.end:
            self._end(now)

    def _dump(self, now: Beat) -> None:
        self._dumps, self._seen, self._spared = self._dumps + 1, now, False
        if self._dumps > MOST:
            return
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        who = f"at {found.place}"
        if found.waiting:
            who = f"it waits for other ranks, {who}"
        elif found.backward:
            who = f"in the backward pass, where it may wait for other ranks, {who}"
        text = f"rank {self.rank} has made no step after step {now.step} for {now.silent:.0f} s: {who}"
        self._note("hung", text, step=now.step, rank=self.rank, silent=now.silent, stacks=found.text, state=found.state)
        last = "; it was the last time that they are written: is hung= too short?" if self._dumps == MOST else ""
        self.say(logging.ERROR, f"{text}; the stacks of all threads are in the journal (holdfast log){last}")

    def _end(self, now: Beat) -> None:
        # The stacks as they are now: what was a compiler or a person when they were written may be a hang by now.
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        why = "a person steps through it" if found.debugged else "a compiler is at work" if found.compiling else None
        if why is not None:
            if not self._spared:
                self._note("spared", f"rank {self.rank} is not ended after {now.silent:.0f} s: {why}", rank=self.rank)
            self._spared = True
            return
        if not self._still(now):
            return
        text = f"rank {self.rank} is ended by the watchdog after {now.silent:.0f} s without a step after {now.step}"
        self._note("ended", text, step=now.step, rank=self.rank, silent=now.silent, stacks=found.text)
        if not self._still(now):  # to write the stacks and the journal takes a while
            self._note("spared", f"rank {self.rank} is not ended: it goes on at the last moment", rank=self.rank)
            return
        # What hangs in C runs no handler of Python's, so nothing milder is sure to end it.
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _still(self, then: Beat) -> bool:
        """Whether nothing has been heard since."""
        now = self.beats.read()
        return bool(now.hung) and now.at == then.at and not held(self.pid)

    def _recovered(self, now: Beat) -> None:
        assert self._seen is not None
        seen, self._seen = self._seen, None
        if self._dumps > MOST:
            return
        took = (now.at - seen.at) / 1e9
        text = f"rank {self.rank} goes on: step {seen.step} was followed by a sign of life after {took:.0f} s"
        self._note("recovered", text, step=now.step, rank=self.rank, silent=took)

    def _note(self, kind: str, text: str, **data: object) -> None:
        self.journal.add(kind, text, **data)
        with contextlib.suppress(StorageError):  # the next flush repeats it
            self.journal.flush()
