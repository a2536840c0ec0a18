"""While a training loop runs: hooks and signal handlers are installed, and a second loop is refused."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Protocol

from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.steps.body import Body
from holdfast.recovery.training.training import Training


class Owner(Protocol):
    """What has a loop: a Checkpointer."""

    loop: Loop | None
    """The one that runs."""


class Loop:
    """One iteration of `Checkpointer.batches` or `Checkpointer.steps`, as a context.

    Args:
        owner: what has it.
        training: what is trained.
        stops: heard from here on.
        lookout: what else is to be looked after for so long.
    """

    def __init__(
        self, owner: Owner, training: Training, stops: StopRequests, lookout: AbstractContextManager[Any]
    ) -> None:
        self._owner, self._training, self._stops, self._lookout = owner, training, stops, lookout

    def __enter__(self) -> None:
        self._owner.loop = self
        self._training.progress.body = Body(sys._getframe(1))
        self._stops.__enter__()
        self._lookout.__enter__()
        try:
            self._training.enter_loop()
        except BaseException:
            self.leave()
            raise

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> bool:
        try:
            # A generator that is closed was left in the body: what has happened there is told to the block.
            return e is not None and not isinstance(e, GeneratorExit) and self._training.broken(e)
        finally:
            self.leave()

    def leave(self) -> None:
        """Hooks and handlers go. What is to be saved is saved later, where errors reach somebody."""
        # Else an exception has left the block before, and the generator is collected only now.
        if self._owner.loop is self:
            self._owner.loop = None
            self._lookout.__exit__(None, None, None)
            self._training.progress.body.leave(sys._getframe(1))
            self._training.progress.close()
            self._training.leave_loop()
            self._stops.__exit__(None, None, None)


def callers_names(frame: FrameType | None) -> dict[str, object]:
    """The names that the caller of ``frame`` can see: the audit looks for forgotten state there."""
    caller = frame.f_back if frame else None
    return {**caller.f_globals, **caller.f_locals} if caller else {}
