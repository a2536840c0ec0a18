"""Which signals may ask a training to stop, by name or number."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from holdfast.errors import InvalidInput

_FAULT = "says that the program itself is broken, and it cannot go on to save"
_JOB_CONTROL = "belongs to the job control of the shell and the scheduler"
_REFUSED = {
    "SIGKILL": "cannot be caught; staged state survives it (see stage= and saver=)",
    "SIGSTOP": "cannot be caught",
    **dict.fromkeys(("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGIOT", "SIGTRAP", "SIGSYS"), _FAULT),
    **dict.fromkeys(("SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGWINCH"), _JOB_CONTROL),
    "SIGCHLD": "comes with the end of every loader worker, and torch needs it to notice that",
    "SIGCLD": "comes with the end of every loader worker, and torch needs it to notice that",
    "SIGPIPE": "comes whenever somebody closes a pipe",
}


def signal_numbers(signals: Sequence[str | int]) -> tuple[int, ...]:
    """The numbers of signals, each once, in the order given.

    Args:
        signals: names such as "SIGTERM", "TERM" or "SIGRTMIN+3", or numbers.

    Raises:
        InvalidInput: no such signal, or one that cannot ask anybody to stop; with the reason.

    Example:
        >>> [int(number) for number in signal_numbers(["SIGTERM", "usr1", 2])]
        [15, 10, 2]
    """
    if isinstance(signals, (str, int)):
        raise InvalidInput(f"signals={signals!r}: a sequence of names is wanted, such as signals=({signals!r},)")
    return tuple(dict.fromkeys(_number(one) for one in signals))


def name_of(number: int) -> str:
    """The name of a signal; those of the realtime ones count from SIGRTMIN."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _number(given: str | int) -> int:
    number = given if isinstance(given, int) and not isinstance(given, bool) else _named(given)
    if number not in signal.valid_signals():
        raise InvalidInput(f"signals={given!r}: there is no such signal here")
    name = name_of(number)
    if name in _REFUSED:
        raise InvalidInput(f"signals={given!r}: {name} {_REFUSED[name]}; leave it out")
    return int(number)


def _named(given: object) -> int:
    text = str(given).strip().upper()
    text = text if text.startswith("SIG") else f"SIG{text}"
    name, plus, offset = text.partition("+")
    number = getattr(signal, name, None)
    if not isinstance(number, signal.Signals) or (plus and not (name == "SIGRTMIN" and offset.isdecimal())):
        raise InvalidInput(f"signals={given!r}: not the name of a signal; such as SIGTERM, SIGUSR1 or SIGRTMIN+3")
    return number + int(offset or 0)
