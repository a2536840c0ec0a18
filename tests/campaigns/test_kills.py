"""Kill -9, everywhere: at each file event of a real save, and at random instants of a real training."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from toy_training import KILLED, ended, finished, forked, newest, only_run, resumed_from, train, with_files

import holdfast
from holdfast.catalog.verifying.verify import verify
from holdfast.testing.faults import CountedFiles, KillAt


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The fingerprint of a training that nobody touched, per number of workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {
        workers: finished(
            lambda workers=workers: train(folder / f"s{workers}", workers=workers), folder / f"r{workers}"
        )
        for workers in (0, 2)
    }


def events_of(folder: Path) -> int:
    """How many file events a whole training makes."""
    counter = CountedFiles()

    def work() -> int:
        train(folder / "counted")
        return len(counter.seen)

    return int(finished(with_files(counter, work), folder / "events"))


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_a_kill_at_any_file_event_loses_nothing_that_was_committed(
    tmp_path: Path, undisturbed: dict[int, str], stride: int
) -> None:
    """Hazards 1-5 and 12; users-ask 2. By turns before and after the event; the long form takes every single one."""
    total = events_of(tmp_path)
    numbers = range(1, total + 1, stride)
    for number in numbers:
        store = tmp_path / f"k{number}"
        killer = KillAt(number, after=number % 2 == 0)
        code = ended(forked(with_files(killer, lambda store=store: train(store))))
        assert code == KILLED, f"event {number} of {total} did not kill: {code}"
        before = newest(store)
        result = finished(lambda store=store: train(store), tmp_path / "result")
        assert result == undisturbed[0], f"another result after a kill at event {number} of {total}"
        if before is not None:
            assert resumed_from(store, only_run(store).launch_numbers()[-1]) == before.id
        assert verify(holdfast.open(store), deep=True).ok
    print(f"\n{len(numbers)} kills at file events of a training with {total} of them")


@pytest.mark.parametrize("kills", [16, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_random_kills_of_a_real_training_change_nothing(
    tmp_path: Path, undisturbed: dict[int, str], kills: int
) -> None:
    """Loader workers, augmentation in workers, accumulation, the third epoch, kills in a row, relaunched at once."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    done = trainings = 0
    while done < kills:
        store = tmp_path / f"t{trainings}"
        trainings += 1
        for _ in range(4):  # in a row, on one store
            pid = forked(lambda store=store: train(store, workers=2, pause=lambda _: time.sleep(0.02)))
            time.sleep(rng.uniform(0.0, 1.2))
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            before = newest(store)
            done += code == KILLED
            if code == 0:
                break
        result = finished(lambda store=store: train(store, workers=2), tmp_path / "result")
        assert result == undisturbed[2], f"seed {seed}: another result"
        assert resumed_from(store, only_run(store).launch_numbers()[-1]) == (before.id if before else None)
        assert verify(holdfast.open(store), deep=True).ok
    print(f"{done} random kills over {trainings} trainings, seed {seed}")
