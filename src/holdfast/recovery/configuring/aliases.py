"""Names that people know from elsewhere, and what each means here: one thing, or it is refused.

Those of Hugging Face's ``TrainingArguments`` (transformers, training_args.py), and those of configurations that number
their runs. docs/configuration.md has the table; a test keeps it true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from holdfast.catalog.naming.grammar import BestBy, InRun
from holdfast.errors import InvalidInput, InvalidPolicy
from holdfast.policy import Best, best, every, latest, never
from holdfast.recovery.configuring.files import Settings
from holdfast.recovery.launching.session import MODES

HF_STEPS = 500
"""What Hugging Face takes for ``save_steps`` where only the strategy is given."""

KEPT = 3
"""What is kept of the newest checkpoints where nobody says how many."""


class Part(StrEnum):
    """A part of a training's state that can be left out."""

    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"


def restoring(part: Part) -> str:
    """The alias that says whether a part is restored."""
    return f"restore_{part}_state"


class Want(NamedTuple):
    """What one alias takes."""

    kind: Callable[[Any], bool]
    words: str


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and value >= 1


def _plain(key: str, value: Any) -> Any:
    """What a tool has made of what was written: a whole float of a count, false of the word ``no`` (YAML 1.1)."""
    if key == "save_strategy" and value is False:
        return "no"
    return int(value) if isinstance(value, float) else value


def _source(value: Any) -> bool:
    return _count(value) or (_text(value) and value not in MODES)


_TEXT, _FLAG, _COUNT = Want(_text, "text"), Want(_flag, "true or false"), Want(_count, "an integer above 0")
_STRATEGIES = ("no", "steps", "epoch", "best")
_RUN = Want(_source, f"the number or the name of a run ({', '.join(MODES)} are none: say them as resume)")

ALIASES: dict[str, Want] = {
    # Hugging Face
    "output_dir": _TEXT,
    "run_name": _TEXT,
    "overwrite_output_dir": _FLAG,
    "save_strategy": Want(lambda value: value in _STRATEGIES or value is False, "no, steps, epoch or best"),
    "save_steps": Want(_count, "an integer above 0 (a share of all steps is not known beforehand)"),
    "save_total_limit": Want(_count, "an integer above 0 (to keep all, write keep: every(steps=1))"),
    "metric_for_best_model": _TEXT,
    "greater_is_better": _FLAG,
    "load_best_model_at_end": _FLAG,
    "resume_from_checkpoint": Want(lambda value: _flag(value) or _text(value), "true, false or a reference"),
    "save_only_model": _FLAG,
    "save_optimizer_state": _FLAG,
    "save_scheduler_state": _FLAG,
    "restore_optimizer_state": _FLAG,
    "restore_scheduler_state": _FLAG,
    "save_safetensors": _FLAG,
    # configurations that number their runs
    "base_dir": _TEXT,
    "run_number": _COUNT,
    "save_every_n_epochs": _COUNT,
    "keep_last_n": Want(_count, "an integer above 0 (to keep all, write keep: every(steps=1))"),
    "monitor": _TEXT,
    "mode": Want(lambda value: value in ("min", "max"), "min or max"),
    "resume_from_run": _RUN,
}
"""Every alias, and what it takes. A null is as if the key were not there."""

_QUESTIONS = (
    ("output_dir", "base_dir"),
    ("run_name", "run_number"),
    ("save_strategy", "save_steps", "save_every_n_epochs"),
    ("save_total_limit", "keep_last_n"),
    ("metric_for_best_model", "monitor"),
    ("greater_is_better", "mode"),
    ("resume_from_checkpoint", "resume_from_run"),
)
"""Aliases that answer the same question."""


