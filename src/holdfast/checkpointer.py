"""The facade that a training script meets: `Checkpointer`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast.catalog.config import items_of
from holdfast.errors import InvalidInput
from holdfast.health import GOOD_AFTER, Rules, Watchdog
from holdfast.ids import TagName
from holdfast.policy import Policy
from holdfast.policy.tolerance import Tolerance
from holdfast.records import Record
from holdfast.recovery.caring.care import caring_of
from holdfast.recovery.configuring.arguments import arguments_of
from holdfast.recovery.environment.process import refuse_worker
from holdfast.recovery.launching.choice import NewRun
from holdfast.recovery.launching.keys import fit, fit_or_none
from holdfast.recovery.launching.settings import checked
from holdfast.recovery.restoring.finding import Mismatch
from holdfast.recovery.saving.making import making_of
from holdfast.recovery.steps.attached import read_attached
from holdfast.recovery.stopping.preempting import Preemption
from holdfast.recovery.training.lifetime import Lifetime
from holdfast.recovery.training.looping import callers_names
from holdfast.recovery.training.opening import Opening, stopping_of
from holdfast.recovery.training.training import Training
from holdfast.state.loaders import open_position

Batch = TypeVar("Batch")

Want = str | int | NewRun | None


class Checkpointer:
    """Saves, versions and recovers the state of a training loop.

    Nothing is read or written before the first `batches`, `steps`, `restore` or `save`. Use it as a context
    manager: leaving the block after the last step saves a ``final`` checkpoint. Not thread-safe; belongs to the
    process that made it.

    Args:
        store: a folder; made if it is not there.
        run: a name (its newest unfinished run is continued), a number, or ``holdfast.new_run(name)``.
        state: what to save, by name: modules, optimizers, schedulers, scalers, averaged models, generators, anything
            with ``state_dict`` and ``load_state_dict``. Random number generators and the position in the data are
            saved without being asked. Plain numbers go to `values`.
        save: when: ``every(steps=500) | every(minutes=30) | best("val_loss")``.
        keep: what retention keeps: ``latest(3) | best("val_loss", 2)``. By default the newest three, and of each
            ``best`` and ``at`` in ``save`` the best one and the listed ones. The newest verified checkpoint, the one
            resumed from, tagged and pinned ones and fork points always stay.
        config: a mapping, dataclass or namespace; stored with the run and compared at every launch.
        resume: "auto", "must", "never" (never another job's work), or a reference such as ``run-003@500``.
        accumulate: batches per optimizer step, where no hook can tell (foreign optimizers, CUDA graphs); steps of
            the optimizers in ``state`` that are seen are counted as they are made.
        prefix: put before the names in ``state``, where ranks have different objects under the same names.
        peer_timeout: seconds that ranks wait for each other, before a save has failed or a training is `PeerLost`.
        codec: "raw", "zstd", "openzl" (for floats), or "auto": decided once, by what the storage turns out to bear.
        saver: "process": the loop waits for a copy in memory only, and once that exists the checkpoint is made even if
            this process is killed; "inline": the loop waits until it is durable and verified.
        stage: when to keep a state in memory beside the saves, such as ``every(steps=10)``, for if this process dies.
        ram_budget: memory for copies, as bytes or text ("8GB"); by default half of what is available.
        on_save_error: how many failed saves in a row are borne (3), "raise" for none, "warn" for any number, or a
            `holdfast.tolerate`. If the last save has failed, `close` raises.
        on_full: a disk without room even after retention: "skip" the save, or "pause" until there is some.
        check_staging: compare every copy with the live tensors; for debugging, at the price of one more pass.
        progress: show a progress bar of saves on standard error.
        signals: names or numbers of the signals that end the loop with a checkpoint; docs/preemption.md has the rest.
        grace: seconds from such a signal until the process is killed; by default as Slurm, torchrun or Kubernetes do.
        notice: ask the cloud's metadata service ("aws", "gce", "azure", "auto") whether it takes the machine back.
        on_preempt: called on rank 0 when the loop has ended early and its checkpoint is durable, or given up.
        health: rules such as ``when(nonfinite("loss"), rollback())``; docs/health.md has them. By default what is wrong
            is noted, and nothing is changed; "off" for no checks.
        good_after: steps without a doubt after which a checkpoint is marked ``good``.
        watchdog: a `holdfast.health.watchdog`, or "off"; by default the stacks of a training that makes no step for
            long go to the journal.
        on_config_change: "override" (and say so), "keep" or "refuse" where ``config`` is not that of the checkpoint;
            or one of these for each key, with dots and ``*``.
        not_restored: names of ``state`` that a new run leaves as they are when it begins with another run's checkpoint.

    Raises:
        InvalidInput: an argument that cannot be right; before anything is touched.

    Example:
        >>> import tempfile, torch
        >>> from holdfast import Checkpointer, every
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpointer(
        ...         folder, run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=2)
        ...     ) as ckpt:
        ...         for step in ckpt.steps(4):
        ...             _ = model(torch.ones(1, 2)).sum().backward()
        ...             _ = optimizer.step()
        ...     ckpt.last.step
        4
    """

    def __init__(
        self,
        store: str | Path = "checkpoints",
        *,
        run: Want = None,
        state: Mapping[str, object],
        save: Policy | None = None,
        keep: Policy | None = None,
        config: object = None,
        resume: str = "auto",
        accumulate: int | None = None,
        prefix: str = "",
        peer_timeout: float = 600.0,
        codec: str = "raw",
        saver: str = "process",
        stage: Policy | None = None,
        ram_budget: int | str | None = None,
        on_save_error: int | str | Tolerance | None = None,
        on_full: str = "skip",
        check_staging: bool = False,
        progress: bool = False,
        signals: Sequence[str | int] = ("SIGTERM", "SIGUSR1", "SIGINT"),
        grace: float | None = None,
        notice: str | None = None,
        on_preempt: Callable[[Preemption], object] | None = None,
        health: Rules = None,
        good_after: int = GOOD_AFTER,
        watchdog: Watchdog | str | None = None,
        on_config_change: str | Mapping[str, str] | None = None,
        not_restored: Iterable[str] = (),
    ) -> None:
        refuse_worker()
        check_staging, progress = fit("check_staging", check_staging), fit("progress", progress)
        self._values, self._files = dict[str, Any](), dict[str, bytes]()
        signals, grace = fit("signals", signals), fit_or_none("grace", grace)
        stopping = stopping_of(signals, grace, notice, fit_or_none("on_preempt", on_preempt))
        self._opening = Opening(
            settings=checked(
                store, run, resume, config, save, keep, stage, peer_timeout, on_config_change, not_restored, state
            ),
            making=making_of(saver, codec, ram_budget, on_save_error, on_full, check_staging, progress),
            stopping=stopping,
            caring=caring_of(health, fit("good_after", good_after), watchdog),
            stops=stopping.requests(),
            objects=dict(state),
            prefix=fit("prefix", prefix),
            values=self._values,
            files=self._files,
            accumulate=fit_or_none("accumulate", accumulate),
            config=items_of(config),
        )
        self._life = Lifetime(self._opening, callers_names(inspect.currentframe()))

    @classmethod
    def from_config(
        cls, source: str | Path | Mapping[str, Any], *, state: Mapping[str, object], **overrides: Any
    ) -> Self:
        """A Checkpointer as a YAML or TOML file or a mapping says, in our terms or in those of other libraries.

        Args:
            source: the file, or the mapping.
            state: as for the constructor.
            overrides: arguments of the constructor, which count for more than the file.

        Raises:
            InvalidInput: a key that is not known, with the one that was meant perhaps, or a value that cannot be right.
        """
        made = cls(**arguments_of(source, {"state": state, **overrides}))
        made._life.namespace = callers_names(inspect.currentframe())  # not that of this method
        return made

    @property
    def values(self) -> dict[str, Any]:
        """Plain values that are saved and restored with the state: counters, best scores, anything of one's own.

        Restored in place by the first `batches`, `steps` or `restore`; give defaults before with ``setdefault``.
        """
        return self._values

    @property
    def config(self) -> dict[str, Any]:
        """As given, with the checkpoint's values where ``on_config_change`` keeps them; the first use opens the run."""
        return self._life.opened().decision.applied(self._opening.config)

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self._training.step if self._training else 0

    @property
    def last(self) -> Record | None:
        """The newest durable checkpoint of this line: saved by this launch, or resumed from."""
        return self._training.last if self._training else None

    def batches(
        self,
        loader: Iterable[Batch],
        *,
        total_steps: int | None = None,
        epochs: int | None = None,
        on_mismatch: str = "raise",
    ) -> Iterator[tuple[int, Batch]]:
        """The rest of the training: pairs of the index of the step about to run, from 0, and a batch.

        The first call restores the newest good checkpoint, and the loader goes on where it was. Checkpoints are
        made between steps. Ends at the total, or early after SIGTERM, SIGUSR1 or Ctrl-C with a checkpoint of kind
        ``preempted``; a second Ctrl-C ends at once. With gradient accumulation a step comes with several batches.

        Args:
            loader: a DataLoader, a StatefulDataLoader, or anything that can be iterated once per epoch.
            total_steps: completed optimizer steps at which to end.
            epochs: epochs after which to end; at least one of the two is needed.
            on_mismatch: "raise", or "restart-epoch" where the data was changed on purpose: if the loader is not the
                one of the checkpoint, its epoch begins anew with this one.

        Raises:
            RefusedFresh: there is evidence of earlier work, and none of it can be used.
            StateMismatch: the program does not fit the checkpoint; everything that differs is listed.
            Fenced: a newer launch has taken over the run.
            StorageError: a checkpoint could not be written.
        """
        if total_steps is None and epochs is None:
            raise InvalidInput("batches() needs total_steps= or epochs=, or it would never end")
        total_steps, epochs = fit_or_none("total_steps", total_steps), fit_or_none("epochs", epochs)
        if on_mismatch not in tuple(Mismatch):
            raise InvalidInput(f"on_mismatch={on_mismatch!r}: there is {', '.join(Mismatch)}")
        position, training = open_position(loader), self._life.begun(total_steps, loader)
        position = training.attach_loader(position, Mismatch(on_mismatch))

        def done() -> bool:
            return epochs is not None and position.epoch >= epochs

        with self._life.looped(training):
            while not (training.ended() or done()) or (training.end_loop(done()) and not done()):
                for batch in position.batches():
                    if training.passes_over():
                        continue
                    training.enter()
                    yield training.step, batch
                    training.leave(epoch_ended=position.length is not None and position.batch == position.length)
                    if training.ended() or training.turned:
                        break
                else:
                    training.epoch_over()

    def steps(self, total_steps: int) -> Iterator[int]:
        """As `batches`, for loops that get their data elsewhere; the record says that it has no data position."""
        training = self._life.begun(fit("total_steps", total_steps))
        training.begin_loop()
        with self._life.looped(training):
            while not training.ended() or training.end_loop():
                training.enter()
                yield training.step
                training.leave(epoch_ended=False)

    def restore(self, reference: str | None = None, *, only: Iterable[str] | None = None) -> list[str]:
        """Restores now: the newest good checkpoint of the run, or the one that ``reference`` names.

        Args:
            reference: such as ``gpt2@500`` or a tag; opens a new timeline. Behind the end the run stays finished.
            only: names of ``state`` to restore; everything else is left, the step number and the random states too.
                As the first call of a new run it takes the place of resuming: steps count from zero, with these
                parts. A run that has checkpoints resumes from them instead, so that a restart loses nothing.

        Returns:
            With ``only``: what of the checkpoint was not loaded. Otherwise empty.

        Raises:
            StateMismatch: entries are missing, surplus or differ; all are listed, and nothing has changed.
            NothingToResume: the run has begun, and there is no checkpoint yet.
            RefusedFresh, UnknownReference, Damaged: as in `batches`.
        """
        if self.looping:
            raise InvalidInput("restore() inside the loop would tear the data position; leave the loop first")
        fresh, training = self._life.training is None, self._life.opened(resume=only is None)
        try:
            if only is not None:
                return training.restore_parts(reference, tuple(only))
            if reference is not None or not fresh:
                training.restore_from(reference)
        except BaseException as error:
            self._life.not_restored(training, error)
            raise
        return []

    def save(self, *, tag: str | None = None, reason: str = "asked for", wait: str = "staged") -> Record | None:
        """A checkpoint now, whatever the policy; between steps there is one at most, so a second call gives the first.

        Inside the loop, once the body has begun to change things (a step, a buffer, a value), it is made when the
        step is complete: then None comes back, and `last` will be it. After `break` it is made by the next call, or
        when the block is left; not if that is by an exception.

        Args:
            tag: a name for it, given once it is durable.
            reason: for the record.
            wait: "staged": a private copy exists when this returns; "durable": the record does.

        Returns:
            The record, if it is durable; always with ``wait="durable"`` between steps, and with ``saver="inline"``.

        Raises:
            NameTaken: the tag exists; the checkpoint is made all the same.
            HoldfastError: with ``wait="durable"``: it could not be made. Otherwise as in `batches`.
        """
        if wait not in ("staged", "durable"):
            raise InvalidInput(f"wait={wait!r}: there is staged, durable")
        name = None if tag is None else TagName(tag)
        return self._life.opened().save_asked(name, reason, durable=wait == "durable")

    def log(self, *, reduce: str | None = None, **metrics: Any) -> None:
        """Metrics of the step at hand: they go into its record, and `best` looks at them.

        After the optimizer step they belong to the step just made; before it, to the state as it stands, which is the
        checkpoint of the boundary before. Tensors of other devices are read when a checkpoint is made, not now.
        Those of rank 0 count, unless ``reduce`` is "mean", "sum", "min" or "max": then every rank has to call it with
        the same names, and waits. What `best` wants of several ranks is saved one step later, when all have heard.

        Raises:
            InvalidInput: something that is not one number.
        """
        self._life.opened().log(metrics, reduce)

    def attach(self, path: str | Path) -> None:
        """Keeps a file, or all files of a folder, with every checkpoint; equal content is stored once.

        Raises:
            InvalidInput: no such file.
        """
        self._files |= read_attached(Path(path))

    @property
    def looping(self) -> bool:
        """Whether `batches` or `steps` is being iterated."""
        return self._life.looping

    def should_stop(self, *, together: bool = False) -> bool:
        """Whether a signal has asked the run to stop: for long evaluations and warm-ups.

        Handlers are installed inside the loop only; before it, a signal does what it always does. Several ranks hear
        of a signal to one of them at the next boundary, all at the same one, so until then this is False on all.

        Args:
            together: ask the other ranks now. Every rank has to call it equally often, and waits for the others.
        """
        if self._training is None:
            return self._opening.stops.asked is not None
        self._training.beating.alive()
        decisions = self._training.decisions
        return decisions.stop_anywhere(self._training.lacks) if together else decisions.stop is not None

    @contextlib.contextmanager
    def pause_watchdog(self) -> Iterator[None]:
        """Within it the watchdog does not look; a call of `should_stop` is a sign of life, too."""
        with self._life.opened().beating.paused():
            yield

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Within it, in the body, a step without memory is left out: ``when(out_of_memory(), shrink_batch(...))``.

        Gradients are let go, and the next batch follows. Without such a rule, after an optimizer step, and with several
        ranks (others would wait for this one), the error goes on its way.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if self._training is None or not self._training.survives(error):
                raise

    @property
    def preempted(self) -> Preemption | None:
        """After a loop that ended because it was asked to: the signal, what was saved, and the `exit_code` to use."""
        return self._training.preempted if self._training else None

    def close(self) -> None:
        """Saves the ``final`` checkpoint if the total was reached, and lets the run go; idempotent.

        Raises:
            Fenced, StorageError: as in `batches`.
        """
        self._life.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> bool:
        if e is not None:
            return self._life.interrupted(e)
        self.close()
        return False

    @property
    def _training(self) -> Training | None:
        return self._life.training
