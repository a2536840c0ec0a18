"""What launches that have ended too soon say about the checkpoint that they went on from, and about the program.

Pure. Three answers, and none of them deletes or marks anything:

- *suspicion*: `TWICE` launches of one job in a row were killed, or ran out of memory, while they loaded a checkpoint or
  soon after. It is tried after the next older one, by this job and as long as nothing changes. If that one has the
  same end, it was not the checkpoint, and the newest is taken again: so no more than one is ever passed over.
- *stop*: the program has raised the same exception twice. Another checkpoint would not help.
- *storm*: more than `STORM` launches in a row have got nowhere, whatever has ended them.

A launch counts as long as job, command line, configuration and code are those of the launch that asks, and ends what
came before it if it got on or ended without a failure. It got on if it has left a checkpoint other than that of a
failure, or made `SOON` steps more than each launch before it that went on from the same checkpoint: the same 60 steps
made again and again are no progress.
"""

from __future__ import annotations

import builtins
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from holdfast import errors
from holdfast.catalog.journal.events import Ending
from holdfast.records import Target

TWICE = 2
"""How often is too often: once is an accident."""
STORM = 5
"""So many launches in a row may get nowhere."""
SOON = 50
"""Fewer steps than these are no progress, and what ends a launch so soon may be what it has loaded."""


class Blame(StrEnum):
    """What may have ended a launch, as far as its end tells."""

    PROGRAM = "the program"
    """An exception of the script: the checkpoint is innocent."""
    UNKNOWN = "unknown"
    """Killed, out of memory, a device that is lost: it may be what was loaded."""
    SURROUNDINGS = "the surroundings"
    """Network, disk, other ranks, other launches: neither of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The launch that is about to resume."""

    same: str | None
    """Equal for launches of one job with the same command line, configuration and code; None: it cannot be told."""
    by_hand: bool = False
    """Whether a person has started it, as far as anything tells: it is told, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What became of an earlier launch."""

    launch: int
    same: str | None
    """As of `Asker`."""
    first: bool = False
    """Whether launches before it have nothing to do with it, though all say that they are of one job."""
    began: bool = True
    """Whether it has begun to load, or to train."""
    origin: Target | None = None
    """What it was loading, or went on from; None: from zero."""
    ended: Ending = Ending.KILLED
    error: str = ""
    """The name of the exception and its first line."""
    steps: int = 0
    """Made since its origin, as far as anything tells."""
    saved: bool = False
    """Whether it has left a checkpoint other than that of a failure."""
    stopped: str = ""
    """Why it was not let begin."""

    @property
    def blame(self) -> Blame:
        """What may have ended it."""
        return Blame.UNKNOWN if self.ended is not Ending.FAILED else blame_of(self.error)

    @property
    def soon(self) -> bool:
        """Whether it ended while it loaded, or soon after."""
        return self.steps < SOON


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is done about it."""

    suspect: Target | None = None
    """To be tried after the next older one."""
    why: str = ""
    stop: str = ""
    """Why nothing is tried; empty: something is."""


_NETWORK = re.compile(
    r"connection|timed? ?out|timeout|network|socket|NCCL|Gloo|HTTP|SSL|temporar|unavailable|DataLoader worker", re.I
)
_DIST = re.compile(r"(Dist|Comm|Http|HTTP|Connect|Timeout|Rpc|Client|Server)\w*")
_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|(CUDA|HIP|XPU) error|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS", re.I)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_MISFITS = frozenset({"StateMismatch", "UnsupportedValue", "UnsupportedTensor", "InvalidInput", "InvalidPolicy"})
_REFUSED = frozenset({"RefusedFresh", "NothingToResume"})


def blame_of(error: str) -> Blame:
    """What an exception, given by its name and first line, speaks against.

    Example:
        >>> blame_of("KeyError: 'loss'").value, blame_of("OutOfMemoryError: CUDA out of memory").value
        ('the program', 'unknown')
        >>> blame_of("ConnectionResetError: [Errno 104]").value, blame_of("PeerLost: rank 3").value
        ('the surroundings', 'the surroundings')
    """
    name, _, text = error.partition(": ")
    if name in _MISFITS:
        return Blame.PROGRAM
    if name == "RestoreFailed":
        return Blame.UNKNOWN
    ours, known = getattr(errors, name, None), getattr(builtins, name, None)
    if isinstance(ours, type) or (isinstance(known, type) and issubclass(known, OSError) and not _of_files(name)):
        return Blame.SURROUNDINGS
    if name in ("MemoryError", "OutOfMemoryError", "AcceleratorError") or _MEMORY.search(text):
        return Blame.UNKNOWN
    return Blame.SURROUNDINGS if _DIST.match(name) or _NETWORK.search(text) else Blame.PROGRAM


def _of_files(name: str) -> bool:
    """Whether an OSError is that of a name that is wrong, which no waiting makes right."""
    return name in ("FileNotFoundError", "IsADirectoryError", "NotADirectoryError", "FileExistsError")


def decide(asker: Asker, lives: Sequence[Life]) -> Verdict:
    """What ``asker`` does about the launches before it.

    Args:
        asker: the launch that is about to resume.
        lives: the launches before it, the newest first; how many is enough: see `wanted`.
    """
    if asker.same is None:
        return Verdict()
    if lives and lives[0].stopped and lives[0].same == asker.same:
        return Verdict(stop=lives[0].stopped)
    series = _series(asker, lives)
    stop = _repeated(series) or _storm(series)
    return Verdict(stop=stop) if stop else _suspicion(series)


def wanted(asker: Asker, life: Life) -> bool:
    """Whether `decide` looks at what lies before ``life``."""
    return life.same == asker.same and not _ended_well(life) and not life.first


def _series(asker: Asker, lives: Sequence[Life]) -> list[Life]:
    """Launches in a row that got nowhere, the newest first."""
    row = [life for life in _row(asker, lives) if _counts(life)]
    got_on = (at for at, life in enumerate(row) if _got_on(life, row[at + 1 :]))
    return row[: next(got_on, len(row))]


def _row(asker: Asker, lives: Sequence[Life]) -> Iterator[Life]:
    """Those without anything between them that speaks for the checkpoint and the program."""
    for life in lives:
        if life.same != asker.same or _ended_well(life):
            return
        yield life
        if life.first:
            return


def _ended_well(life: Life) -> bool:
    return life.saved or life.ended in (Ending.COMPLETED, Ending.PREEMPTED, Ending.LEFT)


def _got_on(life: Life, before: Sequence[Life]) -> bool:
    """Whether it came farther than all before it did, so that restarts like this come to an end."""
    return life.steps >= SOON + max((one.steps for one in before if one.origin == life.origin), default=0)


def _counts(life: Life) -> bool:
    """Not if it was not let begin, or was ended before it began: it has tried nothing."""
    return life.began and not life.stopped and life.error.partition(":")[0] not in _REFUSED


def _repeated(series: Sequence[Life]) -> str:
    """The exception that is not the checkpoint's: an ordinary one twice, or any from two checkpoints."""
    raised = [life for life in series if life.ended is Ending.FAILED and life.blame is not Blame.SURROUNDINGS]
    for same, times in Counter(map(_exception, raised)).most_common():
        found = [life for life in raised if _exception(life) == same]
        if times < TWICE or (found[0].blame is not Blame.PROGRAM and len({life.origin for life in found}) < TWICE):
            continue
        origins = list(dict.fromkeys(_place(life) for life in found))
        return (
            f"launches {_numbers(found)} have all ended with '{found[0].error}' after they went on from "
            f"{' and '.join(origins)}, and none of them got on: that is not the checkpoint"
        )
    return ""


