"""The watchdog: a training that makes no step for too long has its stacks written to the journal, or is ended.

It lives here, for a training that hangs cannot watch itself. That it is ended
is asked for, with a time of its own; whoever is under a debugger, stopped, or
compiling is never ended, and that time is not held against it afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.catalog.journal.journal import JournalWriter
from holdfast.errors import StorageError
from holdfast.saver.beats import Beat, Beats
from holdfast.saver.stacks import Stacks, dump, held

LOOK_SECONDS = 0.5
_MOST_PER_LOOK = int(2 * LOOK_SECONDS * 1e9)
"""Nanoseconds that count from one look to the next: if it was more, the saver stood still, and perhaps the trainer."""
_EXCUSES = 20
"""How often the stacks are read in ``end`` seconds: so much of them may count that was spent in a debugger."""
END_SECONDS = 6.0
"""How long the end of the saver waits for stacks that are being written."""
LAST_WORDS_SECONDS = 1.0
"""How long the end of a training waits for its own output to take why: what that is written to may hang, too."""
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
    _at: int = 0
    """Which silence it is."""
    _looked: int = 0
    """When, by the clock of the beats."""
    _silent: float = 0.0
    """Seconds of it in which the trainer was not held."""
    _to_blame: float = 0.0
    """Those for which it had no excuse either, by what its stacks have shown."""
    _ask_at: float = 0.0
    """How many of those there must be for the stacks to be read again."""
    _spared: bool = False
    """Whether that was noted, of this silence."""
    _seen: Beat | None = None
    """The silence of which the stacks were written."""
    _dumps: int = 0
    _killed: bool = False
    """It has been ended; until it is gone, which may take a while where it waits for a disk, nothing more is due."""
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
        if now.at != self._at:
            self._begin(now)
        passed = self._passed()
        if self._killed or not now.hung or held(self.pid):
            return
        self._silent, self._to_blame = self._silent + passed, self._to_blame + passed
        if self._silent >= now.hung and self._seen is None:
            self._dump(now)
        if now.end and self._to_blame >= self._ask_at:
            self._ask(now)

    def _begin(self, now: Beat) -> None:
        """It got on: what was counted is void."""
        if self._seen is not None:
            self._recovered(now)
        self._at, self._silent, self._to_blame, self._spared = now.at, 0.0, 0.0, False
        self._ask_at = now.end / _EXCUSES

    def _passed(self) -> float:
        """Seconds since the last look, or since the beat.

        Not simply those since the beat: the trainer may have been stopped, or the saver frozen together with it.
        """
        since, self._looked = max(self._looked, self._at), time.monotonic_ns()
        return min(self._looked - since, _MOST_PER_LOOK) / 1e9

    def _dump(self, now: Beat) -> None:
        self._dumps, self._seen = self._dumps + 1, now
        if self._dumps > MOST:
            return
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        who = f"at {found.place}"
        if found.waiting:
            who = f"it waits for other ranks, {who}"
        elif found.backward:
            who = f"in the backward pass, where it may wait for other ranks, {who}"
        silent = self._silent
        text = f"rank {self.rank} has made no step after step {now.step} for {silent:.0f} s: {who}"
        self._note("hung", text, step=now.step, rank=self.rank, silent=silent, stacks=found.text, state=found.state)
        last = "; it was the last time that they are written: is hung= too short?" if self._dumps == MOST else ""
        self.say(logging.ERROR, f"{text}; the stacks of all threads are in the journal (holdfast log){last}")

    def _ask(self, now: Beat) -> None:
        """Ends it if it has had no excuse for long enough; with one, its time begins anew."""
        found = dump(self.pid, self.pidfd, self.number, self.stacks)
        if found.excuse is not None:
            self._to_blame, self._ask_at = 0.0, now.end / _EXCUSES
            if self._silent >= now.end and not self._spared:
                text = f"rank {self.rank} is not ended after {self._silent:.0f} s: {found.excuse}"
                self._note("spared", text, rank=self.rank)
                self._spared = True
        elif self._to_blame >= now.end:
            self._end(now, found)
        else:
            self._ask_at = min(now.end, self._to_blame + now.end / _EXCUSES)

    def _end(self, now: Beat, found: Stacks) -> None:
        if not self._still(now):
            return
        silent = self._silent
        text = f"rank {self.rank} is ended by the watchdog after {silent:.0f} s without a step after {now.step}"
        self._note("ended", text, step=now.step, rank=self.rank, silent=silent, stacks=found.text)
        if not self._still(now):  # to write the stacks and the journal takes a while
            self._note("spared", f"rank {self.rank} is not ended: it goes on at the last moment", rank=self.rank)
            return
        self._tell_its_output(f"holdfast: {text}: SIGKILL; its stacks: holdfast log --only ended")
        # What hangs in C runs no handler of Python's, so nothing milder is sure to end it.
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._killed = True

    def _tell_its_output(self, text: str) -> None:
        """A line on the trainer's standard error, if that can be had: all else that is left there is exit code 137."""
        line = f"{text}\n".encode(errors="replace")
        teller = threading.Thread(target=_write_stderr, args=(self.pid, self.pidfd, line), daemon=True)
        teller.start()
        teller.join(LAST_WORDS_SECONDS)

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


def _write_stderr(pid: int, pidfd: int, line: bytes) -> None:
    """Writes to the standard error of another process; not where that is a socket, a full pipe, or somebody else's."""
    # A terminal must not become ours, and a pipe that nobody empties must not keep us.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        stderr = os.open(f"/proc/{pid}/fd/2", flags)
        try:
            signal.pidfd_send_signal(pidfd, 0)  # it is there still, so the number was its own
            os.write(stderr, line)
        finally:
            os.close(stderr)
