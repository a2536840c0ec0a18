"""How people name checkpoints: one grammar for the API, the command line and configuration files.

::

    reference = [run] "@" selector | run | tag | id
    run       = "run-" digits | ["run:"] run name          a name means the newest run of that name
    tag       = ["tag:"] tag name
    id        = ["id:"] 6 to 16 hexadecimal digits         any unique prefix of a record id
    selector  = digits                                     completed steps
              | "epoch:" digits                            the newest of that epoch, counted from 0
              | "last" | "good"
              | "best:" metric [":min" | ":max"]           min is meant where nothing is said

A plain word may be a run name, a tag or an id; ``run:``, ``tag:`` and ``id:``
say which. Reserved forms cannot be names, so all other references have one
reading only.

Example:
    >>> parse("gpt2-small@500")
    InRun(run='gpt2-small', selector=AtStep(step=500))
    >>> str(parse("run-003@best:val_loss")), str(parse("run-003@last"))
    ('run-003@best:val_loss', 'run-003')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.catalog.naming.metrics import Mode, is_metric_name
from holdfast.errors import InvalidName, InvalidReference
from holdfast.ids import RunName, RunNumber, TagName

LONGEST = 400
"""Characters of a reference."""

_NUMBER = re.compile(r"run-(\d{1,9})")
_STEP = re.compile(r"\d{1,18}")
_ID = re.compile(r"[0-9a-f]{6,16}")
_BARE = frozenset({"last", "good", "head", "best"})


@dataclass(frozen=True, slots=True)
class Last:
    """The head of the run."""

    def __str__(self) -> str:
        return "last"


@dataclass(frozen=True, slots=True)
class Good:
    """The newest one that is marked good."""

    def __str__(self) -> str:
        return "good"


@dataclass(frozen=True, slots=True)
class AtStep:
    """The one after so many completed steps."""

    step: int

    def __str__(self) -> str:
        return str(self.step)


@dataclass(frozen=True, slots=True)
class AtEpoch:
    """The newest one of an epoch, counted from 0."""

    epoch: int

    def __str__(self) -> str:
        return f"epoch:{self.epoch}"


@dataclass(frozen=True, slots=True)
class BestBy:
    """The one with the best value of a metric."""

    metric: str
    mode: Mode = Mode.MIN

    def __str__(self) -> str:
        return f"best:{self.metric}" + ("" if self.mode is Mode.MIN else f":{self.mode}")


Selector = Last | Good | AtStep | AtEpoch | BestBy


@dataclass(frozen=True, slots=True)
class InRun:
    """A checkpoint of a run; of the default run where none is named."""

    run: RunNumber | RunName | None
    selector: Selector

    def __str__(self) -> str:
        if self.run is None:
            return f"@{self.selector}"
        if self.selector != Last():
            return f"{self.run!s}@{self.selector}"
        return str(self.run) if isinstance(self.run, RunNumber) else f"run:{self.run!s}"


@dataclass(frozen=True, slots=True)
class OfTag:
    """The checkpoint that a tag names."""

    tag: TagName

    def __str__(self) -> str:
        return f"tag:{self.tag!s}"


@dataclass(frozen=True, slots=True)
class OfId:
    """The checkpoint whose id begins like this."""

    prefix: str

    def __str__(self) -> str:
        return self.prefix if len(self.prefix) == 16 else f"id:{self.prefix}"


@dataclass(frozen=True, slots=True)
class Word:
    """A run name, a tag or the beginning of an id: the store decides which."""

    word: str

    def __str__(self) -> str:
        return self.word


Reference = InRun | OfTag | OfId | Word


def parse(text: str) -> Reference:
    """What ``text`` asks for; `str` of the answer writes it again.

    Raises:
        InvalidReference: not in the grammar; the message says what comes nearest.
    """
    if not text or len(text) > LONGEST:
        raise InvalidReference(f"a reference has 1 to {LONGEST} characters, not {len(text)}")
    run, at, selector = text.partition("@")
    try:
        return InRun(_run(run), _selector(selector, text)) if at else _plain(text)
    except InvalidName as error:
        raise InvalidReference(f"cannot read the reference {text!r}: {error}") from None


def _plain(text: str) -> Reference:
    kind, colon, name = text.partition(":")
    if colon:
        return _explicit(kind, name, text)
    number = _NUMBER.fullmatch(text)
    if number:
        return InRun(RunNumber(int(number[1])), Last())
    if text in _BARE:
        raise InvalidReference(f"{text!r} needs an @ before it: '@{text}{':METRIC' if text == 'best' else ''}'")
    if len(text) == 16 and _ID.fullmatch(text):
        return OfId(text)
    return Word(TagName(text))


def _explicit(kind: str, name: str, text: str) -> Reference:
    if kind == "run":
        run = _run(name)
        return InRun(RunName("") if run is None else run, Last())
    if kind == "tag":
        return OfTag(TagName(name))
    if kind == "id" and _ID.fullmatch(name):
        return OfId(name)
    wanted = "run:NAME, tag:NAME, id:HEX (6 to 16 digits), or a selector such as '@best:val_loss' behind an @"
    raise InvalidReference(f"cannot read the reference {text!r}: with a colon it is {wanted}")


def _run(text: str) -> RunNumber | RunName | None:
    number = _NUMBER.fullmatch(text)
    if number:
        return RunNumber(int(number[1]))
    return RunName(text.removeprefix("run:")) if text else None


def _selector(text: str, whole: str) -> Selector:
    kind, colon, rest = text.partition(":")
    if kind in ("last", "good") and not colon:
        return Last() if kind == "last" else Good()
    if kind == "epoch" and _STEP.fullmatch(rest):
        return AtEpoch(int(rest))
    if kind == "best" and rest:
        return _best(rest, whole)
    if _STEP.fullmatch(text):
        return AtStep(int(text))
    known = "a number of steps, last, good, epoch:N, best:METRIC or best:METRIC:max"
    raise InvalidReference(f"cannot read {text!r} in the reference {whole!r}; after the @ comes {known}")


def _best(text: str, whole: str) -> BestBy:
    metric, colon, mode = text.partition(":")
    if not is_metric_name(metric) or (colon and mode not in tuple(Mode)):
        raise InvalidReference(f"cannot read 'best:{text}' in the reference {whole!r}; write best:METRIC[:min|:max]")
    return BestBy(metric, Mode(mode) if colon else Mode.MIN)