def _exception(life: Life) -> str:
    """Equal for exceptions that are one: of what ran out of memory the message has numbers that mean nothing."""
    return _ADDRESS.sub("0x", life.error) if life.blame is Blame.PROGRAM else life.error.partition(":")[0]


def _storm(series: Sequence[Life]) -> str:
    if len(series) <= STORM:
        return ""
    errors_ = list(dict.fromkeys(life.error or str(life.ended) for life in series))
    return f"launches {_numbers(series)} have all ended before they got on ({'; '.join(errors_[:3])})"


def _suspicion(series: Sequence[Life]) -> Verdict:
    found: dict[Target, list[Life]] = {}
    for (origin, blame, soon), lives in groupby(series, key=lambda life: (life.origin, life.blame, life.soon)):
        group = list(lives)
        if origin is not None and blame is Blame.UNKNOWN and soon and len(group) >= TWICE:
            found.setdefault(origin, group)
    if len(found) != 1:
        return Verdict()  # the same end from two checkpoints is not the checkpoint
    ((origin, group),) = found.items()
    how = ", ".join(dict.fromkeys(life.error or str(life.ended) for life in group))
    return Verdict(
        suspect=origin,
        why=f"launches {_numbers(group)} of this job ended ({how}) while they loaded it, or soon after",
    )


def _numbers(lives: Sequence[Life]) -> str:
    *rest, last = sorted(life.launch for life in lives)
    return f"{', '.join(map(str, rest))} and {last}" if rest else str(last)


def _place(life: Life) -> str:
    return "zero" if life.origin is None else str(life.origin.address)
