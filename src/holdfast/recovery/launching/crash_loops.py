"""What earlier launches of the job did not survive: gathered, judged, and taken into account when one resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from holdfast.catalog.journal.attempts import Attempts, Noted, read_attempts, read_ends
from holdfast.catalog.journal.events import Ending, Exit, Progress
from holdfast.catalog.owners import Liveness
from holdfast.catalog.runs import Run
from holdfast.errors import BeingDeleted, CrashLoop, Damaged, PeerLost, StorageError
from holdfast.ids import RecordAddress
from holdfast.records import Kind, LaunchInfo, Record, StartInfo, Target
from holdfast.recovery.environment.launcher import NAMELESS
from holdfast.recovery.launching.resume import Rejected
from holdfast.recovery.launching.suspicion import Asker, Blame, Life, Verdict, blame_of, decide, wanted

logger = logging.getLogger(__name__)

CODE = "code"
RESTARTS = "restarts"
WORLD = "world"
"""What of the environment of a launch tells whether two are the same; see `facts_of_launch`."""

_LOST = f"{PeerLost.__name__}:"

_REMEDY = (
    "no checkpoint was touched; find out what it is, then start again: the run goes on from its newest checkpoint as "
    "soon as the code, the configuration or the command line has changed, or in another job, or by hand"
)


def facts_of_launch(code: str | None, restarts: int, world: int) -> dict[str, str]:
    """What is noted of a launch beside its environment: its code, its number among the restarts, its ranks."""
    return {RESTARTS: str(restarts), WORLD: str(world)} | ({CODE: code} if code else {})


class CrashLoops:
    """What the launches before one have come to. Not thread-safe; for rank 0.

    What cannot be read was not there: there is suspicion only where it can be shown.

    Args:
        run: the run.
        launch: the number of the launch that is about to resume.
        attempts: where it notes what it does.
        rejected: where it says what is passed over.
    """

    def __init__(self, run: Run, launch: int, attempts: Attempts, rejected: Rejected) -> None:
        self._run, self._launch, self._attempts, self._rejected = run, launch, attempts, rejected

    def begin(self) -> RecordAddress | None:
        """Where to begin instead of at the head: with what the launch at the head has passed over, if it got nowhere.

        That was for its job, its code and its configuration, or on its machine, and may be void by now.
        """
        starts, damaged = self._run.read_starts()
        earlier = [start for start in starts if start.launch < self._launch]
        if damaged or not earlier or (newest := earlier[-1]).timeline > 0:
            return None
        passed = read_attempts(self._run.store, self._run.number, newest.launch).passed
        # The names of saves that were given up are no work that came after.
        addresses = {*self._run.addresses()} - {one.address for one in self._run.published().aborted}
        if passed is None or any(one.order.launch >= newest.launch for one in addresses):
            return None
        origin = newest.resumed_from
        if passed.address not in addresses:
            return None
        if origin is not None and origin.run == passed.run and passed.address.order <= origin.address.order:
            return None  # a rollback that failed: the head is newer
        logger.warning(
            "launch %d has passed over %s and got nowhere; it is thought of again", newest.launch, passed.address
        )
        return passed.address

    def verdict(self) -> Verdict:
        """What is to be done about the launches before this one; raises nothing over what cannot be read.

        Raises:
            CrashLoop: nothing is to be tried.
        """
        infos = {info.number: info for info in self._run.launches()}
        if self._launch not in infos:
            return Verdict()
        asker = asker_of(infos[self._launch])
        try:
            verdict = decide(asker, list(self._lives(asker, infos)))
        except StorageError as error:
            logger.warning("how earlier launches of %s ended cannot be read: %s", self._run.number, error)
            return Verdict()
        if asker.by_hand:
            _tell(verdict)
            return Verdict()
        if verdict.stop:
            noted(lambda: self._attempts.stopped(verdict.stop))
            raise CrashLoop(f"{self._run.number} is not resumed once more: {verdict.stop}; {_REMEDY}")
        return verdict

    def foreseen(self) -> tuple[str, Verdict]:
        """What a restart of the newest launch by its job would decide, and the name of the job; empty: of none.

        Raises:
            StorageError: how launches ended cannot be read.
        """
        infos = {info.number: info for info in self._run.launches()}
        last = infos.get(self._launch - 1)
        if last is None or last.job is None or self._run.store.liveness(last.owner) is Liveness.ALIVE:
            return "", Verdict()  # nothing has ended that would be started again
        asker = Asker(same=_same(last))
        return last.job, decide(asker, list(self._lives(asker, infos)))

    def ordered(self, found: Iterable[Record], verdict: Verdict) -> Iterator[Record]:
        """The candidates, one that is suspect behind those of the same run."""
        held: Record | None = None
        passed = False
        for record in found:
            if held is not None and record.run != held.run:
                yield held  # older than the whole run: that would be to begin again
                held = None
            if held is None and Target.of(record.address) == verdict.suspect:
                held = record
                continue
            if held is not None and not passed:
                self._pass_over(held, verdict.why)
                passed = True
            yield record
        if held is not None:
            yield held

    def _pass_over(self, record: Record, why: str) -> None:
        logger.error(
            "%s is tried after older ones: %s; this holds for this job, until code, config or command line change",
            record.address,
            why,
        )
        self._rejected.add(record.address, why)
        noted(lambda: self._attempts.passed_over(record.address, why))

    def _lives(self, asker: Asker, infos: Mapping[int, LaunchInfo]) -> Iterator[Life]:
        starts = {one.launch: one for one in self._run.starts() if one.timeline == 0}
        for number in sorted((number for number in infos if number < self._launch), reverse=True):
            same, first = _same(infos[number]), _is_first(infos[number])
            # A launch that is another one ends the series, whatever became of it.
            life = Life(launch=number, same=same, first=first)
            if same is not None and same == asker.same:
                life = self._known(life, starts.get(number), int(infos[number].environment.get(WORLD, "1")))
            yield life
            if not wanted(asker, life):
                return

    def _known(self, life: Life, start: StartInfo | None, world: int) -> Life:
        """What is known of a launch, and of its end."""
        if any(one.launch == life.launch and one.kind is not Kind.FAILED for one in self._run.records()):
            return replace(life, saved=True)
        notes = read_attempts(self._run.store, self._run.number, life.launch)
        origin = start.resumed_from if start else next(reversed(notes.tried), None)
        said = read_ends(self._run.store, self._run.number, [life.launch]).get(life.launch, [])
        ended, error = end_of(said, notes, world)
        return replace(
            life,
            began=bool(start or notes.tried),
            origin=origin,
            ended=ended,
            error=error,
            steps=max([0, *(one.step - (origin.step if origin else 0) for one in said)]),
            stopped=notes.stopped,
        )


def next_loops(run: Run) -> CrashLoops:
    """As a launch that begins now would see them; nothing is written."""
    number = run.newest_launch() + 1
    return CrashLoops(run, number, Attempts(run.store, run.number, number), Rejected())


def noted(write: Callable[[], object]) -> None:
    """Calls ``write``, whose failure is logged: evidence that is lost is not counted, and the training goes on."""
    try:
        write()
    except (StorageError, BeingDeleted, Damaged) as error:
        logger.warning("what becomes of this launch could not be noted: %s", error)


def asker_of(info: LaunchInfo) -> Asker:
    """A launch as `holdfast.recovery.launching.suspicion` sees it."""
    by_hand = info.job is None or _is_first(info)
    return Asker(same=_same(info), by_hand=by_hand)


def end_of(said: Sequence[Progress | Exit], notes: Noted, world: int) -> tuple[Ending, str]:
    """How a launch of ``world`` ranks ended, by what all of them have said: the one that failed first counts.

    The launcher asks the others to stop, so that they may call themselves pre-empted. Where they have lost one that has
    said nothing itself, it was killed.
    """
    exits = [one for one in said if isinstance(one, Exit)]
    errors = [one.error for one in exits if one.how is Ending.FAILED] + [notes.error] * bool(notes.error)
    telling = [error for error in errors if blame_of(error) is not Blame.SURROUNDINGS]
    if telling:
        return Ending.FAILED, telling[0]
    if errors and all(error.startswith(_LOST) for error in errors) and len({one.rank for one in exits}) < world:
        return Ending.KILLED, ""
    for ending in (Ending.PREEMPTED, Ending.COMPLETED, Ending.LEFT):
        if any(one.how is ending for one in exits):
            return ending, ""
    return (Ending.FAILED, errors[0]) if errors else (Ending.KILLED, "")


def _same(info: LaunchInfo) -> str | None:
    code = info.environment.get(CODE)
    job = NAMELESS if _is_nameless(info) else info.job
    facts = (job, info.command, info.config_digest, code)
    return None if code is None else msgspec.json.encode(facts).decode()


def _is_first(info: LaunchInfo) -> bool:
    return _is_nameless(info) and info.environment.get(RESTARTS) == "0"


def _is_nameless(info: LaunchInfo) -> bool:
    return (info.job or "").partition("@")[0] == NAMELESS


def _tell(verdict: Verdict) -> None:
    if verdict.stop:
        logger.warning("%s; it was started by hand, so it is tried again", verdict.stop)
    elif verdict.suspect is not None:
        text = "%s may not be what it should: %s; it is tried again, and resume= names another one"
        logger.warning(text, verdict.suspect.address, verdict.why)
