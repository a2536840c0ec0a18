"""What a checkpoint restores bit for bit and what it does not; said when it is saved and when it is resumed from."""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.records import Exactness, Record
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.steps.progress import Progress
from holdfast.state.loaders import LoaderPosition

logger = logging.getLogger(__name__)


def exactness_of(position: LoaderPosition | None, progress: Progress, world: int) -> dict[str, Exactness]:
    """The sides of a checkpoint that is made now; ``position`` is of the loader, where there is one."""
    ranks = "one process" if world == 1 else f"{world} ranks; another number of them derives its random streams anew"
    found = {
        "rng": Exactness(exact=True, reason="all generators were captured at the boundary"),
        "topology": Exactness(exact=True, reason=ranks),
    }
    if not progress.clean:
        found["gradients"] = Exactness(exact=False, reason="saved in the middle of an accumulation")
    elif progress.lagging:
        found["gradients"] = Exactness(exact=False, reason="an optimizer was in the middle of an accumulation")
    if position is None:
        return found | {"data": Exactness(exact=False, reason="the loop gets its data elsewhere")}
    parts = position.exactness()
    lost = Exactness(
        exact=False, reason="the loop was left with a batch of which nobody can say that a step has used it"
    )
    return found | {"data": lost if progress.unused else parts["order"], "augmentation": parts["augmentation"]}


def say_resumed(record: Record, notes: list[str], group: Group, note: Callable[[str, str], None]) -> None:
    """Says what is not as it was: ``notes`` of random states on each rank, everything else on the first one.

    Another number of ranks is for the journal, too, which ``note`` writes.
    """
    for text in notes:
        logger.warning("resuming %s: %s", record.address, text)
    if group.rank == 0:
        say_inexact(record)
        if record.world != group.size:
            note("resharded", say_resharded(record, group.size))


def say_inexact(record: Record) -> None:
    """Warns of each side that is not exact."""
    for side, exactness in record.exactness.items():
        if not exactness.exact:
            logger.warning("resuming %s is inexact in %s: %s", record.address, side, exactness.reason)


def say_resharded(record: Record, size: int) -> str:
    """Warns that another number of ranks goes on; gives the text."""
    text = (
        f"saved by {record.world} and resumed by {size} ranks: random streams are derived anew from checkpoint and "
        "rank; with holdfast.Sampler the data goes on where it was, other loaders begin their epoch anew"
    )
    logger.warning("%s: %s", record.address, text)
    return text
