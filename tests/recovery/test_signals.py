"""Requests to stop: real signals to this very process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from holdfast.recovery.signals import WATCHED, StopRequests


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
