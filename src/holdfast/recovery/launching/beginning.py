"""How a launch begins: the store, the run that is meant, and a claim on it; of several ranks the first one does it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from holdfast.catalog.config import config_digest
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.marks import NO_MARKS, read_marks
from holdfast.catalog.naming.references import moves, resolve
from holdfast.catalog.parts import remove_stale
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.errors import NotFound, NothingToResume, RefusedFresh, UnknownReference
from holdfast.ids import RecordAddress, RunNumber, nonce
from holdfast.records import Kind, LaunchInfo, Target
from holdfast.recovery.environment.code import code_digest
from holdfast.recovery.environment.launcher import command_line, environment_facts
from holdfast.recovery.launching.choice import KnownRun, NewRun, NumberedRun, RunChoice, choose_run
from holdfast.recovery.launching.config_changes import ConfigDecision, decide_changes
from holdfast.recovery.launching.crash_loops import facts_of_launch
from holdfast.recovery.launching.fresh import restart_evidence
from holdfast.recovery.launching.joining import NOTICEABLE, SEE_SECONDS, Joining, await_store, check_shared
from holdfast.recovery.launching.session import MODES, Plan, Session
from holdfast.recovery.launching.stored_config import stored_config
from holdfast.recovery.launching.taken_over import refuse_taken_over
from holdfast.recovery.ranks.group import Alone, Group

logger = logging.getLogger(__name__)

OPEN_SECONDS = 900.0
"""How much longer the other ranks wait while rank 0 waits for the savers of an earlier launch."""


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
        Fenced: this is a restart of a job whose run another job has taken over.
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

    began = time.monotonic()  # of other ranks than the first: near enough, and before the wait for earlier savers
    with group.longer(OPEN_SECONDS):
        joining = group.told(opened, "the launch", Joining)
        session = group.agreed(lambda: first[0] if first else _joined(plan, joining, claim, group, began), "the launch")
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


def _joined(
    plan: Plan, joining: Joining, claim: Callable[[Store, Run], None] | None, group: Group, began: float
) -> Session:
    store = await_store(plan.url, joining, group.rank, _look_seconds(plan))
    run = store.run(joining.run)
    decision = _decided(store, joining.asked or run.lineage().head, plan)
    if claim is not None:
        claim(store, run)
    return Session(
        store=store,
        run=run,
        launch=Launch(run, joining.launch),
        environment=environment_facts(),
        config_digest=config_digest(decision.config),
        decision=decision,
        begin=joining.begin.address if joining.begin else None,
        asked=joining.asked.address if joining.asked else None,
        must=plan.resume == "must",
        forked_from=joining.forked_from.address if joining.forked_from else None,
        group=group,
        secret=joining.secret,
        patience=plan.patience,
        began=began,
    )


def _open_first(
    plan: Plan, tell: Callable[[str], None], claim: Callable[[Store, Run], None] | None, group: Group
) -> Session:
    store, is_new = _open(plan)
    source = None if plan.resume in MODES else _named(store, plan.resume)
    mode = plan.resume if source is None else "reference"
    free = store.free() if isinstance(plan.want, NumberedRun) else None  # first: who makes it meanwhile is known then
    choice = choose_run(
        plan.want,
        mode,
        source,
        _known(store, plan),
        restarts=plan.facts.restarts,
        moves=source is not None and moves(store, plan.resume),
        free=free,
    )
    evidence = restart_evidence(plan.facts, store_is_new=is_new, launches=_launches(store, choice))
    if evidence and source is None:
        raise RefusedFresh(f"nothing to continue in {store.url}: {evidence}")
    _refuse_unknown(store, choice, plan)
    if source is None:
        _refuse_older(store, choice, plan)
    run = _run(store, choice, plan)
    if plan.facts.restarts:
        refuse_taken_over(run, lambda launch: _is_earlier_start(launch, plan))
    if claim is not None:
        claim(store, run)
    return _launched(store, run, choice, plan, source, tell, group)


def _named(store: Store, reference: str) -> RecordAddress:
    try:
        return resolve(store, reference).address
    except UnknownReference as error:
        raise UnknownReference(f"{error}{_mode_meant(reference)}") from error


def _mode_meant(reference: str) -> str:
    near = get_close_matches(reference, MODES, n=1, cutoff=0.6)
    return f"; did you mean resume={near[0]!r}?" if near else ""


def _open(plan: Plan) -> tuple[Store, bool]:
    try:
        return open_store(plan.url, hint=plan.resume not in ("auto", "never")), False
    except NotFound as error:
        if plan.resume not in ("auto", "never"):
            raise NothingToResume(f"resume={plan.resume!r}, but {error}{_mode_meant(plan.resume)}") from error
        if plan.facts.restarts:
            evidence = restart_evidence(plan.facts, store_is_new=True, launches=0)
            raise RefusedFresh(f"there is no store at {plan.url}: {evidence}") from error
        return open_store(plan.url, create=True), True


def _refuse_unknown(store: Store, choice: RunChoice, plan: Plan) -> None:
    """A run that cannot be read may be the one that is meant; only who asks for a new one gets a new one."""
    if choice.number is not None or isinstance(plan.want, NewRun | NumberedRun) or choice.forked_from is not None:
        return
    damaged = store.damaged()
    if damaged:
        raise RefusedFresh(
            f"{choice.why}, but {damaged[0].name} cannot be read and may be it: {damaged[0].error}; "
            "copy it back from a mirror, say run=<number>, or holdfast.new_run(...) if a new run is meant"
        )


def _refuse_older(store: Store, choice: RunChoice, plan: Plan) -> None:
    """The newest run of a name is meant: where a newer one cannot be read, an older one is not taken in its place."""
    if choice.number is None or isinstance(plan.want, NewRun | NumberedRun | RunNumber):
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
    ours = deep and _is_ours(run, plan)
    return KnownRun(info=run.info, head=head.address if head else None, finished=finished, ours=ours)


def _is_ours(run: Run, plan: Plan) -> bool:
    """Whether an earlier start of this job has made the run."""
    if plan.facts.job is None or run.info.job != plan.facts.job:
        return False
    launches = run.launches()
    return not launches or _is_earlier_start(launches[0], plan)


def _is_earlier_start(launch: LaunchInfo, plan: Plan) -> bool:
    """One job may run several commands; where its launcher has restarted it, a command may name another port."""
    same = plan.facts.restarts > 0 or launch.command == command_line()
    return plan.facts.job is not None and launch.job == plan.facts.job and same


def _launches(store: Store, choice: RunChoice) -> int:
    return 0 if choice.number is None else len(store.run(choice.number).launch_numbers())


def _run(store: Store, choice: RunChoice, plan: Plan) -> Run:
    if choice.number is not None:
        return store.run(choice.number)
    _decided(store, _target(choice.forked_from), plan)  # what is refused leaves no empty run behind
    return store.create_run(
        choice.name,
        config=plan.config,
        config_digest=config_digest(plan.config),
        forked_from=choice.forked_from,
        job=plan.facts.job,
        number=choice.claims,
    )


def _policies(plan: Plan) -> dict[str, str]:
    """As text, for other processes."""
    good = {} if plan.good_after is None else {"good_after": str(plan.good_after)}
    return {"save": str(plan.save), "keep": str(plan.keep), **good}


def _went_back(run: Run, source: RecordAddress, plan: Plan) -> bool:
    """Whether an earlier start of this job has begun with ``source``: a restart of it must not go back again."""
    ours = {launch.number for launch in run.launches() if _is_earlier_start(launch, plan)}
    began = (start for start in run.starts() if start.launch in ours and start.timeline == 0)
    return any(start.resumed_from == Target.of(source) for start in began)


def _decided(store: Store, begin: Target | None, plan: Plan) -> ConfigDecision:
    """What is done about a configuration that is another one than that of the checkpoint to begin with.

    Raises:
        InvalidInput: a rule that names no key.
        StateMismatch: a change that is refused.
    """
    stored = stored_config(store, begin)
    decision = decide_changes(plan.config if stored is None else stored.config, plan.config, plan.on_config_change)
    decision.check("" if stored is None else stored.what)
    return decision


def _launched(
    store: Store,
    run: Run,
    choice: RunChoice,
    plan: Plan,
    source: RecordAddress | None,
    tell: Callable[[str], None],
    group: Group,
) -> Session:
    again = source is not None and _went_back(run, source, plan)
    decision = _decided(store, _target(source) or run.lineage().head, plan)
    if decision.changes:
        tell(f"{run.number}: config has changed since the checkpoint:\n{decision}")
    environment, began = environment_facts(), time.monotonic()
    launch = begin_launch(
        run,
        job=plan.facts.job,
        command=command_line(),
        policies=_policies(plan),
        environment=environment | facts_of_launch(code_digest(), plan.facts.restarts, group.size),
        config=dict(decision.config),
        config_digest=config_digest(decision.config),
        report=tell,
    )
    remove_stale(store, run.number, launch.number)
    logger.info("%s, launch %d: %s", run.number, launch.number, choice.why)
    return Session(
        store=store,
        run=run,
        launch=launch,
        environment=environment,
        config_digest=config_digest(decision.config),
        decision=decision,
        begin=source if source and source.run == run.number and not again else None,
        asked=source,
        must=plan.resume == "must",
        forked_from=choice.forked_from,
        group=group,
        secret=nonce(),
        patience=plan.patience,
        began=began,
    )
