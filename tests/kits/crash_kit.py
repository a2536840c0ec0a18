"""What a power cut or a kill may leave of a work, and what must hold of every store that comes out."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lived_kit import STORE, WORKS, Toy, objects_of, prepared
from toy_training import ended, finished, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.verifying.verify import verify
from holdfast.cli.app import run as command
from holdfast.errors import NotFound
from holdfast.recovery.launching.resume import Rejected, candidates
from holdfast.storage import opening
from holdfast.storage.local import LocalStorage
from holdfast.testing.crashes import CrashState, RecordingFiles, Trace
from holdfast.testing.recording import ROOT, Barrier, Change, Enter, Note, Resize, Write


class Telling(LocalStorage):
    """Calls ``said`` whenever it has told its user that something was created or deleted."""

    def __init__(self, root: Path, said: Callable[[], None], **options) -> None:
        super().__init__(root, **options)
        self._said = said

    def create(self, name, data) -> None:
        super().create(name, data)
        self._said()

    def delete(self, names) -> None:
        super().delete(names)
        self._said()

    def sink(self, name, reserve):
        sink = super().sink(name, reserve)
        commit = sink.commit

        def committed(length: int) -> None:
            commit(length)
            self._said()

        sink.commit = committed
        return sink


def recorded(name: str, place: Path) -> Trace:
    """The trace of a work on a store of its own. Its notes are what lasts, whenever anybody was told something."""
    before, function = WORKS[name]
    return recorded_on(prepared(place, before), function)


def recorded_on(store: Path, function: Callable[[Path], object]) -> Trace:
    """The trace of a work on the store that is there."""
    files = RecordingFiles(store.parent)
    kept = store.parent.with_suffix(".trace")

    def said() -> None:
        files.trace.note(json.dumps(sorted(objects_of(store))))

    def run() -> None:
        opening.LocalStorage = lambda root, **options: Telling(root, said, files=files, **options)
        said()
        function(store)
        said()
        kept.write_bytes(pickle.dumps(files.trace))

    assert ended(forked(run)) == 0
    return pickle.loads(kept.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What must be there and what must not, at one moment of a work."""

    there: frozenset[str]
    gone: frozenset[str]


def promises(trace: Trace) -> list[Promise]:
    """By how many notes were made: what was there at the last one and is not deleted by what follows."""
    told = [frozenset(json.loads(step.text)) for step in trace.steps if isinstance(step, Note)]
    later = [*told[1:], told[-1]]
    ever = [frozenset[str]().union(*told[: at + 1]) for at in range(len(told))]
    found = [Promise(there=now & soon, gone=was - now) for now, soon, was in zip(told, later, ever, strict=True)]
    return [Promise(there=frozenset(), gone=frozenset()), *found]


def broken(state: CrashState, promise: Promise, truth: Mapping[str, bytes]) -> str | None:
    """What is seen at once, from names and bytes: lost, back, or torn."""
    there = {path.removeprefix(f"{STORE}/"): data for path, data in state.files.items() if "/.tmp-" not in path}
    lost, back = sorted(promise.there - there.keys()), sorted(promise.gone & there.keys())
    torn = sorted(name for name, data in there.items() if name in truth and data != truth[name])
    found = [f"{what} {names[0]}" for what, names in (("lost", lost), ("back", back), ("torn", torn)) if names]
    return "; ".join(found) or None


def opens(store: Path) -> bool:
    try:
        holdfast.open(store)
    except NotFound:
        return False
    return True


def unsound(store: Path, promise: Promise) -> str | None:
    """What the library itself says to a store after an accident: None if all is as it must be."""
    if not opens(store):
        return "it does not open" if promise.there else None
    report = verify(holdfast.open(store), deep=True)
    if not report.ok:
        return f"verify: {report.problems[0].object}: {report.problems[0]}"
    names = objects_of(store)
    lost, back = sorted(promise.there - names), sorted(promise.gone & names)
    return f"lost {lost[:1]}, back {back[:1]}" if lost or back else wrong_choice(store)


def newest_names(store: Path) -> dict[int, str]:
    """Per run, the name of its newest record, from the files alone."""
    found: dict[int, str] = {}
    for path in sorted((store / "catalog/runs").glob("*/records/*.json")):
        if json.loads(path.read_bytes())["type"] == "record":
            found[int(path.parts[-3])] = str(path.relative_to(store))
    return found


def wrong_choice(store: Path) -> str | None:
    """Whether a resume of any run would pick another record than its newest, or, without one, than its fork point."""
    opened = holdfast.open(store)
    newest = newest_names(store)
    for info in opened.runs():
        chosen = next(candidates(opened, opened.run(info.number), Rejected()), None)
        origin = None if info.forked_from is None else str(info.forked_from.address.name)
        wanted = newest.get(info.number, origin)
        if (chosen and str(chosen.name)) != wanted:
            return f"resume of {info.number} picks {chosen and chosen.name}, not {wanted}"
    return None


