"""Gathers what health checks look at, at each boundary, without making the training wait for a device.

What lies on a device is read when the device has come to it, some boundaries
later: then there are observations of those, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.health import Fact, Observation, Watch
from holdfast.recovery.caring.needs import Needs
from holdfast.recovery.caring.vitals import Vitals
from holdfast.state.probing import LateMetrics, Prober

LAST_SECONDS = 60.0
"""How long devices are waited for behind the last step: the checkpoint that comes then waits for them as well."""


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

    def first(self, step: int) -> Observation:
        """Before the first step after ``step``: the machine is looked at, and waited for."""
        now = time.monotonic()
        machine = self._vitals.first(self._watch.wants(step, now), now, needs=self._needs(), timeout=2.0)
        return Observation(step=step, seconds=now, machine=machine, rank=self._rank)

    def go(self) -> None:
        """A step is begun."""
        self._began = time.monotonic()

    def at(self, step: int, metrics: Mapping[str, Any], *, last: bool = False) -> list[Observation]:
        """What is known at this boundary: of this one, and before it of earlier ones.

        Args:
            step: completed optimizer steps.
            metrics: of the boundary, some on a device perhaps.
            last: whether there is no next one: then devices are waited for.
        """
        now = time.monotonic()
        end = now + LAST_SECONDS if last else now
        wanted = self._watch.wants(step, now)
        earlier = self._prober.finished(_until(end))  # first, for there is one sample of each sort at a time
        self._prober.begin(wanted & {Fact.PARAMETERS}, step)
        self._gradients = step + 1 if Fact.GRADIENTS in wanted else self._gradients
        machine = self._vitals.gather(wanted, now, needs=self._needs())
        draft = Observation(
            step=step,
            seconds=now,
            step_seconds=None if self._began is None else now - self._began,
            probes=(*earlier, *self._prober.finished(_until(end))),
            machine=machine,
            rank=self._rank,
        )
        return self._complete(draft, metrics, end)

    def forget(self) -> None:
        """The training has gone back: what is under way is void."""
        self._began = self._gradients = None
        self._prober.forget()
        self._late.forget()

    def _complete(self, draft: Observation, metrics: Mapping[str, Any], end: float) -> list[Observation]:
        known = self._late.finished(_until(end))  # first, for there is no room for very many
        self._late.begin(draft.step, metrics)
        found: dict[int, dict[str, Any]] = {}
        for step, numbers in [*known, *self._late.finished(_until(end))]:
            found.setdefault(step, {}).update(numbers)  # the end of an epoch may be looked at twice
        earlier = [
            Observation(step=step, seconds=draft.seconds, metrics=numbers, rank=self._rank)
            for step, numbers in found.items()
            if step < draft.step
        ]
        return [*earlier, replace(draft, metrics=found.get(draft.step, {}))]

    def _before_step(self, optimizer: object, *_: object) -> None:
        if self._gradients is not None:
            step, self._gradients = self._gradients, None
            # A loss scaler leaves them as they are to a fused optimizer, and tells it what to do.
            scale, skips = (_number(getattr(optimizer, name, None)) for name in ("grad_scale", "found_inf"))
            self._prober.begin({Fact.GRADIENTS}, step, scale=scale, skips=skips)


def _until(end: float) -> float:
    return max(0.0, end - time.monotonic())


def _number(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) and value.numel() == 1 else None
