"""What retention keeps and deletes in one run: a pure plan over facts, that can be printed before it is executed.

The rules, in this order of authority:

1. Nothing is deleted while something that protects records cannot be read.
2. The head, the newest verified checkpoint of its line, the newest good one
   (what a rollback goes back to), the next one that may become good where the
   training wants that, the one that the newest start of this or another run
   resumed from, tagged, pinned and quarantined ones and fork points
   are always kept.
3. Only what is older than the newest verified checkpoint of the head's line
   may go: a younger one has not proved yet that it can replace anything.
4. The policy is asked about the ancestor line of the head from that verified
   checkpoint on backwards, without quarantined ones: ``latest(3)`` counts
   neither damaged ones, nor ones that a rollback has abandoned.
5. An abandoned checkpoint goes as soon as the line has a verified one of the
   same step or a later one: the work that it held has been done again. Tag it
   to keep it.
6. A limit takes away what only the policy wants, the least worth and the oldest
   first, until the rest fits, and nothing else. What would free no byte stays.

Planning again on what a plan has left deletes nothing more. There is one
exception: where a clock went back and forth, a limit may take away the
checkpoint that kept two others in different spans of ``every(hours=)``.

Bytes are those of the run's own packs, of whatever lies there. A pack goes when
the last record that names it does, so a deletion frees the packs that no
remaining record names. That is an approximation: a repack moves segments to
packs that no record names, which then count, and cannot be freed by any plan;
and the sweep that executes a plan may find more to be needed than records name
(a second copy of a segment, a save in flight). Where the sizes of packs are not
known, those that the oldest record names count for as much as it has stored,
and those that each later one names first for what that one has stored.
Manifests and marks are small and do not count; nor do packs that all runs share,
for no plan of one run can free them.

Damaged records are not in the plan at all: they are neither counted nor
deleted. Records of other runs are not even looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast.catalog.layout import SHARED_PACKS
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import NO_MARKS, RecordMarks
from holdfast.ids import Order, RecordAddress, RecordId, RunNumber
from holdfast.records import Record, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A committed checkpoint as policies see it."""

    id: RecordId
    """Its record id; beside the record, for checking ten thousand ids once more and once more takes long."""
    record: Record
    marks: RecordMarks

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.record.step

    @property
    def epoch(self) -> int | None:
        """The epoch, from 0, that it was saved in."""
        return self.record.epoch

    @property
    def seconds(self) -> float:
        """When it was created, in seconds since 1970."""
        return datetime.fromisoformat(self.record.created).timestamp()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The late ones included."""
        return self.marks.metrics(self.record)

    @property
    def order(self) -> Order:
        """Its place in the run."""
        return Order(self.record.launch, self.record.timeline, self.record.step)


Keep = Callable[[Sequence[Candidate]], Mapping[RecordId, str]]
"""A keep policy: from the line, newest first, to what to keep and why; ``policy.kept`` of `holdfast.policy` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionFacts:
    """What is known about a run when its retention is planned."""

    lineage: Lineage
    marks: Mapping[RecordId, RecordMarks] = field(default_factory=dict)
    tags: Mapping[RecordId, Sequence[str]] = field(default_factory=dict)
    """Names of the tags of each record."""
    forks: Mapping[RecordId, Sequence[RunNumber]] = field(default_factory=dict)
    """Runs that began at each record."""
    resumed_from: Target | None = None
    """Where the newest start began."""
    resumed_elsewhere: Mapping[RecordId, Sequence[RunNumber]] = field(default_factory=dict)
    """Other runs whose newest start began at each record."""
    good_after: int | None = None
    """Steps after which a checkpoint earns the mark good, where the training wants to go back to such ones."""
    unreadable: Sequence[str] = ()
    """Objects that might protect a record and cannot be read."""
    packs: Mapping[str, int] = field(default_factory=dict)
    """The run's own packs and their bytes; empty: not known."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many bytes a run may have."""

    bytes: int
    text: str
    """As it is written in the policy."""
    worths: Callable[[Sequence[Candidate]], Mapping[RecordId, int]]
    """From the line, newest first, to how much each wanted one is worth: the lowest goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a limit has come to. Bytes as the module says."""

    limit: int
    text: str
    wanted: int
    """What all that would be kept without the limit takes."""
    kept: int
    """What is left of that."""

    def __str__(self) -> str:
        if self.kept <= self.limit:
            return f"{self.text}: {self.kept} bytes are kept"
        return f"{self.text} is not reached: {self.kept} bytes are kept, for what protected checkpoints need"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What is kept, for which reasons, and what goes."""

    keep: Mapping[RecordId, tuple[str, ...]]
    """Every kept record of the run, oldest first, with at least one reason."""
    delete: tuple[RecordAddress, ...]
    """Oldest first."""
    never: Mapping[RecordId, tuple[str, ...]]
    """Of those kept, the ones that no policy may delete, and what protects them."""
    cut: Mapping[RecordId, str] = field(default_factory=dict)
    """Of those deleted, the ones that the policy wants and a limit leaves no room for, and why."""
    room: Room | None = None
    """What the limit has come to; None: there is none."""

    def explain(self) -> list[str]:
        """One line per record that is kept, for people."""
        return [f"{id_}: {'; '.join(reasons)}" for id_, reasons in self.keep.items()]


def plan_retention(keep: Keep, facts: RetentionFacts, limit: Limit | None = None) -> RetentionPlan:
    """The plan of one run. Pure; without a limit, what it deletes shrinks when a protection is added.

    Args:
        keep: the keep policy, as ``policy.kept``.
        facts: what is known about the run.
        limit: of the policy, as ``policy.limit``.
    """
    candidates = _candidates(facts)
    line = _line(facts.lineage, candidates)
    proven = next((one for one in line if _counts(one) and one.marks.verified), None)
    never = _protected(candidates, line, proven, facts)
    asked = _asked(line, proven)
    wanted = {id_: (why,) for id_, why in keep(asked).items()} if asked else {}
    on_line = {one.id for one in line}
    reasons = {
        id_: (*never.get(id_, ()), *wanted.get(id_, ())) or _unproven(one, id_ in on_line, proven)
        for id_, one in candidates.items()
    }
    kept = {id_: why for id_, why in reasons.items() if why}
    cut, room = ({}, None) if limit is None else _within(limit, facts, kept, _least_first(limit, asked, wanted, never))
    delete = tuple(one.record.address for one in candidates.values() if one.id not in kept or one.id in cut)
    left = {id_: why for id_, why in kept.items() if id_ not in cut}
    return RetentionPlan(keep=left, delete=delete, never=never, cut=cut, room=room)


def _candidates(facts: RetentionFacts) -> dict[RecordId, Candidate]:
    ids = ((RecordId(record.id), record) for record in facts.lineage.order)
    return {id_: Candidate(id=id_, record=record, marks=facts.marks.get(id_, NO_MARKS)) for id_, record in ids}


def _line(lineage: Lineage, candidates: Mapping[RecordId, Candidate]) -> list[Candidate]:
    by_text = {str(id_): one for id_, one in candidates.items()}
    found = (by_text.get(target.id) for target in lineage.line())
    return [one for one in found if one is not None]


def _counts(one: Candidate) -> bool:
    return not one.marks.quarantined


def _protected(
    candidates: Mapping[RecordId, Candidate],
    line: Sequence[Candidate],
    proven: Candidate | None,
    facts: RetentionFacts,
) -> dict[RecordId, tuple[str, ...]]:
    why: dict[RecordId, list[str]] = defaultdict(list)
    if line:
        why[line[0].id].append("the head")
    if proven is not None:
        why[proven.id].append("the newest verified one")
    if (good := _newest_good(line) or _newest_good([*candidates.values()][::-1])) is not None:
        why[good.id].append("the newest good one")
    if (aspirant := _aspirant(line, facts.good_after)) is not None:
        why[aspirant.id].append("it may become good")
    if facts.resumed_from is not None:
        why[RecordId(facts.resumed_from.id)].append("the newest start resumed from it")
    for id_, one in candidates.items():
        why[id_] += _attached(one, facts)
    return {id_: tuple(why[id_]) for id_ in candidates if why[id_]}


def _newest_good(newest_first: Iterable[Candidate]) -> Candidate | None:
    return next((one for one in newest_first if one.marks.good and _counts(one)), None)


def _aspirant(line: Sequence[Candidate], good_after: int | None) -> Candidate | None:
    """The next one to become good, where rollbacks go there: else each would be gone before it has lasted so long.

    One that has not become good by the save after it could have, never will: its place goes to the next one.
    """
    if good_after is None or not line:
        return None
    good = _newest_good(line)
    reach = good_after + line[0].step - line[min(1, len(line) - 1)].step
    waiting = [
        one
        for one in line
        if (good is None or one.order > good.order) and line[0].step - one.step <= reach and _might(one)
    ]
    return waiting[-1] if waiting else None


def _might(one: Candidate) -> bool:
    return _counts(one) and not one.record.has_nan


def _attached(one: Candidate, facts: RetentionFacts) -> list[str]:
    reasons = [f"tag {tag}" for tag in facts.tags.get(one.id, ())]
    reasons += [f"{run} was forked from it" for run in facts.forks.get(one.id, ())]
    reasons += [f"the newest start of {run} resumed from it" for run in facts.resumed_elsewhere.get(one.id, ())]
    reasons += ["pinned"] if one.marks.pinned else []
    reasons += ["quarantined: only a person deletes it"] if one.marks.quarantined else []
    return reasons + [f"{name} cannot be read and may protect it" for name in facts.unreadable]


def _asked(line: Sequence[Candidate], proven: Candidate | None) -> list[Candidate]:
    """What the policy is asked about."""
    return [] if proven is None else [one for one in line if _counts(one) and one.order <= proven.order]


def _unproven(one: Candidate, on_line: bool, proven: Candidate | None) -> tuple[str, ...]:
    """Why ``one`` must stay although nothing wants it; empty: it may go."""
    if proven is None:
        return ("no checkpoint of the line is verified yet",)
    if on_line:
        return ("newer than the newest verified one",) if one.order > proven.order else ()
    ahead = one.step > proven.step
    return ("abandoned by a rollback, and further than the newest verified one",) if ahead else ()


def _least_first(
    limit: Limit, asked: Sequence[Candidate], wanted: Iterable[RecordId], never: Iterable[RecordId]
) -> list[RecordId]:
    """What a limit may take away, in that order."""
    free = set(wanted).difference(never)
    worths = limit.worths(asked)
    return sorted((one.id for one in asked[::-1] if one.id in free), key=lambda id_: worths.get(id_, 0))


def _within(
    limit: Limit, facts: RetentionFacts, kept: Mapping[RecordId, Sequence[str]], least_first: Iterable[RecordId]
) -> tuple[dict[RecordId, str], Room]:
    """What has to go, and why, so that the bytes of ``kept`` are within the limit."""
    packs = Packs.of(facts.lineage.order, facts.packs)
    for id_ in packs.names.keys() - kept.keys():
        packs.drop(id_)
    wanted, gone = packs.bytes, list[RecordId]()
    for id_ in least_first:
        if packs.bytes <= limit.bytes:
            break
        packs.drop(id_)
        gone.append(id_)
    # Those whose packs stay for others in any case would have gone for nothing.
    needless = {id_ for id_ in reversed(gone) if packs.take_back(id_)}
    cut = {id_: f"{'; '.join(kept[id_])}, but {limit.text} leaves no room" for id_ in gone if id_ not in needless}
    return cut, Room(limit=limit.bytes, text=limit.text, wanted=wanted, kept=packs.bytes)


@dataclass(slots=True, kw_only=True)
class Packs:
    """The bytes of a run's packs, as records go; see the module for what that leaves out."""

    names: Mapping[RecordId, Sequence[str]]
    """The packs that each record names."""
    sizes: Mapping[str, int]
    users: Counter[str]
    """How many of the remaining records name each pack."""
    bytes: int
    """Of all packs that are left."""

    @classmethod
    def of(cls, records: Iterable[Record], sizes: Mapping[str, int]) -> Packs:
        """All packs of a run, with all of its records.

        Args:
            records: oldest first.
            sizes: of all packs that are there; empty: not known.
        """
        records = list(records)
        known = sizes or _estimated(records)
        names = {RecordId(one.id): [*{*_named(one)} & known.keys()] for one in records}
        users = Counter(name for named in names.values() for name in named)
        return cls(names=names, sizes=known, users=users, bytes=sum(known.values()))

    def drop(self, id_: RecordId) -> None:
        """A record goes, and the packs that only it named."""
        for name in self.names[id_]:
            self.users[name] -= 1
            self.bytes -= 0 if self.users[name] else self.sizes[name]

    def take_back(self, id_: RecordId) -> bool:
        """A record that has gone stays after all, if it costs nothing; whether it does."""
        if any(self.sizes[name] for name in self.names[id_] if not self.users[name]):
            return False
        self.users.update(self.names[id_])
        return True


def _named(record: Record) -> Sequence[str]:
    """The packs of a record; what it has stored stands for those that it does not name."""
    own = [name for name in record.packs if not name.startswith(SHARED_PACKS)]
    return own or [record.id]


def _estimated(records: Iterable[Record]) -> dict[str, int]:
    """Sizes of packs, as far as records tell: what one has stored lies in the packs that it is the first to name."""
    sizes: dict[str, int] = {}
    for record in records:
        first = [name for name in dict.fromkeys(_named(record)) if name not in sizes]
        each, rest = divmod(record.bytes.stored, len(first) or 1)
        sizes.update({name: each + (rest if n == 0 else 0) for n, name in enumerate(first)})
    return sizes
