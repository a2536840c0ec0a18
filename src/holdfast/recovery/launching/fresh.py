"""Evidence of earlier work: with any of it, nothing starts from zero in silence (I5)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from holdfast.recovery.environment.launcher import LauncherFacts


def near_misses(name: str, known: Iterable[str]) -> list[str]:
    """Names that ``name`` may be a slip of: equal but for case and punctuation, or one letter apart.

    Names that differ in a digit are siblings (``exp-1``, ``exp-2``), not slips.

    Example:
        >>> near_misses("gpt2-smal", ["gpt2-small", "gpt3-small", "bert"])
        ['gpt2-small']
        >>> near_misses("exp-2", ["exp-1", "Exp_2"])
        ['Exp_2']
    """
    return [other for other in dict.fromkeys(known) if other != name and _is_slip(name, other)]


def restart_evidence(facts: LauncherFacts, *, store_is_new: bool, launches: int) -> str | None:
    """Why this start cannot be the first of its job although the store knows nothing of it; None if it can."""
    if facts.restarts == 0 or not (store_is_new or launches == 0):
        return None
    what = "the store did not exist" if store_is_new else "the run has never been launched"
    return f"the launcher has restarted this job {facts.restarts} times, but {what}; is the right disk mounted?"


def _is_slip(name: str, other: str) -> bool:
    if _bare(name) == _bare(other):
        return True
    if _digits(name) != _digits(other) or min(len(name), len(other)) < 4:
        return False
    blocks = SequenceMatcher(a=name, b=other, autojunk=False).get_matching_blocks()
    return max(len(name), len(other)) - sum(block.size for block in blocks) <= 1


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _digits(name: str) -> str:
    return "".join(letter for letter in name if letter.isdigit())
