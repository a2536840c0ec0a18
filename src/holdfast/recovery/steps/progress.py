"""Which optimizer step the loop is at, and whether it stands at a boundary between two of them.

The loop enters its body at a boundary and leaves it at the next one, or in the
middle of an accumulation. Inside the body the boundary still stands as long as
nothing has changed: no step was made, no parameter was written to, no buffer
counted a batch, no value of the user's is another, nor is a scheduler or
whatever else is registered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from holdfast.recovery.steps.body import Body
from holdfast.recovery.steps.others import OtherChanges
from holdfast.recovery.steps.sketching import sketch
from holdfast.state.boundary import BufferChanges, OptimizerSteps, ParameterChanges

logger = logging.getLogger(__name__)

PATIENCE = 1000
"""Batches without an optimizer step after which a due save is made all the same."""

STUCK = 100
"""Batches without an optimizer step after which the health checks look all the same: scalers skip steps of NaN."""

HINT = 50
"""Batches without any step, from the start, after which a likely cause is told."""


class Progress:
    """Counts steps; not thread-safe.

    Args:
        objects: what is registered; optimizers are watched for steps, everything else for changes.
        values: the user's own.
        accumulate: batches to a step, where no hook can tell, and as long as none does; None: as the optimizers say.
    """

    def __init__(self, objects: Mapping[str, object], values: Mapping[str, Any], accumulate: int | None) -> None:
        known = list(objects.values())
        self.counter = OptimizerSteps(known)
        self._buffers, self._parameters = BufferChanges(known), ParameterChanges(known)
        self._others = OtherChanges(objects)
        self.body = Body(None)
        """Of the loop that runs, or has run last."""
        self._values, self._accumulate = values, accumulate
        self._told = self._hooked = False  # hooked: the last step was one that was seen
        self.begin_at(0)

    def begin_at(self, step: int) -> None:
        """Stands at the boundary after ``step`` steps."""
        self.step = step
        self.clean = True
        """Whether the body was left at a boundary, or was not entered yet."""
        self.in_body = False
        self.fresh = True
        """Whether no body was entered since: the state is that of the checkpoint, or as the program made it."""
        self.lagging = False
        """Whether, at the boundary, an optimizer is still summing up gradients while another one has stepped."""
        self.torn = False
        """Whether the body was left in the middle of an optimizer's step: the state is that of no moment."""
        self.unused = False
        """Whether a batch was drawn of which nobody can say that a step has used it."""
        self._idle = 0
        self._ever = self._closed = False
        self._buffers.look()
        self._parameters.look()
        self._noted: Any = None

    def enter(self) -> None:
        """The body begins."""
        self.in_body, self.unused, self.fresh, self._closed = True, False, False, False
        if self.clean:
            self._buffers.note()
            self._parameters.note()
            self._others.note()
            self._noted = sketch(self._values)
        self.counter.reset()

    def leave(self) -> bool:
        """The body has ended by itself; whether a step is complete."""
        self.in_body = False
        self.clean = self._complete()
        self.torn = self.torn and not self.clean
        hooked = self.counter.taken > 0
        self.lagging = bool(self.clean and (hooked or self._hooked) and self.counter.lagging())
        self._compare()
        self._hooked = hooked if self.clean else self._hooked
        self._ever = self._ever or self.clean
        self._idle = 0 if self.clean else self._idle + 1
        self.step += self.clean
        self._say()
        return self.clean

    def close(self) -> None:
        """The loop runs no more, whatever has ended it: nobody is told of what the program does from here on."""
        if not self.in_body or self.counter.seen:
            self._parameters.note()  # else what was noted at the boundary counts
        self._closed = True

    @property
    def moved(self) -> bool:
        """Whether parameters have changed since the loop has ended: they are those of no boundary."""
        return self._closed and self._parameters.any

    def left(self, *, told: bool) -> bool:
        """The body was left by `break` or an exception, at some line; whether a step was seen to be complete.

        Otherwise the boundary before still stands, if nothing has changed since and the position before the batch at
        hand can be ``told``.
        """
        if not self.in_body:
            return False
        self.torn = self.counter.torn
        if self.counter.taken and not self.torn and self._complete():
            return self.leave()
        if not (told and self.untouched):
            self.in_body, self.unused = False, True
            self.clean = self.clean and not self.torn
        return False

    @property
    def before_step(self) -> bool:
        """Whether no step was made since the boundary, so that what is measured now is measured on its state."""
        counter = self.counter
        return self.clean and not (self.in_body and (counter.taken > 0 or counter.torn or not counter.sees))

    @property
    def untouched(self) -> bool:
        """Whether the live state is still that of the boundary, as far as can be seen."""
        if not self.in_body:
            return self.clean and not self.moved
        changed = self._buffers.any or self._parameters.any or self._others.changed
        return self.before_step and not changed and self._noted == sketch(self._values)

    def back(self) -> str | None:
        """Makes the live state that of the boundary again where it can be; else why not.

        A forward pass that was made since has changed buffers, which are put back from their copies.
        """
        if self.counter.torn:
            return "an optimizer was in the middle of its step"
        if not self.clean:
            return "a step was in the middle of its accumulation"
        if self.in_body and not self.counter.sees:
            return "nobody can tell whether a step was made: no optimizer that can be watched is registered"
        if self.in_body and self.counter.seen:
            return "an optimizer had made its step, and what belongs to that step was not complete"
        if self.moved:
            return "parameters had changed since the loop has ended"
        return self._why_not_in_body() if self.in_body else None

    def _why_not_in_body(self) -> str | None:
        if self._parameters.any:
            return "parameters had changed without a step of an optimizer"
        if self._noted != sketch(self._values):
            return "values of the program had changed"
        if name := self._others.changed:
            return f"{name!r} had changed"
        if name := self._others.untold:
            return f"nobody can tell whether {name!r} had changed: there is too much in it to be compared at each step"
        if self._buffers.any and not self._buffers.undo():
            return "buffers had changed, and no copy of them is kept"
        return None

    @property
    def stuck(self) -> bool:
        """Whether there was no step for long, where there were steps before."""
        return self._ever and self._idle > 0 and self._idle % STUCK == 0

    @property
    def overdue(self) -> bool:
        """Whether a due save should wait no longer for a boundary."""
        return self._idle >= PATIENCE and self._idle % PATIENCE == 0

    def _complete(self) -> bool:
        if self._accumulate is None or self.counter.taken:
            return self.counter.taken > 0 or not self.counter.sees
        # A program that makes its steps otherwise is followed; one whose steps are seen no more (a CUDA graph) is not.
        return self._due and (not self._hooked or self._idle >= self._accumulate)

    @property
    def _due(self) -> bool:
        return self._accumulate is not None and (self._idle + 1) % self._accumulate == 0

    def _compare(self) -> None:
        if self._accumulate is None or self._told or self._due == self.clean:
            return
        self._told = True
        logger.warning(
            "optimizers make their steps at other batches than accumulate=%d says, and are followed as long as their "
            "steps are seen; leave it out, unless there are steps that no hook can see",
            self._accumulate,
        )

    def _say(self) -> None:
        if self._idle == (PATIENCE if self._ever else HINT):
            logger.warning(
                "no optimizer step in %d batches; if steps are made where no hook can see them "
                "(a foreign optimizer, a CUDA graph), give accumulate=",
                self._idle,
            )