class Meant(NamedTuple):
    """One thing that aliases say in our terms."""

    key: str
    value: Any
    by: tuple[str, ...]
    """The aliases that say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """What the aliases of some settings mean."""

    arguments: dict[str, Meant]
    """By argument of a `Checkpointer`."""
    places: Mapping[str, str]
    """Where each alias was written, as `Settings.where`."""
    over: frozenset[str]
    """Those that Python says."""
    new_run: bool = False
    not_saved: Mapping[Part, bool]
    """For parts of which something is said: whether they are left out of checkpoints."""
    not_restored: Mapping[Part, bool]
    notes: tuple[str, ...]
    """What has no meaning here, for the log."""


def translated(settings: Settings, over: Settings | None = None) -> Translated:
    """What the aliases among ``settings`` mean; own names are passed over.

    Args:
        settings: of a file.
        over: of Python: what these say replaces what ``settings`` say to the same question, and the rest goes together.

    Raises:
        InvalidInput: an alias has a value of the wrong kind, or two say different things; both are named.

    Example:
        >>> found = translated(Settings(values={"save_steps": 100, "save_total_limit": 2}))
        >>> [(key, str(meant.value)) for key, meant in found.arguments.items()]
        [('save', 'every(steps=100)'), ('keep', 'latest(2)')]
    """
    above = _Given() if over is None else _Given.of(over)
    beneath = _beneath(_Given.of(settings), above)
    given = beneath.with_(above)
    not_saved = _left_out(beneath, "save") | _left_out(above, "save")
    _check_safetensors(given)
    _check_restored(given, not_saved)
    return Translated(
        arguments=_united(given, [*_places(given), *_schedule(given), *_kept(given), *_resume(given)]),
        places=given.places,
        over=frozenset(above.values),
        new_run=given.get("overwrite_output_dir") is True,
        not_saved=not_saved,
        not_restored=_left_out(beneath, "restore") | _left_out(above, "restore"),
        notes=tuple(_notes(given)),
    )


@dataclass(frozen=True, slots=True)
class _Given:
    """The aliases that are there, checked, and where."""

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> _Given:
        values = {key: value for key, value in settings.values.items() if key in ALIASES and value is not None}
        given = cls(values, {key: settings.where(key) for key in values})
        for key, value in values.items():
            if not ALIASES[key].kind(value):
                raise InvalidInput(f"{given.named(key)}: wants {ALIASES[key].words}, not {value!r}")
        return replace(given, values={key: _plain(key, value) for key, value in values.items()})

    def without(self, keys: Collection[str]) -> _Given:
        """As if ``keys`` were not there."""
        return _Given({key: value for key, value in self.values.items() if key not in keys}, self.places)

    def with_(self, other: _Given) -> _Given:
        """Both; the other one counts before this one."""
        return _Given({**self.values, **other.values}, {**self.places, **other.places})

    def get(self, key: str) -> Any:
        """Its value; None: it is not there."""
        return self.values.get(key)

    def there(self, *keys: str) -> tuple[str, ...]:
        """Those of ``keys`` that are there."""
        return tuple(key for key in keys if key in self.values)

    @property
    def metric(self) -> Any:
        """What says which one is best."""
        return self.get("metric_for_best_model") or self.get("monitor")

    def named(self, key: str) -> str:
        """A key with its place."""
        return f"{key}{self.places[key]}"

    def refuse(self, first: str, second: str, why: str) -> InvalidInput:
        """The error for two keys that do not go together."""
        values = (f"{self.named(key)}: {self.get(key)!r}" for key in (first, second))
        return InvalidInput(f"{' and '.join(values)}: {why}; leave one of them out")


def _beneath(file: _Given, python: _Given) -> _Given:
    """What a file says and Python does not: with another metric its direction is another one, too."""
    metric, of_file = python.metric, file.metric
    another = metric is not None and of_file is not None and metric != of_file
    return file.without(_answered(python) | ({"greater_is_better", "mode"} if another else set()))


def _answered(given: _Given) -> set[str]:
    """All aliases to whose questions there is an answer."""
    found = set(given.values)
    for question in _QUESTIONS:
        if given.there(*question):
            found |= set(question)
    # How many steps is one more question.
    return found - {"save_steps"} if given.get("save_strategy") == "steps" and not given.get("save_steps") else found


def _united(given: _Given, said: list[Meant]) -> dict[str, Meant]:
    found: dict[str, Meant] = {}
    for one in said:
        other = found.setdefault(one.key, one)
        if other.value != one.value:
            raise given.refuse(other.by[0], one.by[0], f"{one.key} would be {other.value} and {one.value}")
    return found


def _places(given: _Given) -> Iterator[Meant]:
    for key, alias in (("store", "output_dir"), ("store", "base_dir"), ("run", "run_name"), ("run", "run_number")):
        if (value := given.get(alias)) is not None:
            yield Meant(key, value, (alias,))


def _schedule(given: _Given) -> Iterator[Meant]:
    """What says when to save."""
    strategy, steps = given.get("save_strategy"), given.get("save_steps")
    if strategy is not None and strategy != "steps" and steps is not None:
        raise given.refuse("save_strategy", "save_steps", "save_steps goes with save_strategy: steps")
    if strategy == "no":
        yield Meant("save", never(), ("save_strategy",))
    elif strategy == "best":
        policy, by = _best(given, "save_strategy")
        yield Meant("save", policy, ("save_strategy", *by))
    elif strategy == "epoch":
        yield Meant("save", every(epochs=1), ("save_strategy",))
    elif strategy or steps:
        yield Meant("save", every(steps=steps or HF_STEPS), given.there("save_steps", "save_strategy"))
    if epochs := given.get("save_every_n_epochs"):
        yield Meant("save", every(epochs=epochs), ("save_every_n_epochs",))


def _kept(given: _Given) -> Iterator[Meant]:
    """What says what to keep: so many of the newest, and the best by a metric beside them."""
    metrics, limits = given.there("metric_for_best_model", "monitor"), given.there("save_total_limit", "keep_last_n")
    needs = given.there("greater_is_better", "mode", *(["load_best_model_at_end"] if _loads_best(given) else []))
    if needs and not metrics:
        raise InvalidInput(f"{given.named(needs[0])}: by which metric? add metric_for_best_model or monitor")
    for limit in limits or ((None,) if metrics else ()):
        newest = latest(given.get(limit) if limit else KEPT)
        best_one, by = _best(given, metrics[0]) if metrics else (None, ())
        yield Meant("keep", newest | best_one if best_one else newest, (*([limit] if limit else ()), *by))


def _loads_best(given: _Given) -> bool:
    return given.get("load_best_model_at_end") is True


def _best(given: _Given, asks: str) -> tuple[Best, tuple[str, ...]]:
    """The policy, and the aliases that say it."""
    metrics = given.there("metric_for_best_model", "monitor")
    if not metrics:
        raise InvalidInput(f"{given.named(asks)}: the best by which metric? add metric_for_best_model or monitor")
    if len({given.get(key) for key in metrics}) > 1:
        raise given.refuse(metrics[0], metrics[1], "there is one metric that says what is best")
    try:
        policy = best(given.get(metrics[0]), mode=_mode(given, metrics))
    except InvalidPolicy as error:
        raise InvalidInput(f"{given.named(metrics[0])}: {error}") from error
    return policy, (*metrics, *given.there("greater_is_better", "mode"))


def _mode(given: _Given, metrics: tuple[str, ...]) -> str:
    """What is said; else Hugging Face goes by the name of its metric, and ``monitor`` means the least."""
    said = {
        "mode": given.get("mode"),
        "greater_is_better": {True: "max", False: "min"}.get(given.get("greater_is_better")),
    }
    assumed = {
        key: "max" if key == "metric_for_best_model" and not given.get(key).endswith("loss") else "min"
        for key in metrics
    }
    modes = {key: mode for key, mode in said.items() if mode} or assumed
    if len(set(modes.values())) > 1:
        first, second = modes
        raise given.refuse(first, second, f"the best would be both the least and the greatest {given.get(metrics[0])}")
    return next(iter(modes.values()))


def _resume(given: _Given) -> Iterator[Meant]:
    wanted = given.get("resume_from_checkpoint")
    if wanted is not None:
        meant = {True: "must", False: "never"}.get(wanted, wanted)
        yield Meant("resume", meant, ("resume_from_checkpoint",))
    run = given.get("resume_from_run")
    if run is not None:
        yield Meant("resume", f"run-{run:03d}" if isinstance(run, int) else run, ("resume_from_run",))


def _left_out(given: _Given, verb: str) -> dict[Part, bool]:
    found = {part: not given.get(key) for part in Part if given.there(key := f"{verb}_{part}_state")}
    if verb == "save" and given.get("save_only_model"):
        for part, left_out in found.items():
            if not left_out:
                raise given.refuse("save_only_model", f"save_{part}_state", f"the {part} is no model")
        return dict.fromkeys(Part, True)
    return found


def _check_restored(given: _Given, not_saved: Mapping[Part, bool]) -> None:
    for part in Part:
        if not_saved.get(part) and given.get(restoring(part)):
            (by, *_) = given.there(f"save_{part}_state", "save_only_model")
            raise given.refuse(by, restoring(part), "what is not saved cannot be restored")


def _check_safetensors(given: _Given) -> None:
    if given.get("save_safetensors") is False:
        raise InvalidInput(
            f"{given.named('save_safetensors')}: false asks for pickle, which can run code when it is loaded; "
            "holdfast has a format of its own without it, so leave the key out"
        )


def _notes(given: _Given) -> Iterator[str]:
    if given.get("save_safetensors"):
        yield f"{given.named('save_safetensors')} changes nothing: holdfast's format is no pickle anyway"
    if _loads_best(given):
        policy, _ = _best(given, "load_best_model_at_end")
        # Without its direction a reference means the least.
        best_one = InRun(None, BestBy(policy.metric, policy.mode))
        yield (
            f"{given.named('load_best_model_at_end')} keeps the best checkpoint; to load it behind the loop, "
            f"call ckpt.restore('{best_one}', only=['model'])"
        )
