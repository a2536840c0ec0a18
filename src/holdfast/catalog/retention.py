"""What retention keeps and deletes in one run: a pure plan over facts, that can be printed before it is executed.

The rules, in this order of authority:

1. Nothing is deleted while something that protects records cannot be read.
2. The head, the newest verified checkpoint of its line, the one that the
   newest start of this or another run resumed from, tagged, pinned and
   quarantined ones and fork points are always kept.
3. Only what is older than the newest verified checkpoint of the head's line
   may go: a younger one has not proved yet that it can replace anything.
4. The policy is asked about the ancestor line of the head from that verified
   checkpoint on backwards, without quarantined ones: ``latest(3)`` counts
   neither damaged ones, nor ones that a rollback has abandoned.
5. An abandoned checkpoint goes as soon as the line has a verified one of the
   same step or a later one: the work that it held has been done again. Tag it
   to keep it.

Damaged records are not in the plan at all: they are neither counted nor
deleted. Records of other runs are not even looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import NO_MARKS, RecordMarks
from holdfast.ids import Order, RecordAddress, RecordId, RunNumber
from holdfast.records import Record, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A committed checkpoint as policies see it."""

    record: Record
    marks: RecordMarks

    @property
    def id(self) -> RecordId:
        """Its record id."""
        return RecordId(self.record.id)

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
        return self.record.address.order


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
    unreadable: Sequence[str] = ()
    """Objects that might protect a record and cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What is kept, for which reasons, and what goes."""

    keep: Mapping[RecordId, tuple[str, ...]]
    """Every kept record of the run, oldest first, with at least one reason."""
    delete: tuple[RecordAddress, ...]
    """Oldest first."""
    never: Mapping[RecordId, tuple[str, ...]]
    """Of those kept, the ones that no policy may delete, and what protects them."""

    def explain(self) -> list[str]:
        """One line per record that is kept, for people."""
        return [f"{id_}: {'; '.join(reasons)}" for id_, reasons in self.keep.items()]


def plan_retention(keep: Keep, facts: RetentionFacts) -> RetentionPlan:
    """The plan of one run. Pure; what it deletes shrinks when a protection is added, and never grows.

    Args:
        keep: the keep policy, as ``policy.kept``.
        facts: what is known about the run.
    """
    candidates = _candidates(facts)
    line = _line(facts.lineage, candidates)
    proven = next((one for one in line if _counts(one) and one.marks.verified), None)
    never = _protected(candidates, line, proven, facts)
    wanted = _wanted(keep, line, proven)
    on_line = {one.id for one in line}
    reasons = {
        id_: (*never.get(id_, ()), *wanted.get(id_, ())) or _unproven(one, id_ in on_line, proven)
        for id_, one in candidates.items()
    }
    kept = {id_: why for id_, why in reasons.items() if why}
    delete = tuple(one.record.address for one in candidates.values() if one.id not in kept)
    return RetentionPlan(keep=kept, delete=delete, never=never)


def _candidates(facts: RetentionFacts) -> dict[RecordId, Candidate]:
    records = facts.lineage.order
    return {
        RecordId(record.id): Candidate(record=record, marks=facts.marks.get(RecordId(record.id), NO_MARKS))
        for record in records
    }


def _line(lineage: Lineage, candidates: Mapping[RecordId, Candidate]) -> list[Candidate]:
    found = (candidates.get(RecordId(target.id)) for target in lineage.line())
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
    if facts.resumed_from is not None:
        why[RecordId(facts.resumed_from.id)].append("the newest start resumed from it")
    for id_, one in candidates.items():
        why[id_] += _attached(one, facts)
    return {id_: tuple(why[id_]) for id_ in candidates if why[id_]}


def _attached(one: Candidate, facts: RetentionFacts) -> list[str]:
    reasons = [f"tag {tag}" for tag in facts.tags.get(one.id, ())]
    reasons += [f"{run} was forked from it" for run in facts.forks.get(one.id, ())]
    reasons += [f"the newest start of {run} resumed from it" for run in facts.resumed_elsewhere.get(one.id, ())]
    reasons += ["pinned"] if one.marks.pinned else []
    reasons += ["quarantined: only a person deletes it"] if one.marks.quarantined else []
    return reasons + [f"{name} cannot be read and may protect it" for name in facts.unreadable]


def _wanted(keep: Keep, line: Sequence[Candidate], proven: Candidate | None) -> dict[RecordId, tuple[str, ...]]:
    if proven is None:
        return {}
    counted = [one for one in line if _counts(one) and one.order <= proven.order]
    return {id_: (why,) for id_, why in keep(counted).items()}


def _unproven(one: Candidate, on_line: bool, proven: Candidate | None) -> tuple[str, ...]:
    """Why ``one`` must stay although nothing wants it; empty: it may go."""
    if proven is None:
        return ("no checkpoint of the line is verified yet",)
    if on_line:
        return ("newer than the newest verified one",) if one.order > proven.order else ()
    ahead = one.step > proven.step
    return ("abandoned by a rollback, and further than the newest verified one",) if ahead else ()
