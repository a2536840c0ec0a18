"""One launch of a run, open for saving: claimed, drained, and standing on the record that it resumed from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.catalog.config import config_changes, config_digest
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.marks import NO_MARKS, read_marks
from holdfast.catalog.parts import remove_stale
from holdfast.catalog.readers import reading
from holdfast.catalog.references import resolve
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.errors import Damaged, NotFound, NothingToResume, RefusedFresh
from holdfast.ids import Order, RecordAddress, RecordId, RunName, RunNumber, nonce
from holdfast.policy import Policy
from holdfast.records import Kind, Record, Target
from holdfast.recovery.choice import KnownRun, NewRun, RunChoice, choose_run
from holdfast.recovery.fresh import restart_evidence
from holdfast.recovery.group import Alone, Group
from holdfast.recovery.joining import NOTICEABLE, SEE_SECONDS, Joining, await_store, check_shared
from holdfast.recovery.launcher import LauncherFacts, command_line, environment_facts
from holdfast.recovery.resume import Rejected, candidates

logger = logging.getLogger(__name__)

MODES = ("auto", "must", "never")

OPEN_SECONDS = 900.0
"""How much longer the other ranks wait while rank 0 waits for the savers of an earlier launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for, checked."""

    url: str | Path
    want: NewRun | RunName | RunNumber | None
    resume: str
    config: Mapping[str, Any]
    save: Policy
    keep: Policy
    stage: Policy | None = None
    """When to keep a state in memory, beside the saves."""
    total: int | None = None
    facts: LauncherFacts
    patience: float = 600.0
    """Seconds for which ranks wait for each other."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A launch and where it stands. Not thread-safe."""

    store: Store
    run: Run
    launch: Launch
    environment: dict[str, str]
    config_digest: str
    begin: RecordAddress | None
    """Where to begin; None: at the head."""
    asked: RecordAddress | None
    """What ``resume=`` names."""
    must: bool
    forked_from: RecordAddress | None
    group: Group
    secret: str
    """Known to all ranks of this launch and to nobody else, a nonce."""
    patience: float
    """Seconds for which ranks wait for each other."""
    timeline: int = -1
    begun: bool = False
    """Whether a start was noted: a restore, of parts perhaps, or one from zero."""
    parent: RecordAddress | None = None
    """The newest record of this line, which the next save follows."""
    resumed: Record | None = None
    rejected: Rejected = field(default_factory=Rejected)

    def resume(
        self, load: Callable[[Record], None], begin: RecordAddress | None = None, asked: RecordAddress | None = None
    ) -> Record | None:
        """Loads the best candidate that can be loaded, and notes the new timeline; None: a fresh start.

        Only damage moves on to the next candidate: a model that does not fit would not fit an older one either,
        and a disk that cannot be read right now is no reason to lose work.

        Args:
            load: loads a record.
            begin: where to begin; None: where the session does.
            asked: the record that a person has named: no other one is taken in its place.

        Raises:
            Damaged: the record that was asked for cannot be read.
            RefusedFresh: there are records, and none can be used.
            NothingToResume: "must", and there are none.
        """
        found = candidates(self.store, self.run, self.rejected, begin or self.begin)
        while (record := self._next(found)) is not None:
            try:
                load(record)
            except Damaged as error:
                if record.address in (asked, self.asked):
                    raise
                logger.error("%s cannot be used: %s", record.address, error)
                self.rejected.add(record.address, error)
            else:
                self._note(record, self._why(record))
                return record
        self.group.told(self._check_fresh, "whether there is nothing to resume from")
        self._note(None, "there was nothing to resume from")
        return None

    def _next(self, found: Iterator[Record]) -> Record | None:
        """The next one to try, as rank 0 sees it; damaged ones it has passed over."""
        if self.group.size == 1:
            return next(found, None)
        return self.group.told(lambda: next(found, None), "what to resume from", Record | None)

    def address(self, step: int) -> RecordAddress:
        """Where a checkpoint of this launch and timeline lies."""
        order = Order(self.launch.number, self.timeline, step)
        return RecordAddress(self.run.number, order, RecordId.derive(self.store.info.id, self.run.number, order))

    def newest(self, known: Record | None) -> Record:
        """The record that rank 0 knows for the newest of its line, or the one that `resume` would try first.

        Raises:
            NothingToResume: there is none, or this launch has begun without one.
        """
        known = self.group.told(lambda: known, "the newest checkpoint", Record | None)
        found = candidates(self.store, self.run, self.rejected, self.begin)
        record = known or (None if self.begun else self._next(found))
        if record is None:
            raise NothingToResume(f"{self.run.number} has no checkpoint yet, so there is nothing to restore")
        return record

    def has_work(self) -> bool:
        """Whether the run has checkpoints of its own, readable or not."""
        return self.group.told(
            lambda: bool(self.run.records() or self.run.damaged()), "whether the run has checkpoints", bool
        )

    def named(self, reference: str) -> Record:
        """The record that a reference means; errors as in `holdfast.catalog.references.resolve`."""
        return self.group.told(
            lambda: resolve(self.store, reference, default_run=self.run.number), "what is meant", Record
        )

    def begin_with_parts(self, record: Record, only: tuple[str, ...]) -> None:
        """Notes a start that loaded parts of a checkpoint; until it saves, that checkpoint stays the head."""
        self._note(record, f"only {', '.join(only)} of it, as asked for")

    def _record_start(self, why: str) -> None:
        # A sweep of another run does not see this start before it is there: hold on to the record until then.
        with reading(self.store, [self.parent] if self.parent else []):
            self.launch.record_start(self.timeline, self.parent, why)

    def _why(self, record: Record) -> str:
        if self.rejected.reasons:
            return f"the newest that can be used; passed over: {self.rejected}"
        return "asked for" if self.begin else "the head of the run"

    def _check_fresh(self) -> None:
        if self.rejected.reasons or self.begin:
            raise RefusedFresh(
                f"{self.run.number} has checkpoints, but none can be used: {self.rejected}; "
                "run 'holdfast verify', or ask for a new run with run=holdfast.new_run(...)"
            )
        if self.must:
            raise NothingToResume(f"resume='must', but {self.run.number} has no checkpoint; check run= and the path")

    def _note(self, record: Record | None, why: str) -> None:
        self.timeline += 1
        self.parent = record.address if record else None
        self.resumed = record
        self.group.told(lambda: self._record_start(why), "the start of a new timeline")
        self.begun = True
        place = f"resumes from {record.address}" if record else "starts from zero"
        level = logging.WARNING if self.rejected.reasons else logging.INFO
        logger.log(level if self.group.rank == 0 else logging.DEBUG, "%s %s: %s", self.run.number, place, why)
        self.rejected = Rejected()


