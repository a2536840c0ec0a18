"""Which signals may ask a training to stop."""

from __future__ import annotations

import signal

import pytest

from holdfast.errors import InvalidInput
from holdfast.recovery.environment.signal_names import name_of, signal_numbers


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("term", signal.SIGTERM),
        ("SigUsr2", signal.SIGUSR2),
        ("SIGHUP", signal.SIGHUP),
        ("SIGXCPU", signal.SIGXCPU),
        (10, signal.SIGUSR1),
        (signal.SIGINT, signal.SIGINT),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        (signal.SIGRTMIN + 4, signal.SIGRTMIN + 4),
    ],
)
def test_signals_go_by_name_or_number(given, number) -> None:
    assert signal_numbers([given]) == (number,)


def test_each_signal_counts_once() -> None:
    assert signal_numbers(["SIGTERM", 15, "TERM", "SIGINT"]) == (15, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 3])
def test_names_and_numbers_belong_together(number) -> None:
    assert signal_numbers([name_of(number)]) == (number,)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("SIGKILL", "cannot be caught"),
        (19, "cannot be caught"),
        ("SIGSEGV", "broken"),
        ("SIGABRT", "broken"),
        ("SIGCHLD", "loader worker"),
        ("SIGCONT", "job control"),
        ("SIGPIPE", "pipe"),
    ],
)
def test_what_cannot_ask_anybody_to_stop_is_refused_with_the_reason(given, why) -> None:
    with pytest.raises(InvalidInput, match=why):
        signal_numbers([given])


@pytest.mark.parametrize("given", ["SIGWHATEVER", "", "SIGTERM+1", "SIGRTMIN+x", "SIGRTMIN+999", 0, 4711, True, None])
def test_what_is_no_signal_is_refused(given) -> None:
    with pytest.raises(InvalidInput, match="signal"):
        signal_numbers([given])


@pytest.mark.parametrize("given", ["SIGTERM", 15])
def test_a_single_one_is_not_taken_for_a_sequence(given) -> None:
    with pytest.raises(InvalidInput, match="a sequence of names is wanted"):
        signal_numbers(given)
