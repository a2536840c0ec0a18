"""Where the boundary lies in the data, and the random states there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.recovery.ranks.group import Group
from holdfast.recovery.restoring.finding import Mismatch, find_together
from holdfast.recovery.restoring.loading import Loaded
from holdfast.recovery.restoring.whole import Whole
from holdfast.recovery.saving.triggers import Moment
from holdfast.state import rng
from holdfast.state.loaders import LoaderPosition
from holdfast.state.values_torch import set_generator_state


class Place:
    """One per launch. Not thread-safe.

    Args:
        group: the ranks, which find their places together.
        whole: the live state, some of whose generators a loader may share.
    """

    def __init__(self, group: Group, whole: Whole) -> None:
        self._group, self._whole = group, whole
        self.position: LoaderPosition | None = None
        """Of the loader, once there is one."""
        self.begin_at()

    def begin_at(self, loaded: Loaded | None = None, *, moved: bool = False) -> None:
        """The training goes on from a checkpoint, or begins; ``moved``: it was made by another number of ranks."""
        self.epoch_ended = False
        self.stored = loaded.data if loaded else None
        """The position of the checkpoint, which counts as long as there is no loader."""
        self.rng = loaded.rng if loaded else None
        """The random states of the boundary."""
        self._registered: list[tuple[Any, dict[str, Any]]] = []
        """Generators of the program's, with their states there."""
        self._moved = moved

    def go(self, *, fresh: bool) -> None:
        """The next batch is drawn from here on; ``fresh``: no body was entered since `begin_at`."""
        if fresh and self.rng is not None:
            # The user's code between the restore and the loop may have drawn numbers.
            rng.restore(self.rng)
        else:
            self.rng = rng.capture()
        self._registered = self._whole.generators()

    def mark(self, *, epoch_ended: bool) -> None:
        """This is a boundary."""
        self.rng, self.epoch_ended = rng.capture(), epoch_ended
        self._registered = self._whole.generators()

    @contextmanager
    def generators_there(self) -> Iterator[None]:
        """Within it registered generators are those of the boundary, whatever the body or a loader has drawn since."""
        with self._whole.generators_kept():
            for generator, state in self._registered:
                set_generator_state(generator, state)
            yield

    def find(self, position: LoaderPosition, mismatch: Mismatch = Mismatch.RAISE) -> bool:
        """Brings a loader to the place of the checkpoint; whether there is one."""
        if self.stored is None:
            return False
        if self._moved and position.strategy != "cursor":
            mismatch = Mismatch.RESTART_EPOCH  # nobody can tell which samples the other ranks have had
        with self._whole.generators_kept():
            find_together(self._group, position, self.stored, mismatch)
        return True

    @property
    def told(self) -> bool:
        """Whether the loader can say where it was before it gave the batch at hand."""
        return self.position is None or self.position.before() is not None

    @property
    def lost(self) -> bool:
        """Whether the loader has failed in a fetch, and cannot say where it was before it."""
        return self.position is not None and self.position.lost

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the boundary lies in: a loader without a length is in the next one at its end."""
        if self.position is None:
            return 0
        return self.position.epoch - (self.epoch_ended and self.position.length is None)

    def moment(self, step: int) -> Moment:
        """The boundary after ``step`` steps, as policies see it."""
        return Moment(step, self.epoch, self.epoch_ended)

    def close(self) -> None:
        """Lets the loader go."""
        if self.position is not None:
            self.position.close()
