"""Which process may use a Checkpointer, and that no two in one process work on the same run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import weakref
from typing import Protocol

from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import AlreadyOpen, InvalidInput

logger = logging.getLogger(__name__)


class Claimant(Protocol):
    """What works on a run: a Checkpointer."""

    @property
    def looping(self) -> bool:
        """Whether its training loop runs."""

    def supersede(self) -> None:
        """Another one takes over: this one may not be used any more."""


_open: dict[tuple[str, int], weakref.ref[Claimant]] = {}
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_open.clear)  # they belong to the parent
_lock = threading.RLock()  # whoever is superseded lets its run go while the lock is held


def refuse_worker(owner: int | None = None) -> None:
    """Refuses a loader worker that runs the training script again, and a forked child that uses its parent's object.

    Raises:
        InvalidInput: this process may not use the Checkpointer.
    """
    if owner is not None and owner != os.getpid():
        raise InvalidInput(
            "this Checkpointer belongs to the process that made it; a forked process (a loader worker?) cannot use it"
        )
    # Set by multiprocessing while a spawned child imports the main module, and at no other time.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InvalidInput(
            "a worker process is importing the training script and runs it again; "
            "put the training under: if __name__ == '__main__':"
        )


def claim_run(store: Store, run: Run, owner: Claimant) -> None:
    """Makes ``owner`` the only Checkpointer of this process on the run; an idle earlier one is closed.

    Raises:
        AlreadyOpen: an earlier one is in its training loop.
    """
    key = (store.info.id, int(run.number))
    with _lock:
        earlier = _open[key]() if key in _open else None
        if earlier is not None and earlier is not owner:
            if earlier.looping:
                raise AlreadyOpen(f"{run.number} is being trained in this process already; end that loop first")
            logger.warning("a second Checkpointer was made for %s: the first one is closed", run.number)
            earlier.supersede()
        _open[key] = weakref.ref(owner)


def release_run(owner: Claimant) -> None:
    """Forgets ``owner``; idempotent."""
    with _lock:
        for key in [key for key, held in _open.items() if held() is owner or held() is None]:
            del _open[key]
