"""Real power cuts: a filesystem image is copied while a training saves into it, and the copy is mounted.

Mounting replays the journal, as after a cut. What the kernel had not written to
the image at that instant is lost, so this shows what kills cannot: whether each
acknowledged checkpoint had been synced (hazards 12).
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from crash_kit import Promise, Telling, unsound, unusable
from lived_kit import STORE, train
from toy_training import ended, forked

import holdfast
from holdfast import latest
from holdfast.catalog import owners
from holdfast.errors import HoldfastError
from holdfast.storage import opening
from holdfast.storage.files import Files
from holdfast.testing.faults import SYNCS, HookedFiles, Op

SIZE = 48 << 20
KEEP = 3


def has_all(*tools: str) -> bool:
    return all(shutil.which(tool) for tool in tools)


def mounted(image: Path, at: Path, *options: str) -> str | None:
    """Mounts an image; says why it cannot be done."""
    at.mkdir(exist_ok=True)
    words = ["mount", "-o", ",".join(["loop", *options]), str(image), str(at)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip() or "no reason given" if done.returncode else None


def unmount(at: Path) -> None:
    """At most a moment later: what has just ended may still hold a file open."""
    for _ in range(50):
        if subprocess.run(["umount", str(at)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextmanager
def mounted_or_skipped(image: Path, at: Path, *options: str) -> Iterator[Path]:
    if why := mounted(image, at, *options):
        pytest.skip(f"cannot mount a filesystem image here: {why}")
    try:
        yield at
    finally:
        unmount(at)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An image and where it is mounted. Nothing but a sync makes its journal commit."""
    if os.geteuid() != 0 or not has_all("mkfs.ext4", "mount", "umount"):
        pytest.skip("power cuts need root, mkfs.ext4 and mount")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    with mounted_or_skipped(image, tmp_path / "disk", "commit=300") as place:
        yield image, place


class Trainer:
    """A training in a process of its own that tells, outside of the disk, of each record whose publication returned."""

    def __init__(self, store: Path, files: Files, to: int, pause: Callable[[], None] = lambda: None) -> None:
        self._told, telling = os.pipe()
        os.set_blocking(self._told, False)
        self.told = 0
        self.over = False

        def said() -> None:
            step = max((int(path.name[11:23]) for path in store.glob("catalog/runs/*/records/*.json")), default=0)
            if step > self.told:
                self.told = step
                os.write(telling, bytes([step]))
                pause()

        def work() -> None:
            opening.LocalStorage = lambda root, **options: Telling(root, said, files=files, **options)
            train(store, "new", to, keep=latest(KEEP))

        self.pid = forked(work)
        os.close(telling)

    def stop(self) -> int:
        """Stops the clock; the newest step that was acknowledged by then."""
        os.kill(self.pid, signal.SIGSTOP)
        self.over = not os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])
        return self.heard()

    def heard(self) -> int:
        try:
            while steps := os.read(self._told, 4096):
                self.told = max(self.told, *steps)
        except BlockingIOError:
            pass
        return self.told

    def go_on(self) -> None:
        if not self.over:
            os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        if not self.over:
            os.kill(self.pid, signal.SIGKILL)
            ended(self.pid)
        os.close(self._told)


def harm(image: Path, at: Path, acknowledged: int) -> str | None:
    """What is wrong after a cut: all that are kept must be there, but for the oldest, which the next save deletes."""
    with mounted_or_skipped(image, at), pytest.MonkeyPatch.context() as patch:
        # A machine that comes back after a power cut has booted, so whoever held something is known to be dead.
        patch.setattr(owners, "_boot", lambda: "the boot after the cut")
        store = at / STORE
        expected = set(range(max(1, acknowledged - KEEP + 2), acknowledged + 1))
        try:
            found = {record.step for record in holdfast.open(store).run(1).records()}
        except HoldfastError as error:
            return f"{error}" if acknowledged else None
        if not expected <= found:
            return f"acknowledged were {sorted(expected)}, there are {sorted(found)}"
        nothing = Promise(there=frozenset(), gone=frozenset())
        return unsound(store, nothing) or unusable(store, nothing)


@pytest.mark.parametrize("cuts", [12, pytest.param(150, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_a_power_cut_during_a_training_loses_nothing_that_was_acknowledged(
    tmp_path: Path, disk: tuple[Path, Path], cuts: int
) -> None:
    """Hazards 12; users-ask 2. At random instants of one training; each copy is another disk after another cut."""
    image, place = disk
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    trainings = itertools.count()
    done, newest = 0, []
    while done < cuts:
        trainer = Trainer(place / STORE, Files(), to=200)
        next(trainings)
        try:
            while done < cuts and not trainer.over:
                time.sleep(rng.uniform(0.0, 0.15))
                acknowledged = trainer.stop()
                copy = shutil.copyfile(image, tmp_path / "copy.img")
                trainer.go_on()
                assert harm(copy, tmp_path / "copy", acknowledged) is None, f"seed {seed}, cut {done}"
                newest.append(acknowledged)
                done += 1
        finally:
            trainer.end()
        shutil.rmtree(place / STORE)
    print(f"{done} power cuts in {next(trainings)} trainings; newest acknowledged steps {newest}")


class Unsynced(HookedFiles):
    """Syncs of these kinds say that they are done and do nothing."""

    def __init__(self, ops: frozenset[Op]) -> None:
        super().__init__()
        self._ops = ops

    def around(self, event, run):
        return None if event.op in self._ops else run()


@pytest.mark.parametrize("ops", [SYNCS, {Op.SYNC}, {Op.SYNC_FOLDER}], ids=["all", "files", "folders"])
def test_without_syncs_the_same_cut_does_harm(tmp_path: Path, disk: tuple[Path, Path], ops: set[Op]) -> None:
    """The deliberate break: the same look at the same training finds the loss, right after an acknowledgement."""
    image, place = disk
    trainer = Trainer(place / STORE, Unsynced(frozenset(ops)), to=3, pause=lambda: time.sleep(60))
    try:
        while not trainer.heard():
            time.sleep(0.02)
        copy = shutil.copyfile(image, tmp_path / "copy.img")
        found = harm(copy, tmp_path / "copy", trainer.told)
        print(f"\n{found}")
        assert found
    finally:
        trainer.end()
