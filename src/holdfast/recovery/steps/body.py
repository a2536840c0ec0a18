"""The body of the loop in the program's code: whether an error has come out of it, or from behind it.

A `break` tells nobody, and an error behind it looks like one of the body: both close the generator. But a traceback
says where in each function it was, and the loop was entered from a `for`.
"""

from __future__ import annotations

import dis
from types import CodeType, FrameType

_FOR = "FOR_ITER"


class Body:
    """Of one loop. Not thread-safe.

    Args:
        frame: from which the loop is entered.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self._callers = _places(frame)
        self._left: dict[CodeType, int] = {}

    def leave(self, frame: FrameType | None) -> None:
        """The generator is closed, called from ``frame``: by the error itself, which then came from right there."""
        self._left = _places(frame)

    def raised(self, error: BaseException) -> bool:
        """Whether an error came out of the body, or out of the loop itself."""
        seen: dict[CodeType, int] = {}
        entry = error.__traceback__
        while entry is not None:
            seen.setdefault(entry.tb_frame.f_code, entry.tb_lasti)  # the outermost: it may be raised again elsewhere
            entry = entry.tb_next
        for code, at in self._callers.items():
            if code in seen and (stretch := _for_at(code, at)) is not None:
                return seen[code] in stretch or seen[code] == self._left.get(code)
        return False


def _places(frame: FrameType | None) -> dict[CodeType, int]:
    """Where all callers stand, from the inside out: positions in their code, for frames would keep everything alive."""
    found: dict[CodeType, int] = {}
    while frame is not None:
        found.setdefault(frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return found


def _for_at(code: CodeType, at: int) -> range | None:
    """The `for` statement that has called from there; None: it was called by something else."""
    found = [one for one in dis.get_instructions(code) if one.offset <= at]
    if not found or found[-1].opname != _FOR:  # behind an instruction lie its caches
        return None
    return range(found[-1].offset, found[-1].argval)
