"""Pre-emption: real signals to a real training, in a process of its own where they may end it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_training import expected, launched, records_of, steps_of
from toy_training import ended, finished, forked

from holdfast import Checkpointer, every
from holdfast.records import Kind

RARELY = every(steps=1000)


def signal_at(step: int, *numbers: signal.Signals):
    def then(at: int, ckpt: Checkpointer) -> None:
        if at == step:
            assert not ckpt.should_stop()
            for number in numbers:
                os.kill(os.getpid(), number)
            assert ckpt.should_stop()

    return then


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_loop_early_with_a_preempted_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """Users-ask 2: nothing is lost, and the next launch goes on with the very next step."""
    done = launched(tmp_path / "s", 9, save=RARELY, then=signal_at(4, number))
    assert done.steps == [0, 1, 2, 3, 4]
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (5, Kind.PREEMPTED)
    assert number.name in record.reason
    again = launched(tmp_path / "s", 9, save=RARELY)
    assert again.steps == [5, 6, 7, 8]
    assert again.digest == expected()[9]


def test_a_second_ctrl_c_ends_at_once_and_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        launched(tmp_path / "s", 9, then=signal_at(4, signal.SIGINT, signal.SIGINT))
    assert steps_of(tmp_path / "s") == [2, 4]


def test_a_signal_at_a_step_that_is_saved_anyway_makes_one_checkpoint(tmp_path: Path) -> None:
    launched(tmp_path / "s", 9, then=signal_at(3, signal.SIGTERM))
    assert [(record.step, record.kind) for record in records_of(tmp_path / "s")] == [
        (2, Kind.REGULAR),
        (4, Kind.PREEMPTED),
    ]


def test_a_signal_before_and_after_the_loop_does_what_it_always_did(tmp_path: Path) -> None:
    """Handlers live only inside the loop: the default action of SIGTERM is back afterwards."""
    for when in ("before", "after"):

        def work(when: str = when) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if when == "before":
                os.kill(os.getpid(), signal.SIGTERM)
            launched(tmp_path / when, 2)
            os.kill(os.getpid(), signal.SIGTERM)

        assert ended(forked(work)) == -signal.SIGTERM
    assert steps_of(tmp_path / "after") == [2]


def test_a_handler_of_the_program_runs_too(tmp_path: Path) -> None:
    def work() -> list[int]:
        seen: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        launched(tmp_path / "s", 9, then=signal_at(4, signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        return seen

    assert finished(work, tmp_path / "report") == str([int(signal.SIGTERM)])


def test_a_signal_in_the_middle_of_an_accumulation_waits_for_the_step(tmp_path: Path) -> None:
    """Hazard 26: half a gradient is not part of a checkpoint."""
    import torch
    from tiny_training import tiny

    def train() -> list[int]:
        model, optimizer = tiny()
        micros = []
        with Checkpointer(
            tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=RARELY
        ) as ckpt:
            for micro, (step, _) in enumerate(ckpt.batches([0] * 8, total_steps=4)):
                micros.append(step)
                model(torch.ones(1, 16)).mean().backward()
                if micro == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                if micro % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        return micros

    assert train() == [0, 0, 1, 1]
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (2, Kind.PREEMPTED)
    assert "gradients" not in record.exactness
    assert train() == [2, 2, 3, 3]
