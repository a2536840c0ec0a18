"""A training configuration that is another one than that of the checkpoint: what changed, and what is done about it.

Per key there are three ways: *override* takes the new value and says so, *keep* goes on with that of the checkpoint,
*refuse* does not start. By default everything is overridden, for a relaunch with another learning rate is what people
do every day; what must not change by mistake is named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from holdfast.catalog.config import changed_keys, dotted_keys, with_value
from holdfast.errors import InvalidInput, StateMismatch

LONGEST = 200
"""Characters of a value that a message shows."""

MENTIONED = 3
"""Keys that a message says may have been meant."""


class OnChange(StrEnum):
    """What is done about a key whose value has changed."""

    OVERRIDE = "override"
    KEEP = "keep"
    REFUSE = "refuse"


_STRICTNESS = tuple(OnChange)
"""What asks for least comes first."""
_DONE = {OnChange.KEEP: "kept", OnChange.REFUSE: "refused"}
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ChangeRules:
    """See `change_rules`."""

    rules: tuple[tuple[str, OnChange], ...] = ()

    def decide(self, key: str) -> tuple[OnChange, str]:
        """What is done about a key, and the pattern that says so.

        The most telling pattern counts: the key itself, else the one with most letters, else the first of them.
        """
        fitting = [(pattern, decision) for pattern, decision in self.rules if _fits(pattern, key)]
        # max() takes the first of equals.
        best = max(fitting, key=lambda rule: (rule[0] == key, _letters(rule[0])), default=("*", OnChange.OVERRIDE))
        return best[1], best[0]

    def strictest(self, keys: Iterable[str]) -> tuple[OnChange, str]:
        """What is done about a change that concerns all these keys, as that of a table concerns those below it."""
        return max(map(self.decide, keys), key=lambda one: _STRICTNESS.index(one[0]))

    def check_keys(self, known: Collection[str]) -> None:
        """Refuses rules that would protect a key and name none: a slip in it would let everything through, silently.

        Args:
            known: the dotted keys that there are, of the checkpoint and of this launch.

        Raises:
            InvalidInput: all such rules are named, with what may have been meant.
        """
        slips = [
            f"on_config_change: {pattern!r} is no key of the configuration, so nothing would be {_DONE[decision]}"
            f"; {_meant(pattern, known)}"
            for pattern, decision in self.rules
            if decision in _DONE and pattern not in known and not _WILD.search(pattern)
        ]
        if slips:
            raise InvalidInput("\n".join(slips))


def change_rules(given: object) -> ChangeRules:
    """What ``on_config_change=`` asks for: one word for all keys, or a word for each key or pattern of keys.

    Args:
        given: None, "override", "keep", "refuse", or a mapping of keys to these. Nested keys are dotted; ``*`` and
            ``?`` are as in file names; a key stands for everything below it, too.

    Raises:
        InvalidInput: anything else.

    Example:
        >>> rules = change_rules({"lr": "refuse", "batch_size": "keep", "*": "override"})
        >>> rules.decide("batch_size")[0], rules.decide("seed")[0]
        (<OnChange.KEEP: 'keep'>, <OnChange.OVERRIDE: 'override'>)
    """
    if given is None:
        return ChangeRules()
    if isinstance(given, ChangeRules):
        return given
    if isinstance(given, str):
        return ChangeRules((("*", _word("on_config_change", given)),))
    if not isinstance(given, Mapping):
        raise InvalidInput(f"on_config_change wants {_words()}, or a mapping of keys to these, not {given!r}")
    for key in given:
        if not isinstance(key, str) or not key:
            raise InvalidInput(f"on_config_change: {key!r} is no key; write nested ones with dots, such as optim.lr")
    return ChangeRules(tuple((key, _word(f"on_config_change[{key!r}]", word)) for key, word in given.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """One key, and what is done about it."""

    path: tuple[str, ...]
    before: Any
    """The checkpoint's; `holdfast.catalog.config.ABSENT` if it had none."""
    after: Any
    decision: OnChange
    pattern: str
    """Which rule says so."""

    @property
    def key(self) -> str:
        """Nested keys are dotted."""
        return ".".join(self.path)

    def __str__(self) -> str:
        kept = "  (kept as it was: ckpt.config has it)"
        ends = {OnChange.OVERRIDE: "", OnChange.KEEP: kept, OnChange.REFUSE: "  (refused)"}
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)}{ends[self.decision]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDecision:
    """What to do about all changes together."""

    changes: tuple[ConfigChange, ...]
    config: Mapping[str, Any]
    """The configuration that counts: the new one, with the checkpoint's values where those are kept."""

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """``config`` with the values that are kept: for the user's own one, in which nothing is blotted out."""
        found = dict(config)
        for change in self.of(OnChange.KEEP):
            found = with_value(found, change.path, change.before)
        return found

    def of(self, decision: OnChange) -> tuple[ConfigChange, ...]:
        """The changes about which this is done."""
        return tuple(change for change in self.changes if change.decision is decision)

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes))

    def check(self, what: str) -> None:
        """Refuses to go on if a rule says so.

        Args:
            what: whose configuration the old one is, for the message.

        Raises:
            StateMismatch: all changes are listed.
        """
        if refused := self.of(OnChange.REFUSE):
            keys = ", ".join(f"{change.key} (by {change.pattern!r})" for change in refused)
            raise StateMismatch(
                f"the configuration is not that of {what}, and on_config_change refuses a change of {keys}:\n{self}\n"
                "restore the old value, say 'override' or 'keep' for it, or begin a new run"
            )


