"""Gathers what health checks look at, at each boundary, without making the training wait for a device.

What lies on a device is read when the device has come to it, some boundaries
later: then there are observations of those, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.health import Fact, Observation, Watch
from holdfast.recovery.vitals import Vitals
from holdfast.state.probing import LateMetrics, Prober


class Needs(NamedTuple):
    """What the next checkpoint will need, as far as it is known."""

    bytes: int | None = None
    files: int | None = None


class Observing:
    """One per launch and rank. Belongs to the thread that trains.

    Args:
        watch: says what is wanted.
        vitals: of the machine.
        prober: of gradients and parameters.
        needs: what the next checkpoint will need.
        rank: this one.
    """

    def __init__(
        self, watch: Watch, vitals: Vitals, prober: Prober, needs: Callable[[], Needs], *, rank: int = 0
    ) -> None:
        self._watch, self._vitals, self._prober, self._needs, self._rank = watch, vitals, prober, needs, rank
        self._late = LateMetrics()
        self._gradients: int | None = None
        self._hook: Any = None
        self._began: float | None = None

    def enter_loop(self) -> None:
        """Gradients are looked at before a step uses them: after it they may be gone."""
        self._began = None
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def leave_loop(self) -> None:
        """Nothing is looked at any more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def first(self) -> Observation:
        """Before the first step: the machine is looked at, and waited for."""
        now, needs = time.monotonic(), self._needs()
        machine = self._vitals.first(
            self._watch.wants(0, now), now, next_bytes=needs.bytes, next_files=needs.files, timeout=2.0
        )
        return Observation(step=0, seconds=now, machine=machine, rank=self._rank)

    def go(self) -> None:
        """A step is begun."""
        self._began = time.monotonic()

    def at(self, step: int, metrics: Mapping[str, Any]) -> list[Observation]:
        """What is known at this boundary: of this one, and before it of earlier ones.

        Args:
            step: completed optimizer steps.
            metrics: of the boundary, some on a device perhaps.
        """
        now = time.monotonic()
        wanted = self._watch.wants(step, now)
        self._prober.begin(wanted & {Fact.PARAMETERS}, step)
        self._gradients = step + 1 if Fact.GRADIENTS in wanted else self._gradients
        needs = self._needs()
        machine = self._vitals.gather(wanted, now, next_bytes=needs.bytes, next_files=needs.files)
        draft = Observation(
            step=step,
            seconds=now,
            step_seconds=None if self._began is None else now - self._began,
            probes=self._prober.finished(),
            machine=machine,
            rank=self._rank,
        )
        return self._complete(draft, metrics)

    def forget(self) -> None:
        """The training has gone back: what is under way is void."""
        self._began = self._gradients = None
        self._prober.forget()
        self._late.forget()

    def _complete(self, draft: Observation, metrics: Mapping[str, Any]) -> list[Observation]:
        self._late.begin(draft.step, metrics)
        found = dict(self._late.finished())
        earlier = [
            Observation(step=step, seconds=draft.seconds, metrics=numbers, rank=self._rank)
            for step, numbers in found.items()
            if step < draft.step
        ]
        return [*earlier, replace(draft, metrics=found.get(draft.step, {}))]

    def _before_step(self, *_: object) -> None:
        if self._gradients is not None:
            step, self._gradients = self._gradients, None
            self._prober.begin({Fact.GRADIENTS}, step)
