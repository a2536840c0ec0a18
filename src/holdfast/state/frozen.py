"""Frozen tensors are not copied at every save: a fingerprint tells that they are as stored before.

Each is staged and hashed in full all the same when its turn comes, once in
`FULL_EVERY` saves, and whenever the fingerprint is another one or nobody knows
a checkpoint that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from holdfast.records import Target
from holdfast.state.fingerprints import Fingerprints
from holdfast.trees import Lifetime, TensorSpec

FULL_EVERY = 16
"""Each save stages one sixteenth of the frozen tensors in full, in turn."""


@dataclass(slots=True)
class FrozenTensors:
    """What is known of the frozen tensors of one line of checkpoints. Not thread-safe."""

    stored_in: Target | None = None
    """The newest checkpoint that has them."""
    _fingerprints: Fingerprints = field(default_factory=Fingerprints)
    _known: dict[str, bytes] = field(default_factory=dict)
    _saves: int = 0

    def look(self, specs: Sequence[TensorSpec], tensors: Sequence[Tensor]) -> dict[int, bytes]:
        """The fingerprints of the frozen ones among some tensors, by place; reads all of their memory once."""
        places = [place for place, spec in enumerate(specs) if spec.lifetime is Lifetime.FROZEN]
        found = self._fingerprints.of([tensors[place] for place in places])
        return dict(zip(places, found, strict=True))

    def skipped(self, specs: Sequence[TensorSpec], prints: Mapping[int, bytes], *, in_turn: bool) -> set[int]:
        """The places that need not be staged this time.

        Args:
            specs: of all large tensors.
            prints: fingerprints of the frozen ones, by place.
            in_turn: stage those whose turn it is although they are known; else their turn does not pass.
        """
        known = {place for place, found in prints.items() if self._known.get(specs[place].name) == found}
        if not in_turn:
            return known
        self._saves += 1
        return {place for place in known if (place + self._saves) % FULL_EVERY}

    def committed(self, target: Target, prints: Mapping[str, bytes]) -> None:
        """A checkpoint exists that has the frozen tensors with these fingerprints, by name."""
        self.stored_in, self._known = target, dict(prints)

    def forget(self) -> None:
        """Nothing is known any more: all are staged at the next save."""
        self.stored_in, self._known = None, {}
