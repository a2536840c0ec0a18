"""Requests to stop: real signals to this very process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from holdfast.recovery.environment import signals
from holdfast.recovery.environment.signals import WATCHED, StopRequests


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in WATCHED}
    yield
    assert {number: signal.getsignal(number) for number in WATCHED} == before


@pytest.mark.parametrize("number", WATCHED)
def test_a_signal_sets_a_flag_and_nothing_else(number: signal.Signals) -> None:
    with StopRequests() as stops:
        assert stops.asked is None
        os.kill(os.getpid(), number)
        assert stops.asked == number.name


def test_handlers_live_only_inside() -> None:
    before = [signal.getsignal(number) for number in WATCHED]
    stops = StopRequests()
    assert [signal.getsignal(number) for number in WATCHED] == before
    with stops:
        assert all(signal.getsignal(number) not in before for number in WATCHED)
    assert [signal.getsignal(number) for number in WATCHED] == before


@pytest.mark.parametrize("number", WATCHED)
def test_an_earlier_handler_still_runs(number: signal.Signals) -> None:
    seen: list[int] = []
    earlier = signal.signal(number, lambda got, frame: seen.append(got))
    try:
        with StopRequests() as stops:
            os.kill(os.getpid(), number)
            assert stops.asked == number.name
        os.kill(os.getpid(), number)
        assert seen == [number, number]
    finally:
        signal.signal(number, earlier)


def test_a_second_interrupt_is_immediate() -> None:
    with StopRequests() as stops:
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_another_request_is_immediate() -> None:
    with StopRequests():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_that_the_program_installs_meanwhile_stays() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    own = lambda number, frame: None  # noqa: E731
    with StopRequests():
        signal.signal(signal.SIGUSR1, own)
    try:
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_two_loops_are_both_asked_and_the_first_to_end_leaves_the_handlers() -> None:
    first, second = StopRequests(), StopRequests()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (first.asked, second.asked) == (None, "SIGTERM")
    second.__exit__(None, None, None)


def test_outside_the_main_thread_it_is_said_that_no_signal_will_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        with StopRequests():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "outside the main thread" in caplog.text


def _killed_by(number: signal.Signals) -> int:
    """How a child ends that is forked here, and gets a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            time.sleep(60)
        finally:
            os._exit(0)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_forked_child_ends_by_a_signal_as_ever(number: signal.Signals) -> None:
    """A pool of processes in an evaluation terminates its workers, and waits for them for ever if they only note it."""
    with StopRequests() as stops:
        assert _killed_by(number) == -number
        assert stops.asked is None
        os.kill(os.getpid(), number)
        assert stops.asked == number.name, "this process goes on watching"


def test_a_pool_of_processes_ends_inside_of_a_loop() -> None:
    with StopRequests(), multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


def test_a_forked_child_has_the_programs_own_handlers() -> None:
    seen: list[int] = []
    earlier = signal.signal(signal.SIGUSR1, lambda got, frame: seen.append(got))
    try:
        with StopRequests():
            pid = os.fork()
            if pid == 0:
                signal.raise_signal(signal.SIGUSR1)
                os._exit(0 if seen == [signal.SIGUSR1] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_the_loop_lets_its_handlers_go_is_the_programs(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    earlier = signal.signal(number, lambda got, frame: seen.append(got))
    put_back = signals._put_back

    def interrupted(needed: set[int]) -> None:
        os.kill(os.getpid(), number)
        put_back(needed)

    monkeypatch.setattr(signals, "_put_back", interrupted)
    try:
        with StopRequests():
            pass
        assert number in seen
    finally:
        signal.signal(number, earlier)


def test_a_realtime_signal_while_the_loop_lets_its_handlers_go_ends_the_program_as_ever() -> None:
    """It is no member of `signal.Signals`, and was lost."""
    number, put_back = signal.SIGRTMIN + 3, signals._put_back

    def interrupted(needed: set[int]) -> None:
        os.kill(os.getpid(), number)
        put_back(needed)

    pid = os.fork()
    if pid == 0:
        try:
            with StopRequests((number,)):
                signals._put_back = interrupted
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
