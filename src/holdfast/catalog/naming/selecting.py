"""One checkpoint of a run, by step, epoch, mark or metric.

Everything is looked up on the ancestor line of the head, forks followed into
the run that they left: after a rollback the abandoned timeline has checkpoints
of the same steps, and those are not meant. They are named in the error
instead, and can be had by their id.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable, Iterator

from holdfast.catalog.marks import NO_MARKS, RecordMarks, read_marks
from holdfast.catalog.naming.grammar import AtEpoch, AtStep, BestBy, Good, Last, Selector
from holdfast.catalog.naming.metrics import measured
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.runs import Run
from holdfast.errors import UnknownReference
from holdfast.ids import RecordAddress, RecordId, RunNumber
from holdfast.records import Record, Target

MENTIONED = 4
"""Candidates that an error lists."""


def ancestor_line(run: Run) -> Iterator[Record]:
    """The head of a run and its ancestors, newest first, into the runs that it was forked from.

    Lazy. A record that is damaged or gone is passed over.
    """
    lineage, seen = run.lineage(), set[RunNumber]()
    at = lineage.head
    while at is not None and RunNumber(at.run) not in seen:
        seen.add(RunNumber(at.run))
        if at.run != run.number:
            # Its number is all that the line needs, so that a damaged or lost run.json cuts off nothing.
            run = Run.by_number(run.store, at.run)
            lineage = run.lineage()
        at = yield from _in_run(lineage.ancestors(at), run.number, lineage.order)


def _in_run(
    targets: Iterable[Target], number: RunNumber, order: Iterable[Record]
) -> Generator[Record, None, Target | None]:
    records = {record.address: record for record in order}
    for target in targets:
        if target.run != number:
            return target
        record = records.get(target.address)
        if record is not None:
            yield record
    return None


def select(run: Run, selector: Selector) -> Record:
    """The record of ``run`` that ``selector`` means.

    Raises:
        UnknownReference: none; near misses and candidates elsewhere are in the message.
        Damaged: the one that is meant cannot be read, or what says which one that is.
    """
    match selector:
        case Last():
            return _last(run)
        case AtStep(step):
            return _at_step(run, step)
        case AtEpoch(epoch):
            return _at_epoch(run, epoch)
        case Good():
            return _good(run)
        case BestBy():
            return _best(run, selector)


def _check_head(run: Run) -> None:
    """Without the newest start the line is not known: the last record may be on one that was abandoned."""
    hidden = run.lineage().hidden
    if hidden is not None:
        raise hidden.error


def _last(run: Run) -> Record:
    _check_head(run)
    found = next(ancestor_line(run), None)
    newest = found.address.order if found is not None and found.run == run.number else None
    for broken in reversed(run.damaged()):
        if newest is None or RecordAddress.from_name(broken.name).order > newest:
            # Anything older would be another checkpoint than the one that was asked for.
            raise broken.error
    if found is None:
        raise UnknownReference(f"{describe(run)} has no checkpoint yet{_others_of_name(run)}")
    return found


def _at_step(run: Run, step: int) -> Record:
    line = list(ancestor_line(run))
    found = next((record for record in line if record.step == step), None)
    if found is not None:
        return found
    _raise_damaged(run.damaged(), step)
    aside = [record for record in run.records() if record.step == step]
    if aside:
        listed = ", ".join(f"{record.id} (launch {record.launch}, timeline {record.timeline})" for record in aside)
        raise UnknownReference(
            f"step {step} is not on the line of {describe(run)}; abandoned timelines have it: {listed};"
            " ask for one of these ids"
        )
    raise UnknownReference(f"{describe(run)} has no checkpoint of step {step}{_nearest(step, line)}")


def _raise_damaged(damaged: Iterable[DamagedObject], step: int) -> None:
    for broken in damaged:
        if RecordAddress.from_name(broken.name).order.step == step:
            raise broken.error


def _nearest(step: int, line: Iterable[Record]) -> str:
    steps = sorted({record.step for record in line}, key=lambda other: (abs(other - step), other))[:MENTIONED]
    return f"; nearest: {', '.join(map(str, sorted(steps)))}" if steps else "; it has none at all yet"


def _at_epoch(run: Run, epoch: int) -> Record:
    line = list(ancestor_line(run))
    found = next((record for record in line if record.epoch == epoch), None)
    if found is None:
        known = sorted({record.epoch for record in line if record.epoch is not None})
        have = f"it has {known[0]} to {known[-1]}" if known else "its checkpoints have no epochs"
        raise UnknownReference(f"{describe(run)} has no checkpoint of epoch {epoch}; {have}")
    return found


def _good(run: Run) -> Record:
    _check_head(run)
    for record, marks in _marked(run):
        if marks.good and not marks.quarantined:
            return record
    raise UnknownReference(f"{describe(run)} has no checkpoint that is marked good; try '{run.number}@last'")


def _best(run: Run, wanted: BestBy) -> Record:
    _check_head(run)
    known: list[tuple[float, Record]] = []
    names: set[str] = set()
    # Oldest first, so that of equal values the older one is the best, as in retention.
    for record, marks in reversed([*_marked(run)]):
        # A metric of the run that was forked is another measurement.
        metrics = marks.metrics(record) if record.run == run.number else {}
        names |= metrics.keys()
        value = measured(metrics.get(wanted.metric))
        if value is not None and not marks.quarantined:
            known.append((value, record))
    if not known:
        raise UnknownReference(_no_metric(run, wanted.metric, names))
    return min(known, key=lambda pair: wanted.mode.cost(pair[0]))[1]


def _no_metric(run: Run, metric: str, names: set[str]) -> str:
    if metric in names:
        return f"{describe(run)} has no checkpoint where {metric!r} is a finite number"
    known = near_misses(metric, names) or (f"; it has: {', '.join(sorted(names)[:9])}" if names else "")
    return f"{describe(run)} has no checkpoint with the metric {metric!r}{known}"


def _marked(run: Run) -> Iterator[tuple[Record, RecordMarks]]:
    marks: dict[RunNumber, dict[RecordId, RecordMarks]] = {}
    for record in ancestor_line(run):
        number = RunNumber(record.run)
        if number not in marks:
            marks[number] = read_marks(run.store, number)
        yield record, marks[number].get(RecordId(record.id), NO_MARKS)


def describe(run: Run) -> str:
    """A run as messages name it: number, and name if it has one."""
    return f"{run.number} ({run.info.name})" if run.info.name else str(run.number)


def _others_of_name(run: Run) -> str:
    if run.info.name is None:
        return ""
    earlier = [RunNumber(info.number) for info in run.store.named(run.info.name) if info.number != run.number]
    return f"; others of this name: {', '.join(map(str, earlier[-MENTIONED:]))}" if earlier else ""


def near_misses(word: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with what comes nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(word, sorted(set(known)), n=MENTIONED, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
