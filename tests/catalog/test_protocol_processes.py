"""The holds protocol with real processes on a real filesystem, killed with -9 at random moments."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import holds_worker
import pytest
from holds_kit import load_all

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.locating import list_packs, pack_folders, read_footers
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.store import open_store
from holdfast.packs.index import Footers

SEED = 20_240_607


class Worker:
    """A process of the campaign and all that it has said."""

    def __init__(self, place: Path, role: str, seed: int) -> None:
        self.role, self.lines = role, []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, holds_worker.__file__, str(place), role, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            with self._changed:
                if line.endswith("\n"):
                    self.lines.append(line.split())
                self._changed.notify_all()

    def await_lines(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self.lines) >= count or self._process.poll() is not None, timeout=300)

    def kill(self) -> None:
        """With -9; that it ran until then is part of the test."""
        self._process.kill()
        self._reader.join()
        error = self._process.stderr.read()
        self._process.stderr.close()
        self._process.stdout.close()
        assert self._process.wait() == -9, f"{self.role} ended by itself: {error}"

    def said(self, word: str) -> list[list[int]]:
        return [[int(number) for number in line[1:]] for line in self.lines if line[0] == word]


@pytest.mark.timeout(170)
def test_killed_trainers_lose_nothing_that_they_had_published_while_others_sweep_and_read(tmp_path):
    """Hazards 4 and 5: each new launch stands where the killed one had got to, and every record is whole."""
    print("seed", SEED)
    choice = random.Random(SEED)
    store = open_store(tmp_path, create=True)
    store.create_run("model")
    others = [Worker(tmp_path, role, SEED) for role in ("sweep", "read")]
    last = 0
    for turn in range(8):
        trainer = Worker(tmp_path, "train", turn)
        trainer.await_lines(choice.randrange(2, 12))
        threading.Event().wait(choice.random() * 0.05)
        if turn % 3 == 2:  # the killed sweeper's tombstones are in the way of nobody
            others[0].kill()
            others[0] = Worker(tmp_path, "sweep", turn)
        trainer.kill()
        ((launch, resumed),) = trainer.said("resumed")
        assert launch == turn + 1
        assert resumed in (last, last + 1), f"launch {launch} resumed from {resumed}; {last} had been published"
        last = max([resumed, *(step for _, step in trainer.said("published"))])
        for record in store.run(1).records():
            load_all(store, record.address)
    others[1].await_lines(3)
    for other in others:
        other.kill()
    assert others[1].said("read"), "the reader never read anything"
    _is_clean(store, last)


def _is_clean(store, last: int) -> None:
    """One more launch and sweep, and nothing of the killed is left."""
    run = store.run(1)
    begin_launch(run, deadline=0)
    assert run.lineage().head.step in (last, last + 1)
    for _ in range(2):
        for scope in (run, None):
            execute(store, plan_sweep(store, scope), run=scope)
    for folder in (layout.holds_folder(run.number), layout.SWEEPS):
        assert list(store.storage.list(folder)) == []
    assert run.published().aborted == []
    # A save that saw tombstones has written again what they listed: both copies stay with the record.
    needed = {one for record in run.records() for one in read_manifest(run, record.manifest_digest).segment_digests()}
    packs = [name for folder in pack_folders(run.number) for name in list_packs(store, folder)]
    unneeded = [
        one.name for one in read_footers(Footers(store.storage), packs).footers if needed.isdisjoint(one.digests())
    ]
    assert unneeded == []
    for record in run.records():
        load_all(store, record.address)
