"""Late metrics and names on their way to the saver: sent again to its successor until one of them has noted them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.records import MarkKind, Target
from holdfast.saver import messages
from holdfast.saver.asides import pack_metrics

METRICS = 300
"""In one message, which has a longest length."""


@dataclass(slots=True)
class Asides:
    """What was asked for and is not in the store yet, as far as is known. Not thread-safe."""

    send: Callable[[messages.ToSaver], None]
    generation: Callable[[], int]
    """The newest one: what is asked for now comes after it, also if its stream has not sealed it yet."""
    _waiting: dict[int, messages.Aside] = field(default_factory=dict)
    _asked: int = 0

    @property
    def waiting(self) -> bool:
        """Whether there is any."""
        return bool(self._waiting)

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Metrics for a record."""
        names = sorted(metrics)
        for at in range(0, len(names), METRICS):
            packed = pack_metrics({name: metrics[name] for name in names[at : at + METRICS]})
            self._asked += 1
            self._add(messages.AddMetrics(target=target, metrics=packed, number=self._asked, after=self.generation()))

    def add_tag(self, target: Target, tag: str) -> None:
        """A name for a record."""
        self._asked += 1
        self._add(messages.AddTag(target=target, tag=tag, number=self._asked, after=self.generation()))

    def add_mark(self, target: Target, kind: MarkKind) -> None:
        """A fact about a record."""
        self._asked += 1
        self._add(messages.AddMark(target=target, kind=str(kind), number=self._asked, after=self.generation()))

    def free_space(self) -> None:
        """What retention allows to remove goes, as soon as nothing more urgent is to be done."""
        self.send(messages.FreeSpace())

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

    def _add(self, message: messages.Aside) -> None:
        self._waiting[message.number] = message
        self.send(message)
