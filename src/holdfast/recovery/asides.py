"""Late metrics and names on their way to the saver: sent again to its successor until one of them has noted them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.records import Target
from holdfast.saver import messages
from holdfast.saver.asides import pack_metrics

METRICS = 300
"""In one message, which has a longest length."""


@dataclass(slots=True)
class Asides:
    """What was asked for and is not in the store yet, as far as is known. Not thread-safe."""

    send: Callable[[messages.ToSaver], None]
    _waiting: dict[int, messages.AddMetrics | messages.AddTag] = field(default_factory=dict)
    _asked: int = 0

    @property
    def waiting(self) -> bool:
        """Whether there is any."""
        return bool(self._waiting)

    def add_metrics(self, target: Target, metrics: Mapping[str, Any], *, after: int) -> None:
        """Metrics for a record, once the generation ``after`` is done."""
        names = sorted(metrics)
        for at in range(0, len(names), METRICS):
            packed = pack_metrics({name: metrics[name] for name in names[at : at + METRICS]})
            self._asked += 1
            self._add(messages.AddMetrics(target=target, metrics=packed, number=self._asked, after=after))

    def add_tag(self, target: Target, tag: str, *, after: int) -> None:
        """A name for a record, once the generation ``after`` is done."""
        self._asked += 1
        self._add(messages.AddTag(target=target, tag=tag, number=self._asked, after=after))

    def noted(self, number: int) -> None:
        """The saver has done what it could."""
        self._waiting.pop(number, None)

    def again(self) -> None:
        """Tells another saver."""
        for message in self._waiting.values():
            self.send(message)

    def lost(self) -> list[Target]:
        """There is no saver any more: what nothing will come of."""
        found, self._waiting = [one.target for one in self._waiting.values()], {}
        return found

    def _add(self, message: messages.AddMetrics | messages.AddTag) -> None:
        self._waiting[message.number] = message
        self.send(message)
