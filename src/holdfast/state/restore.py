"""From a stored checkpoint into live objects: plan, fill in place, compare.

Planning compares structures and changes nothing; filling streams bytes into
the memory that the program holds already; comparing recomputes digests of the
live state, because a ``load_state_dict`` may cast, drop or share what it gets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from holdfast.errors import Corrupt, RestoreFailed, StateError, StateMismatch, UnsupportedTensor, UnsupportedValue
from holdfast.state import rng
from holdfast.state.capture import Collected, collect
from holdfast.state.compare import differences
from holdfast.state.entries import entries, without
from holdfast.state.loading import Like, Tree, fresh
from holdfast.state.per_rank import is_per_rank
from holdfast.state.reading import BUFFER_BYTES, Filling, Stored
from holdfast.state.tree import homes
from holdfast.trees import TensorSpec
from holdfast.values import Json

logger = logging.getLogger(__name__)

_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore leaves for the caller: values and random states are applied last, once every rank has loaded."""

    values: dict[str, Any]
    """The plain values of the checkpoint."""
    own: dict[str, Any]
    """What belongs to one rank alone: ``rng``, for `apply_rng`, and more."""
    not_loaded: tuple[str, ...]
    """Objects of the checkpoint that were left out by name."""

    def apply_rng(self) -> list[str]:
        """Restores the global random generators; answers what could not be put back. Call it last."""
        return rng.restore(self.own["rng"]) if self.own.get("rng") else []


@dataclass(frozen=True, slots=True)
class Plan:
    """A restore that fits; nothing has been changed yet."""

    objects: Mapping[str, object]
    stored: Stored
    documents: dict[str, Json]
    live: Collected
    values: Json
    own: Json
    not_loaded: tuple[str, ...]
    plain: Mapping[str, Any]
    """The plain values of this process."""

    def execute(self, *, budget: int = BUFFER_BYTES) -> Restored:
        """Fills and compares. Not atomic: after an error the objects hold anything and must not be used.

        Raises:
            Damaged, StorageError: the bytes could not be read.
            RestoreFailed: the live state differs from the stored one; the entries are named.
        """
        filling = Filling(self.stored, budget)
        for name, adapter in self.live.adapters.items():
            adapter.load(self.documents[name], filling)
        now = collect(self.objects, only=self.live.adapters)
        found = differences(self.documents, now, filling, self.live)
        if found:
            raise RestoreFailed(_report("after the load the live state differs from the checkpoint", found))
        own = dict(fresh(self.own, Filling(self.stored)))
        values = dict(fresh(self.values, Filling(self.stored), like=like_values(self.plain)))
        return Restored(values=values, own=own, not_loaded=self.not_loaded)


class Comparison:
    """A checkpoint beside the objects of this process; nothing is changed.

    Of a checkpoint that several ranks load, each has what the program has there: pipeline stages have parts of one
    model. What no rank has does not fit.

    Args:
        objects: by name.
        stored: the checkpoint.
        only: the names that are wanted; None: all.
        left: names that are left as they are; the checkpoint may have them or not.
        values: plain values of this process: tensors among those of the checkpoint go to the devices of these.

    Raises:
        InvalidInput, StateError: as `holdfast.state.capture.collect`.
        Corrupt: the values page is malformed.
    """

    def __init__(
        self,
        objects: Mapping[str, object],
        stored: Stored,
        *,
        only: Collection[str] | None = None,
        left: Collection[str] = (),
        values: Mapping[str, Any] | None = None,
    ) -> None:
        stored.check()
        self._values = values or {}
        self._objects, self._stored, self._only = objects, stored, only
        # Whoever takes parts of a checkpoint, or makes the optimizer anew, has decided what is to be trained.
        self._decided = only is not None or any(isinstance(objects[name], Optimizer) for name in left)
        self._document = _document(stored)
        self._live = collect(objects, only=[name for name in (objects if only is None else only) if name not in left])
        self._entries = list(entries(self._document["objects"]))

    @property
    def lacking(self) -> bytes:
        """For each entry of the checkpoint, in the order that all ranks have, 1 if it is not here."""
        here = {name: {"data": data} for name, data in self._live.data.items()}
        there = set(entries(here))
        return bytes(entry not in there for entry in self._entries)

    def plan(self, nowhere: bytes) -> Plan:
        """How to load it.

        Args:
            nowhere: for each entry, 1 if no rank has it.

        Raises:
            StateMismatch: it does not fit; every reason is in the message.
        """
        pairs = zip(self._entries, self.lacking, nowhere, strict=True)
        elsewhere = {entry for entry, lacks, lost in pairs if lacks and not lost}
        saved, live = self._without_other_ranks(without(self._document["objects"], elsewhere))
        stored, only = self._stored, self._only
        surplus = saved.keys() - self._objects.keys() if only is None else ()
        problems = [
            f"{name}: in the checkpoint, not in the program; leave it out with only=" for name in sorted(surplus)
        ]
        problems += _problems(saved, live, stored)
        if problems:
            raise StateMismatch(_report("the checkpoint does not fit the program; nothing was changed", problems))
        # What is here now; what an optimizer makes anew is found when it is needed.
        stored.need((spec.name, spec) for spec in live.specs if spec.name in stored.by_path)
        documents = {name: saved[name]["data"] for name in live.adapters}
        if self._decided:
            documents = {name: _trained_as_now(data, live.data[name]) for name, data in documents.items()}
        not_loaded = tuple(name for name in saved if name not in documents)
        saved_values, own = self._document["values"], _parsed(stored.own)
        return Plan(self._objects, stored, documents, live, saved_values, own, not_loaded, self._values)

    def _without_other_ranks(self, saved: dict[str, Any]) -> tuple[dict[str, Any], Collected]:
        """Leaves out what belongs to ranks that are not here, on either side."""
        live = self._live.adapters
        kept = {name: item for name, item in saved.items() if name in live or not is_per_rank(name)}
        fresh = [name for name in live if is_per_rank(name) and name not in saved]
        for name in fresh:
            logger.warning("%s stays as it is: the checkpoint has nothing for this rank", name)
        return kept, replace(self._live, adapters={name: one for name, one in live.items() if name not in fresh})


