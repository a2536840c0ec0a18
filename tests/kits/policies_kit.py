"""Policies that tests give to a training or a replay."""

from __future__ import annotations

from holdfast.policy import Policy, SaveFacts


class Listening(Policy):
    """Looks at everything and wants nothing."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        self.heard: list[SaveFacts] = []

    def _due(self, facts):
        self.heard.append(facts)

    def _kept(self, line):
        return {}