def decide_changes(before: Mapping[str, Any], after: Mapping[str, Any], rules: ChangeRules) -> ConfigDecision:
    """What is done about each key that differs. Pure.

    Args:
        before: the configuration of the checkpoint, as stored.
        after: the one of this launch.
        rules: by key.

    Raises:
        InvalidInput: a key that is to be kept or refused is in neither of them.

    Example:
        >>> rules = change_rules({"batch_size": "keep"})
        >>> decision = decide_changes({"lr": 0.1, "batch_size": 8}, {"lr": 0.2, "batch_size": 16}, rules)
        >>> print(decision)
        batch_size: 8 -> 16  (kept as it was: ckpt.config has it)
        lr: 0.1 -> 0.2
        >>> decision.config
        {'lr': 0.2, 'batch_size': 8}
    """
    rules.check_keys({*dotted_keys(before), *dotted_keys(after)})
    changes = []
    for path, then, now in changed_keys(before, after):
        decision, pattern = rules.strictest(_concerned(".".join(path), then, now))
        changes.append(ConfigChange(path=path, before=then, after=now, decision=decision, pattern=pattern))
    undecided = ConfigDecision(changes=tuple(changes), config=after)
    return replace(undecided, config=undecided.applied(after))


def _concerned(key: str, *values: object) -> Iterator[str]:
    """A key that changes, and all below it where a table comes, goes, or is replaced as a whole."""
    yield key
    for table in values:
        if isinstance(table, Mapping):
            yield from (f"{key}.{inner}" for inner in dotted_keys(table))


def _fits(pattern: str, key: str) -> bool:
    return fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*")


def _meant(slip: str, known: Collection[str]) -> str:
    """For the end of a message; "lr" may mean optim.lr, and the other way round."""
    ends = [key for key in sorted(known) if key.endswith(f".{slip}") or slip.endswith(f".{key}")]
    words = {word.lower(): key for key in sorted(known) for word in (key.rpartition(".")[2], key)}
    close = [words[word] for word in get_close_matches(slip.lower(), words, n=MENTIONED, cutoff=0.6)]
    if near := list(dict.fromkeys(ends + close))[:MENTIONED]:
        return f"did you mean {' or '.join(near)}?"
    return f"its keys are {_cut(', '.join(sorted(known)))}" if known else "it has none at all"


def _letters(pattern: str) -> int:
    return len(re.sub(r"[*?]|\[.*?\]", "", pattern))


def _word(what: str, word: object) -> OnChange:
    if word not in tuple(OnChange):
        raise InvalidInput(f"{what} wants {_words()}, not {word!r}")
    return OnChange(str(word))


def _words(words: Sequence[str] = tuple(OnChange)) -> str:
    return f"{', '.join(map(repr, map(str, words[:-1])))} or {str(words[-1])!r}"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
