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
import time
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.catalog.journal import JournalWriter
from holdfast.errors import StorageError
from holdfast.saver.beats import Beat, Beats
from holdfast.saver.stacks import Stacks, dump, held

LOOK_SECONDS = 0.5


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
    _found: Stacks | None = None
    _spared: bool = False

    def start(self) -> None:
        """In a thread of its own: storage that does not answer must not keep the saver from hearing its trainer."""
        threading.Thread(target=self.run, name="holdfast-watch", daemon=True).start()

    def run(self) -> None:
        """Until the trainer has ended."""
        while not self.gone():
            with contextlib.suppress(ProcessLookupError):
                self.look()
            time.sleep(LOOK_SECONDS)

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
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        self._seen, self._found, self._spared = now, found, False
        who = "it waits for other ranks" if found.waiting else f"at {found.innermost}"
        text = f"rank {self.rank} has made no step after step {now.step} for {now.silent:.0f} s: {who}"
        self._note("hung", text, step=now.step, rank=self.rank, silent=now.silent, stacks=found.text, state=found.state)
        self.say(logging.ERROR, f"{text}; the stacks of all threads are in the journal (holdfast log)")

    def _end(self, now: Beat) -> None:
        # The stacks as they are now: what was a compiler or a person when they were written may be a hang by now.
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        why = "a person steps through it" if found.debugged else "a compiler is at work" if found.compiling else None
        if why is not None:
            if not self._spared:
                self._note("spared", f"rank {self.rank} is not ended after {now.silent:.0f} s: {why}", rank=self.rank)
            self._spared = True
            return
        if self.beats.read().at != now.at or held(self.pid):
            return
        text = f"rank {self.rank} was ended by the watchdog after {now.silent:.0f} s without a step after {now.step}"
        self._note("ended", text, step=now.step, rank=self.rank, silent=now.silent, stacks=found.text)
        # What hangs in C runs no handler of Python's, so nothing milder is sure to end it.
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _recovered(self, now: Beat) -> None:
        assert self._seen is not None
        took = (now.at - self._seen.at) / 1e9
        text = f"rank {self.rank} goes on: step {self._seen.step} was followed by a sign of life after {took:.0f} s"
        self._seen = self._found = None
        self._note("recovered", text, step=now.step, rank=self.rank, silent=took)

    def _note(self, kind: str, text: str, **data: object) -> None:
        self.journal.add(kind, text, **data)
        with contextlib.suppress(StorageError):  # the next flush repeats it
            self.journal.flush()
