"""Starts the demo's training, kills it, starts it again, and reads from its store what came of it.

The trainer is a process like any other: what is known of it is what it prints
(``step 30 loss 3.21``) and what lies in its store. Kills are ``SIGKILL`` to the
whole process group, which no process can catch, delay or notice.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from holdfast.catalog import layout
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.runs import Run
from holdfast.catalog.store import open_store
from holdfast.cli.demo_plan import Kill, Moment, Outcome, Result, Saved
from holdfast.errors import HoldfastError, NotFound
from holdfast.ids import RecordId, RunNumber
from holdfast.records import Record
from holdfast.trees import Manifest, TensorSpec, segments

RUN = RunNumber(1)
_STEP = re.compile(r"step (\d+) loss (\S+)")
_POLL = 0.01
"""Seconds between looks at the trainer; a save of the demo takes far longer."""
_LOOK = 0.25
"""Seconds between looks for new records; three saves, after which retention deletes, take far longer."""


class Trainer:
    """One start of the training script. A context manager: whatever happens, its processes do not outlive the block."""

    def __init__(self, command: Sequence[str], errors: Path) -> None:
        self.step = 0
        """Completed steps that it has told of."""
        self.first_step = 0
        self.first_step_after = 0.0
        """Seconds from its start."""
        self._begin = time.monotonic()
        self._errors = errors
        with errors.open("ab") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name="holdfast-demo-listen", daemon=True)
        self._listener.start()

    def ended(self) -> bool:
        """Whether it has finished its work.

        Raises:
            HoldfastError: it has ended with an error; the message has its last words.
        """
        code = self._process.poll()
        if code:
            words = self._errors.read_text(errors="replace").splitlines()[-15:]
            raise HoldfastError("\n".join([f"the training script ended with exit code {code}:", *words]))
        return code == 0

    def kill(self) -> None:
        """Ends all its processes at once and waits until what they printed has been read."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.kill()
        self._finish()

    def _finish(self) -> None:
        self._process.wait()
        self._listener.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            if match := _STEP.match(line):
                self.step = int(match[1])
                if not self.first_step:
                    self.first_step, self.first_step_after = self.step, time.monotonic() - self._begin


class Ledger:
    """What a store tells while somebody else works in it. Retention deletes records, so they are noted as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[RecordId, Record] = {}
        self._run: Run | None = None
        self._next_look = 0.0

    def glance(self) -> None:
        """`look`, unless it was done a moment ago: reading must not slow the training down."""
        if time.monotonic() >= self._next_look:
            self.look()
            self._next_look = time.monotonic() + _LOOK

    def look(self) -> None:
        """Note the records that are new."""
        try:
            self._run = self._run or open_store(self.folder).run(RUN)
        except NotFound:
            return
        self._seen.update((RecordId(record.id), record) for record in self._run.records())

    def saving(self) -> bool:
        """Whether a save is in flight."""
        holds = self.folder / layout.holds_folder(RUN)
        try:
            return any(re.match(r"\d.*\.json$", hold.name) for hold in holds.iterdir())
        except FileNotFoundError:
            return False

    def saved(self) -> list[Saved]:
        """All checkpoints so far."""
        return [
            Saved(logical=r.bytes.logical, stored=r.bytes.stored, stall=r.timing.stall) for r in self._seen.values()
        ]

    def result(self) -> Result:
        """What the newest record holds."""
        run = open_store(self.folder).run(RUN)
        record = run.records()[-1]
        manifest = read_manifest(run, record.manifest_digest)
        return Result(
            step=record.step,
            loss=record.metrics.get("loss"),
            weights=_content(manifest, "model/"),
            tensors=_content(manifest, "model/", "optimizer/"),
        )


@dataclass(slots=True)
class Supervisor:
    """Carries a training to its end through all its kills.

    Args:
        command: the training script; the same for every start.
        ledger: its store.
        errors: file for what it prints on standard error.
        tell: called with the completed steps, and with every kill.
    """

    command: Sequence[str]
    ledger: Ledger
    errors: Path
    tell: Callable[[int, Kill | None], None]

    def run(self, moments: Iterable[Moment] = ()) -> Outcome:
        """Train to the end.

        Raises:
            HoldfastError: the script ended with an error of its own.
        """
        begin, kills, left = time.monotonic(), [], list(moments)
        killed: tuple[int, bool] | None = None
        while True:
            with Trainer(self.command, self.errors) as trainer:
                if killed is not None:
                    kills.append(self._back(trainer, *killed))
                killed = self._until(trainer, left.pop(0) if left else None)
            if killed is None:
                break
        self.ledger.look()
        seconds = time.monotonic() - begin
        return Outcome(result=self.ledger.result(), seconds=seconds, saved=self.ledger.saved(), kills=kills)

    def _until(self, trainer: Trainer, moment: Moment | None) -> tuple[int, bool] | None:
        """Watch until the moment and kill: the step and whether a save was in flight; None if the training ended."""
        while not trainer.ended():
            if moment is not None and self._due(trainer, moment):
                time.sleep(moment.delay)
                saving = self.ledger.saving()
                trainer.kill()
                return trainer.step, saving
            self._watch(trainer)
        return None

    def _due(self, trainer: Trainer, moment: Moment) -> bool:
        return trainer.first_step > 0 and trainer.step >= moment.step and (not moment.in_save or self.ledger.saving())

    def _back(self, trainer: Trainer, step: int, in_save: bool) -> Kill:
        while not trainer.first_step and not trainer.ended():
            time.sleep(_POLL)
        resumed_at = trainer.first_step - 1 if trainer.first_step else step
        kill = Kill(step=step, in_save=in_save, resumed_at=resumed_at, seconds=trainer.first_step_after)
        self.tell(trainer.step, kill)
        return kill

    def _watch(self, trainer: Trainer) -> None:
        self.tell(trainer.step, None)
        self.ledger.glance()
        time.sleep(_POLL)


def _content(manifest: Manifest, *prefixes: str) -> str:
    """A digest over the tensors whose names begin with one of ``prefixes``: names, dtypes, shapes and every byte."""
    found = blake3()
    for spec, content in _tensors(manifest):
        if spec.name.startswith(prefixes):
            found.update(f"{spec.name} {spec.dtype} {spec.shape}\n".encode() + content)
    return found.hexdigest()


def _tensors(manifest: Manifest) -> Iterable[tuple[TensorSpec, bytes]]:
    """Every tensor with the bytes, or the digests of the bytes, that it has."""
    inline = digests = 0
    for spec in manifest.skeleton.tensors:
        if spec.inline:
            yield spec, manifest.inline[inline : inline + spec.nbytes]
            inline += spec.nbytes
        else:
            length = 32 * sum(1 for _ in segments(spec))
            yield spec, manifest.digests[digests : digests + length]
            digests += length
