"""One launch of a run, open for saving: claimed, drained, and standing on the record that it resumed from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.catalog.journal.attempts import Attempts
from holdfast.catalog.launches import Launch
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, NothingToResume, RefusedFresh
from holdfast.ids import Order, RecordAddress, RecordId
from holdfast.policy import Policy
from holdfast.records import Record
from holdfast.recovery.environment.launcher import LauncherFacts
from holdfast.recovery.launching.choice import Wanted
from holdfast.recovery.launching.config_changes import ChangeRules, ConfigDecision
from holdfast.recovery.launching.crash_loops import CrashLoops, noted
from holdfast.recovery.launching.proving import condemn, proof_of, repeats
from holdfast.recovery.launching.resume import Rejected, candidates
from holdfast.recovery.ranks.group import Group

logger = logging.getLogger(__name__)

MODES = ("auto", "must", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for, checked."""

    url: str | Path
    want: Wanted
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
    on_config_change: ChangeRules = field(default_factory=ChangeRules)
    """What is done about keys of the configuration that are not as in the checkpoint."""
    good_after: int | None = None
    """Steps after which a checkpoint is marked good, if rollbacks go to such ones."""
    not_restored: tuple[str, ...] = ()
    """Names of what a run leaves as it is when it begins with the checkpoint of another one."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A launch and where it stands. Not thread-safe."""

    store: Store
    run: Run
    launch: Launch
    environment: dict[str, str]
    config_digest: str
    decision: ConfigDecision
    """What became of changes of the configuration."""
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
    began: float
    """When the launch was claimed, in monotonic seconds of this process."""
    timeline: int = -1
    begun: bool = False
    """Whether a start was noted: a restore, of parts perhaps, or one from zero."""
    parent: RecordAddress | None = None
    """The newest record of this line, which the next save follows."""
    resumed: Record | None = None
    left: tuple[str, ...] = ()
    """What was left as the program made it, by the load that is noted next."""
    rejected: Rejected = field(default_factory=Rejected)
    attempts: Attempts | None = None
    """Where loads are noted; rank 0 alone has them."""

    def resume(
        self,
        load: Callable[[Record], None],
        begin: RecordAddress | None = None,
        asked: RecordAddress | None = None,
        why: str | None = None,
    ) -> Record | None:
        """Loads the best candidate that can be loaded, and notes the new timeline; None: a fresh start.

        Only damage moves on to the next candidate, and what earlier launches of this job did not survive is tried
        after the next older one: a model that does not fit would not fit an older one either, and a disk that cannot
        be read right now is no reason to lose work. That a load begins is noted, durably, before it does.

        Args:
            load: loads a record.
            begin: where to begin; None: where the session does.
            asked: the record that a person has named: no other one is taken in its place.
            why: what is noted for the reason.

        Raises:
            Damaged: the record that was asked for cannot be read.
            RefusedFresh: there are records, and none can be used.
            NothingToResume: "must", and there are none.
            CrashLoop: this job has ended again and again without getting on.
        """
        found = self._found(begin or self.begin)
        while (record := self._next(found)) is not None:
            try:
                self._load(load, record)
            except Damaged as error:
                if record.address in (asked, self.asked):
                    raise
                logger.error("%s cannot be used: %s", record.address, error)
                self.rejected.add(record.address, error)
                if self.group.rank == 0:
                    noted(partial(self._notes().passed_over, record.address, str(error), self.timeline + 1))
            else:
                self._note(record, why or self._why(record))
                return record
        with self._noting_failure():
            self.group.told(self._check_fresh, "whether there is nothing to resume from")
        self._note(None, "there was nothing to resume from")
        return None

    def _found(self, begin: RecordAddress | None) -> Iterator[Record]:
        """The candidates; unless a person or a rollback says where to begin, what was not survived is thought of.

        Runs on rank 0 alone.
        """
        if begin is not None or self.begun:
            yield from candidates(self.store, self.run, self.rejected, begin)
            return
        loops = CrashLoops(self.run, self.launch.number, self._notes(), self.rejected)
        verdict = loops.verdict()
        yield from loops.ordered(candidates(self.store, self.run, self.rejected, loops.begin()), verdict)

    def _next(self, found: Iterator[Record]) -> Record | None:
        """The next one to try, as rank 0 sees it; damaged ones it has passed over."""

        def attempted() -> Record | None:
            record = next(found, None)
            if record is not None:
                noted(lambda: self._notes().begins(record.address, self.timeline + 1))
            return record

        return self.group.told(attempted, "what to resume from", Record | None)

    def _load(self, load: Callable[[Record], None], record: Record) -> None:
        with self._noting_failure():
            try:
                load(record)
            except Damaged as error:
                if not self._was_passing(record, error):
                    raise
                logger.error("%s; read again, past the page cache, it is whole: this machine may be failing", error)
                load(record)

    def _was_passing(self, record: Record, error: Damaged) -> bool:
        """Whether what was wrong is right when it is read again, on all ranks; what is proven is noted."""
        again = repeats(self.store, error)
        proofs = self.group.gathered(proof_of(self.store, error) if again else b"", "what is proven to be damaged")
        for proof in filter(None, {*proofs} if self.group.rank == 0 else ()):
            noted(partial(condemn, self.run, record.address, proof, str(error), self._notes(), self.launch.number))
        wrong, whole = again is not False and error.pack is not None, again is False
        none_wrong, none_whole = self.group.everywhere(bytes([not wrong, not whole]), "whether it can be read again")
        return bool(none_wrong) and not none_whole

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """An exception is noted, so that the next launch does not take it for a crash inside the load."""
        try:
            yield
        except Damaged:
            raise
        except BaseException as error:
            if self.group.rank == 0:
                noted(partial(self._notes().failed, error))
            raise

    def _notes(self) -> Attempts:
        self.attempts = self.attempts or Attempts(self.store, self.run.number, self.launch.number)
        return self.attempts

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
        record = known or (None if self.begun else self._first(found))
        if record is None:
            raise NothingToResume(f"{self.run.number} has no checkpoint yet, so there is nothing to restore")
        return record

    def newest_of(self, fits: Callable[[Record], bool]) -> Record | None:
        """The newest one of the run's line that fits, neither damaged nor quarantined; None: there is none."""
        return self._first(one for one in candidates(self.store, self.run, Rejected()) if fits(one))

    def has_work(self) -> bool:
        """Whether the run has checkpoints of its own, readable or not."""
        return self.group.told(
            lambda: bool(self.run.records() or self.run.damaged()), "whether the run has checkpoints", bool
        )

    def named(self, reference: str) -> Record:
        """The record that a reference means; errors as in `holdfast.catalog.naming.references.resolve`."""
        return self.group.told(
            lambda: resolve(self.store, reference, default_run=self.run.number), "what is meant", Record
        )

    def begin_with_parts(self, record: Record, only: tuple[str, ...]) -> None:
        """Notes a start that loaded parts of a checkpoint; until it saves, that checkpoint stays the head."""
        self._note(record, f"only {', '.join(only)} of it, as asked for")

    def branch(self, why: str) -> None:
        """Notes a new timeline that follows the newest record of this line, without loading anything."""
        self.timeline += 1
        self.group.told(lambda: self._record_start(why), "the start of a new timeline")
        logger.log(logging.INFO if self.group.rank == 0 else logging.DEBUG, "%s: %s", self.run.number, why)

    def stays(self, address: RecordAddress, why: str) -> None:
        """Notes, for launches to come, that the run stands at this record; waits for no other rank, and loads nothing.

        Raises:
            HoldfastError: it is not noted.
        """
        if self.group.rank == 0:
            with reading(self.store, [address]):
                self.launch.record_start(self.timeline + 1, address, why)
        self.timeline, self.parent = self.timeline + 1, address

    def _first(self, found: Iterator[Record]) -> Record | None:
        return self.group.told(lambda: next(found, None), "what to resume from", Record | None)

    def _record_start(self, why: str) -> None:
        # A sweep of another run does not see this start before it is there: hold on to the record until then.
        with reading(self.store, [self.parent] if self.parent else []):
            self.launch.record_start(self.timeline, self.parent, why)

    def _why(self, record: Record) -> str:
        but = f", without {', '.join(self.left)}, as asked for" if self.left else ""
        if self.rejected.reasons:
            return f"the newest that can be used{but}; passed over: {self.rejected}"
        return f"asked for{but}" if self.begin else f"the head of the run{but}"

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