def unusable(store: Path, promise: Promise) -> str | None:
    """Whether a clean-up fails, hurts what was promised, or leaves unfinished files behind."""
    if not opens(store):
        return None
    newest = newest_names(store)
    code = command(["gc", "--store", str(store), "--json"])
    if code:
        return f"gc ended with {code}"
    if newest_names(store) != newest:
        return f"gc deleted one of {newest}"
    left = sorted(str(path) for path in store.rglob(".tmp-*"))
    # What a policy does not keep goes by right: policies are tested elsewhere, what names the rest here.
    kept = frozenset(name for name in promise.there if re.search("/tags/|run.json|/launches/|/journal/", name))
    return unsound(store, Promise(there=kept, gone=frozenset())) or (f"left over: {left[0]}" if left else None)


def unresumed(store: Path, run: str, report: Path) -> str | None:
    """Whether a real training does not go on from the newest checkpoint, with its very values."""
    number = max((info.number for info in holdfast.open(store).named(run)), default=0) if opens(store) else 0
    newest = newest_names(store).get(number) if number else None
    step = int(newest.split("/")[-1].split(".")[2].split("-")[0]) if newest else None

    def resume() -> str:
        torch.set_num_threads(1)
        model = Toy()
        with Checkpointer(store, run=run, state={"model": model}, save=every(steps=1), saver="inline") as ckpt:
            for first in ckpt.steps((step or 0) + 9):
                return "" if step in (None, first) and (not first or model.is_at(first)) else f"at {first}, not {step}"
        return "it did not go on"

    return finished(resume, report) or None


# What each sync is for


_KINDS = {
    r"holdfast\.json": "holdfast.json",
    r".*/run\.json": "a run",
    r".*/launches/\d+\.json": "a launch",
    r".*/launches/\d+\.\d+\.json": "a start",
    r".*/records/.*\.json": "a record",
    r".*/trees/[0-9a-f]{64}": "a tree",
    r".*/marks/.*\.json": "a mark",
    r".*/holds/.*\.json": "a hold",
    r".*/journal/.*\.json": "a batch of a journal",
    r"catalog/tags/.*\.json": "a tag",
    r"catalog/sweeps/.*\.json": "a sweep",
    r"data/shared/.*\.pack": "a shared pack",
    r"data/runs/\d+/.*\.pack": "a pack",
    r"catalog/runs/\d+": "the folder of a run",
    r"data/runs/\d+": "the folder of a run's packs",
    r".*/marks/[0-9a-f]{16}": "the folder of a record's marks",
    r".*/journal/[^/]+": "the folder of a writer's journal",
}


def kind_of(path: str) -> str:
    path = path.removeprefix(f"{STORE}/")
    found = next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, path)), None)
    return found or f"the folder {path.rpartition('/')[2]}"


def truth_of(trace: Trace) -> dict[str, bytes]:
    """Every object that ever was, by name, whole. Objects never change."""
    data = {number: bytearray(base) for number, base in trace.base.items() if isinstance(base, bytes)}
    for step in trace.steps:
        if isinstance(step, Write):
            data[step.inode].extend(bytes(max(0, step.offset + len(step.data) - len(data[step.inode]))))
            data[step.inode][step.offset : step.offset + len(step.data)] = step.data
        elif isinstance(step, Resize):
            data[step.inode].extend(bytes(max(0, step.length - len(data[step.inode]))))
            del data[step.inode][step.length if not step.grow else len(data[step.inode]) :]
    paths = _paths(trace)
    return {paths[number].removeprefix(f"{STORE}/"): bytes(whole) for number, whole in data.items() if number in paths}


def syncs(trace: Trace) -> dict[int, str]:
    """By number from 1, what each sync makes durable; those with nothing pending are left out."""
    paths = _paths(trace)
    pending: dict[int, list[Change]] = {}
    found: dict[int, str] = {}
    number = 0
    for step in trace.steps:
        if isinstance(step, Barrier):
            number += 1
            told = {said for change in pending.pop(step.inode, []) for said in _told(trace, paths, change)}
            if told:
                found[number] = ", ".join(sorted(told))
        elif not isinstance(step, Note):
            pending.setdefault(step.inode, []).append(step)
    return found


def _told(trace: Trace, paths: Mapping[int, str], change: Change) -> Iterator[str]:
    if not isinstance(change, Enter):
        if change.inode in paths:  # else its name was taken already, by equal content
            yield f"the bytes of {kind_of(paths[change.inode])}"
        return
    for name, target in change.entries:
        if not name.startswith(".tmp-"):
            path = f"{paths[change.inode]}/{name}".lstrip("/")
            yield f"{'the name' if target is not None else 'the removal'} of {kind_of(path)}"


def _paths(trace: Trace) -> dict[int, str]:
    """The lasting path of each file and folder that ever was."""
    found = {ROOT: ""}
    entries = [
        (number, name, below)
        for number, base in trace.base.items()
        if isinstance(base, dict)
        for name, below in base.items()
    ]
    entries += [(step.inode, *entry) for step in trace.steps if isinstance(step, Enter) for entry in step.entries]
    for _ in range(12):  # as deep as a store can be
        for folder, name, below in entries:
            if below is not None and folder in found and not name.startswith(".tmp-"):
                found[below] = f"{found[folder]}/{name}".lstrip("/")
    return found
