"""A standing hold: as long as it stands, the saver of a launch may finish what its trainer has staged.

Between the moment at which a state is staged and the hold of its save lies an
instant in which nothing in the store speaks of it. A trainer that is killed
there and started again at once would find no hold, resume from the checkpoint
before, and fence the saver. So a saver announces itself when it begins, and a
new launch waits for that, too. Who does not want to wait any longer removes
it: a save that makes its hold after that is fenced, one that made it before
has a hold that is seen. docs/design/0003-saver.md has the interleavings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.objects import create_once, exists, load
from holdfast.catalog.owners import Liveness
from holdfast.clock import utc_now
from holdfast.errors import Damaged, ObjectMissing
from holdfast.ids import ObjectName, RunNumber, nonce
from holdfast.records import Hold, LaunchInfo

if TYPE_CHECKING:
    from holdfast.catalog.launches import Launch
    from holdfast.catalog.store import Store

_STANDING = re.compile(r"saver-(\d{6,})-[0-9a-f]{16}\.json")


@dataclass(frozen=True, slots=True)
class Standing:
    """One standing hold, of whoever holds this object or of somebody else."""

    store: Store
    name: ObjectName
    launch: int

    def stands(self) -> bool:
        """Whether nobody has removed it."""
        return exists(self.store.storage, self.name)

    def end(self) -> None:
        """Removes it, durably; idempotent."""
        self.store.storage.delete([self.name])


def stand(launch: Launch) -> Standing:
    """Announces the calling process as the saver of ``launch``; durable when it returns.

    Where there is a newer launch by then, it does not stand: that one may have looked for it before it was there.

    Raises:
        StorageError: not known to be announced.
    """
    store, run = launch.run.store, launch.run.number
    attempt = nonce()
    name = layout.hold(run, f"saver-{launch.number:06d}-{attempt}")
    hold = Hold(run=int(run), created=utc_now(), owner=store.owner, publishes=None, attempt=attempt)
    create_once(store.storage, name, hold)
    store.await_visibility()
    standing = Standing(store, name, launch.number)
    if launch.fenced():
        standing.end()
    return standing


def find_standing(store: Store, run: RunNumber) -> list[Standing]:
    """The standing holds of a run, as of now, from their names alone."""
    listed = (one.name for one in store.storage.list(layout.holds_folder(run)))
    found = ((name, _STANDING.fullmatch(name.leaf)) for name in listed)
    return [Standing(store, name, int(match[1])) for name, match in found if match]


def is_standing(name: ObjectName) -> bool:
    """Whether this is the name of a standing hold."""
    return _STANDING.fullmatch(name.leaf) is not None


def saver_is_dead(standing: Standing) -> bool:
    """Whether its saver is provably gone, or given for lost."""
    try:
        owner = load(standing.store.storage, standing.name, Hold).owner
    except ObjectMissing:
        return True
    except Damaged:
        return False
    return standing.store.liveness(owner) in (Liveness.DEAD, Liveness.REBOOTED)


def trainer_lives(standing: Standing, run: RunNumber) -> bool:
    """Whether the trainer that the saver works for is provably alive: then it is not about to end by itself."""
    try:
        info = load(standing.store.storage, layout.launch(run, standing.launch), LaunchInfo)
    except (Damaged, ObjectMissing):
        return False
    return standing.store.liveness(info.owner) is Liveness.ALIVE