def open_session(
    plan: Plan,
    tell: Callable[[str], None] = logger.warning,
    *,
    claim: Callable[[Store, Run], None] | None = None,
    group: Group | None = None,
) -> Session:
    """Opens the store, chooses or creates the run, and claims a launch of it.

    ``claim`` may refuse the run by raising; it is asked before there is a launch, which would fence the older ones.
    Of several ranks the first one does all this, and the others join.

    Raises:
        RefusedFresh: there is evidence of earlier work that is not in this store.
        NothingToResume: "must", and there is no such run.
        UnknownReference: ``resume`` names a record that is not there.
        StorageError: the store cannot be reached or written.
    """
    group = group or Alone()
    return _open_first(plan, tell, claim, group) if group.size == 1 else _open_all(plan, tell, claim, group)


def _open_all(
    plan: Plan, tell: Callable[[str], None], claim: Callable[[Store, Run], None] | None, group: Group
) -> Session:
    first: list[Session] = []

    def opened() -> Joining:
        first.append(_open_first(plan, tell, claim, group))
        return Joining(
            store=first[0].store.info.id,
            run=int(first[0].run.number),
            launch=first[0].launch.number,
            begin=_target(first[0].begin),
            asked=_target(first[0].asked),
            forked_from=_target(first[0].forked_from),
            secret=first[0].secret,
        )

    with group.longer(OPEN_SECONDS):
        joining = group.told(opened, "the launch", Joining)
        session = group.agreed(lambda: first[0] if first else _joined(plan, joining, claim, group), "the launch")
        visibility = check_shared(session.store, session.run, session.launch.number, group, _look_seconds(plan))
    if visibility > NOTICEABLE:
        tell(f"{session.store.url} shows what one rank writes to the others after {visibility:.1f} s")
        session.store = replace(session.store, visibility=visibility)
        session.run = session.store.run(session.run.number)
        session.launch = Launch(session.run, session.launch.number)
    return session


def _look_seconds(plan: Plan) -> float:
    return min(SEE_SECONDS, plan.patience)


def _target(address: RecordAddress | None) -> Target | None:
    return None if address is None else Target.of(address)


def _joined(plan: Plan, joining: Joining, claim: Callable[[Store, Run], None] | None, group: Group) -> Session:
    store = await_store(plan.url, joining, group.rank, _look_seconds(plan))
    run = store.run(joining.run)
    if claim is not None:
        claim(store, run)
    return Session(
        store=store,
        run=run,
        launch=Launch(run, joining.launch),
        environment=environment_facts(),
        config_digest=config_digest(plan.config),
        begin=joining.begin.address if joining.begin else None,
        asked=joining.asked.address if joining.asked else None,
        must=plan.resume == "must",
        forked_from=joining.forked_from.address if joining.forked_from else None,
        group=group,
        secret=joining.secret,
        patience=plan.patience,
    )


