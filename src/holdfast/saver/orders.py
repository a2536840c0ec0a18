"""What the trainer has asked of its saver, between the thread that listens and the one that works."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from holdfast.records import Kind
from holdfast.saver import messages


@dataclass(slots=True, kw_only=True)
class Orders:
    """What the trainer has asked for; filled by the thread that listens. Thread-safe."""

    changed: threading.Event = field(default_factory=threading.Event)
    asides: deque[messages.Aside] = field(default_factory=deque)
    free_space: bool = False
    """Remove what may be removed."""
    rescue: messages.Rescue | None = None
    """Save what is in reserve."""
    signalled: bool = False
    """Whether a signal says so, and not the trainer, which may still get on."""
    awaited: bool = False
    """The trainer waits for memory, or for what is in flight."""
    over: bool = False
    """Nothing more will be staged."""
    orphaned: bool = False
    """The trainer is gone."""
    hurry: threading.Event = field(default_factory=threading.Event)

    @property
    def ending(self) -> bool:
        """Whether nobody will stage anything any more."""
        return self.over or self.orphaned

    def signal(self, name: str) -> None:
        """The trainer was asked to stop, and may not hear it; what it has said of a rescue itself stands."""
        if self.rescue is None or self.signalled:
            self.signalled = True
            self.rescue = messages.Rescue(kind=Kind.PREEMPTED, reason=name)
        self.hurry.set()
        self.notify()

    def wait(self, seconds: float) -> None:
        """Until something changes, or has changed since the last wait."""
        self.changed.wait(seconds)
        self.changed.clear()

    def pause(self, seconds: float) -> bool:
        """Waits all of it, unless the end has come: then False."""
        end = time.monotonic() + seconds
        while not self.ending and (left := end - time.monotonic()) > 0:
            self.wait(left)
        return not self.ending

    def notify(self) -> None:
        """Something has changed."""
        self.changed.set()

    def calm(self) -> None:
        """There is nothing to do: what was urgent is done, whoever has said so, unless more has come meanwhile."""
        if not self.changed.is_set():
            self.hurry.clear()
