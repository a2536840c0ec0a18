"""The verbs that every library is asked for."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from harness.files import files_of, sync
from harness.states import Job


class Adapter:
    """One library saving one job. The loop calls `after_step` behind every optimizer step and `before_step` ahead.

    A saving library overrides `begin`, `load` and, as needed, `prepare`, `before_step`, `finish` and `close`.
    """

    label = ""
    how = ""
    """The configuration, in one line of the report."""
    durable = True
    """Whether a save ends on the disk at all."""
    checked = True
    """Whether `load` puts back what was saved, so that it can be compared."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.count = 0
        self.saved = 0
        self.open = False

    def prepare(self) -> None:
        """Everything that a user would do before the first step: daemons, staging memory, plans."""

    def after_step(self) -> None:
        """The optimizer has stepped; a save is due every so many times."""
        self.count += 1
        if self.count % self.job.every == 0:
            self.wait()
            self.saved += 1
            self.begin(self.path)
            self.open = True

    def before_step(self) -> None:
        """Comes back when the optimizer may change the tensors."""

    def wait(self) -> None:
        """Comes back when the library calls the last save done."""
        if self.open:
            self.open = False
            self.finish(self.path)

    def durable_at(self) -> float:
        """The instant at which the last save was durable, waited for, with the fsync that a library leaves out."""
        self.wait()
        if self.durable and self.saved:
            sync(self.path)
        return time.perf_counter()

    def begin(self, path: Path) -> None:
        """Starts a save, and comes back as soon as the library lets it."""

    def finish(self, path: Path) -> None:
        """Comes back when the library says that it is done."""

    def unload(self) -> None:
        """Before every load, and not timed: what an earlier one has left goes."""

    def load(self) -> None:
        """The newest checkpoint, into the tensors of the job."""
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """The newest checkpoint."""
        return self.job.folder / f"step-{self.saved}"

    def files(self) -> list[Path]:
        """What `load` reads."""
        return files_of(self.path)

    def forget(self) -> None:
        """Every checkpoint but the newest goes, so that the disk does not fill."""
        for one in self.job.folder.glob("step-*"):
            if one != self.path:
                shutil.rmtree(one) if one.is_dir() else one.unlink()

    def stop(self) -> None:
        """The training ends; what follows is loading."""

    def close(self) -> None:
        """Threads, daemons and shared memory go."""


def restore(job: Job, state: dict[str, Any]) -> None:
    """Both state dicts into the objects of the job, tensor by tensor, with nothing allocated."""
    job.model.load_state_dict(state["model"])
    copy_into(job.optimizer.state_dict(), state["optimizer"])


def copy_into(target: Any, source: Any) -> None:
    """Copies every tensor of a tree into the same place of another; an optimizer's own way allocates all anew."""
    if isinstance(target, dict):
        for key, value in target.items():
            copy_into(value, source[key])
    elif isinstance(target, list):
        for one, other in zip(target, source, strict=True):
            copy_into(one, other)
    elif hasattr(target, "copy_"):
        target.copy_(source)