def restore(
    objects: Mapping[str, object],
    stored: Stored,
    *,
    only: Collection[str] | None = None,
    budget: int = BUFFER_BYTES,
) -> Restored:
    """Brings ``objects`` into the stored state, in place, and proves it; at most ``budget`` bytes are on the way.

    The memory of parameters and buffers stays where it is. Plain values and
    random states are handed back, to be applied when everything else is done.

    Raises:
        StateMismatch: before anything was changed, with all reasons.
        RestoreFailed, Damaged, StorageError: afterwards; the objects must not be used.
    """
    comparison = Comparison(objects, stored, only=only)
    return comparison.plan(comparison.lacking).execute(budget=budget)


def like_values(values: Mapping[str, Any]) -> Like:
    """Where tensors among plain values go: where the program has those of the same path; else to the CPU."""
    try:
        return homes(dict(values), "values").get
    except (UnsupportedValue, UnsupportedTensor, StateError):
        return lambda _: None  # they are replaced; a save would refuse them


def _problems(saved: Mapping[str, Any], live: Collected, stored: Stored) -> Iterator[str]:
    for name, adapter in live.adapters.items():
        if name not in saved:
            yield f"{name}: missing in the checkpoint, which has {', '.join(sorted(saved)) or 'no objects'}"
        elif saved[name]["kind"] != adapter.kind:
            yield f"{name}: stored as a {saved[name]['kind']}, is a {adapter.kind} now"
        else:
            yield from adapter.problems(Tree(saved[name]["data"], stored.spec), live.tree(name))
    yield from _tie_problems(live, stored)


def _tie_problems(live: Collected, stored: Stored) -> Iterator[str]:
    """Entries that live in place cannot be one for the checkpoint and two for the program, or the reverse."""
    fixed = tuple(f"{name}/" for name, adapter in live.adapters.items() if adapter.kind == "module")
    was, now = (
        {p: s.name for s in specs for p in _paths(s) if p.startswith(fixed)} for specs in (_specs(stored), live.specs)
    )
    for apart, tied, text in (
        (now, was, "were one tensor when they were stored, and are not tied now; tie them before the restore"),
        (was, now, "are one tensor now, and were stored apart; untie them before the restore"),
    ):
        for first, *others in _tied(tied):
            split = [path for path in others if path in apart and first in apart and apart[path] != apart[first]]
            if split:
                yield f"{', '.join([first, *split])}: {text}"


def _tied(names: Mapping[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for path, name in names.items():
        groups.setdefault(name, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _specs(stored: Stored) -> Iterable[TensorSpec]:
    return stored.skeleton.tensors


def _paths(spec: TensorSpec) -> tuple[str, ...]:
    return (spec.name, *spec.aliases)


def _trained_as_now(data: Json, live: Json) -> Json:
    return {**data, "trainable": live["trainable"]} if isinstance(data, dict) and "trainable" in data else data


def _document(stored: Stored) -> dict[str, Any]:
    document = _parsed(stored.values)
    if not {"objects", "values"} <= document.keys():
        raise Corrupt("the values of the checkpoint are malformed: no objects and values; run 'holdfast verify'")
    if "dcp" in document:
        raise StateMismatch(
            "the checkpoint was made through torch.distributed.checkpoint; "
            "load it with dcp.load(..., storage_reader=holdfast.integrations.dcp.StorageReader(...))"
        )
    return document


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"the values of the checkpoint are malformed: {error}; run 'holdfast verify'") from error
    if not isinstance(document, dict):
        raise Corrupt("the values of the checkpoint are malformed: they have no names; run 'holdfast verify'")
    return document


def _report(what: str, lines: list[str]) -> str:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  ".join([f"{what} ({len(lines)} differences):", *lines[:_SHOWN], *more])
