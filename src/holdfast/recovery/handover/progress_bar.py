"""A progress bar of saves, on standard error, for those who ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from holdfast.saver import messages


@dataclass(slots=True)
class ProgressBar:
    """Call it with each report of the saver; not thread-safe."""

    _progress: Progress | None = None
    _task: TaskID | None = None
    _generation: int = 0

    def __call__(self, report: messages.Progress) -> None:
        """Shows how far a save is; a complete one leaves its line."""
        if self._progress is None or report.generation != self._generation:
            self._begin(report)
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(self._task, completed=report.done)
        if report.done >= report.total:
            self.close()

    def close(self) -> None:
        """Leaves the terminal as it should be; idempotent."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self, report: messages.Progress) -> None:
        self.close()
        columns = TextColumn("saving"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._generation = report.generation
        self._task = self._progress.add_task("saving", total=report.total)
        self._progress.start()