def _open_first(
    plan: Plan, tell: Callable[[str], None], claim: Callable[[Store, Run], None] | None, group: Group
) -> Session:
    store, is_new = _open(plan)
    source = None if plan.resume in MODES else resolve(store, plan.resume).address
    mode = plan.resume if source is None else "reference"
    choice = choose_run(plan.want, mode, source, _known(store, plan), plan.facts.job)
    evidence = restart_evidence(plan.facts, store_is_new=is_new, launches=_launches(store, choice))
    if evidence and source is None:
        raise RefusedFresh(f"nothing to continue in {store.url}: {evidence}")
    _refuse_unknown(store, choice, plan)
    if source is None:
        _refuse_older(store, choice, plan)
    run = _run(store, choice, plan)
    if claim is not None:
        claim(store, run)
    return _launched(store, run, choice, plan, source, tell, group)


def _open(plan: Plan) -> tuple[Store, bool]:
    try:
        return open_store(plan.url), False
    except NotFound as error:
        if plan.resume not in ("auto", "never"):
            raise NothingToResume(f"resume={plan.resume!r}, but {error}") from error
        if plan.facts.restarts:
            evidence = restart_evidence(plan.facts, store_is_new=True, launches=0)
            raise RefusedFresh(f"there is no store at {plan.url}: {evidence}") from error
        return open_store(plan.url, create=True), True


def _refuse_unknown(store: Store, choice: RunChoice, plan: Plan) -> None:
    """A run that cannot be read may be the one that is meant; only who asks for a new one gets a new one."""
    if choice.number is not None or isinstance(plan.want, NewRun) or choice.forked_from is not None:
        return
    damaged = store.damaged()
    if damaged:
        raise RefusedFresh(
            f"{choice.why}, but {damaged[0].name} cannot be read and may be it: {damaged[0].error}; "
            "copy it back from a mirror, say run=<number>, or holdfast.new_run(...) if a new run is meant"
        )


def _refuse_older(store: Store, choice: RunChoice, plan: Plan) -> None:
    """The newest run of a name is meant: where a newer one cannot be read, an older one is not taken in its place."""
    if choice.number is None or isinstance(plan.want, NewRun | RunNumber):
        return
    hidden = store.unreadable_after(choice.number)
    if hidden is not None:
        raise RefusedFresh(
            f"{choice.number} could be continued, but {hidden.name} cannot be read and may be the newer run that is "
            f"meant: {hidden.error}; copy it back from a mirror, or say run={int(choice.number)}"
        )


def _known(store: Store, plan: Plan) -> list[KnownRun]:
    name = plan.want.name if isinstance(plan.want, NewRun) else plan.want
    return [_know(store, info.number, plan, deep=info.name == name) for info in store.runs()]


def _know(store: Store, number: int, plan: Plan, *, deep: bool) -> KnownRun:
    """Only runs of the wanted name are looked into; of the others the name is enough."""
    run = store.run(number)
    head = run.lineage().head if deep else None
    finished = False
    if head is not None:
        marks = read_marks(store, run.number).get(head.address.id, NO_MARKS)
        records = {record.address: record for record in run.records()}
        record = records.get(head.address)
        ended = marks.final or (record is not None and record.kind is Kind.FINAL)
        finished = ended and head.step >= (plan.total or 0)
    return KnownRun(info=run.info, head=head.address if head else None, finished=finished)


def _launches(store: Store, choice: RunChoice) -> int:
    return 0 if choice.number is None else len(store.run(choice.number).launch_numbers())


def _run(store: Store, choice: RunChoice, plan: Plan) -> Run:
    if choice.number is not None:
        return store.run(choice.number)
    return store.create_run(
        choice.name,
        config=plan.config,
        config_digest=config_digest(plan.config),
        forked_from=choice.forked_from,
        job=plan.facts.job,
    )


def _launched(
    store: Store,
    run: Run,
    choice: RunChoice,
    plan: Plan,
    source: RecordAddress | None,
    tell: Callable[[str], None],
    group: Group,
) -> Session:
    earlier = run.launches()
    again = plan.facts.job is not None and any(one.job == plan.facts.job for one in earlier)
    for change in config_changes(earlier[-1].config if earlier else plan.config, plan.config):
        tell(f"{run.number}: config has changed since the last launch: {change}")
    environment = environment_facts()
    launch = begin_launch(
        run,
        job=plan.facts.job,
        command=command_line(),
        policies={"save": str(plan.save), "keep": str(plan.keep)},
        environment=environment,
        config=plan.config,
        config_digest=config_digest(plan.config),
        report=tell,
    )
    remove_stale(store, run.number, launch.number)
    logger.info("%s, launch %d: %s", run.number, launch.number, choice.why)
    return Session(
        store=store,
        run=run,
        launch=launch,
        environment=environment,
        config_digest=config_digest(plan.config),
        # A restart of the job that went back once must not go back again.
        begin=source if source and source.run == run.number and not again else None,
        asked=source,
        must=plan.resume == "must",
        forked_from=choice.forked_from,
        group=group,
        secret=nonce(),
        patience=plan.patience,
    )
