"""A store: one folder or prefix that holds runs, and whoever opened it.

Example:
    >>> from holdfast.storage.memory import memory_storage
    >>> store = create_store(memory_storage())
    >>> run = store.create_run("gpt2-small")
    >>> str(run.number), [info.name for info in store.runs()]
    ('run-001', ['gpt2-small'])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, create_once, exists, folders, folders_with, load, load_each
from holdfast.catalog.owners import Liveness, liveness, this_process
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.waiting import Waiter
from holdfast.clock import utc_now
from holdfast.errors import (
    Missing,
    NameTaken,
    NotFound,
    ObjectExists,
    ObjectMissing,
    StorageUnavailable,
    UnknownReference,
)
from holdfast.ids import ObjectName, RecordAddress, RunName, RunNumber, nonce
from holdfast.packs.index import Footers
from holdfast.records import Mark, Owner, RunInfo, StoreInfo, Target
from holdfast.storage.opening import open_storage
from holdfast.storage.protocol import Storage
from holdfast.storage.retrying import retrying

_RUN = re.compile(layout.RUN_FOLDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store that is open. Thread-safe; holds no lock and no connection, so there is nothing to close."""

    storage: Storage
    info: StoreInfo
    whoami: Callable[[], Owner] = this_process
    """Who stands behind the holds and sweeps made through this object."""
    liveness: Callable[[Owner], Liveness] = liveness
    waiter: Waiter = field(default_factory=Waiter)
    visibility: float = 0.0
    """Seconds until every host's listings show a new object: 0, except on network filesystems that cache listings."""
    footers: Footers = field(init=False, repr=False, compare=False)
    """Footers of packs, each read once."""

    marks: dict[RunNumber, dict[ObjectName, Mark]] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Marks that were read, by run: they never change."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "footers", Footers(self.storage))

    @property
    def owner(self) -> Owner:
        """The process that acts through this object."""
        return self.whoami()

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self.storage.url

    def await_visibility(self) -> None:
        """Returns when what was created before is in everybody's listings, and the other way round."""
        if self.visibility > 0:
            self.waiter.sleep(2 * self.visibility)

    def numbers(self) -> list[RunNumber]:
        """The numbers of all runs, ascending, from their names alone."""
        found = folders_with(self.storage, layout.RUNS, layout.RUN_INFO)
        return sorted(RunNumber(int(one)) for one in found if _RUN.fullmatch(one))

    def claimed(self) -> list[RunNumber]:
        """The numbers that are taken, ascending, from folder names alone.

        Among them runs whose ``run.json`` is lost, for their records are there, and maybe some that nothing became of.
        """
        return sorted(RunNumber(int(one)) for one in folders(self.storage, layout.RUNS) if _RUN.fullmatch(one))

    def free(self) -> RunNumber:
        """The number that a new run gets, unless somebody else makes one before."""
        return RunNumber(max(self.claimed(), default=0) + 1)

    def runs(self) -> list[RunInfo]:
        """All runs by number; a damaged one is left out here and found in `damaged`."""
        return self._infos(self.numbers())[0]

    def damaged(self) -> list[DamagedObject]:
        """The ``run.json`` that cannot be read, or are gone from a run that has other objects, each with its error."""
        return self.run_infos()[1]

    def run_infos(self) -> tuple[list[RunInfo], list[DamagedObject]]:
        """`runs` and `damaged`, read at one time."""
        claimed = set(self.claimed())  # first, or a run that is made just now would look like a lost one
        numbers = self.numbers()
        infos, damaged = self._infos(numbers)
        lost = [one for one in sorted(claimed - set(numbers)) if _has_any(self.storage, layout.run_folder(one))]
        return infos, [*damaged, *map(_lost_run, lost)]

    def unreadable_after(self, number: int) -> DamagedObject | None:
        """A ``run.json`` that cannot be read and whose run is newer than ``number``: its name may be any."""
        return next((one for one in reversed(self.damaged()) if int(one.name.split("/")[2]) > number), None)

    def run(self, number: int) -> Run:
        """One run.

        Raises:
            UnknownReference: there is no run of this number.
            Damaged: its ``run.json`` cannot be read.
        """
        wanted = RunNumber(number)
        try:
            return Run(self, load(self.storage, layout.run_info(wanted), RunInfo))
        except ObjectMissing:
            known = ", ".join(map(str, self.numbers()[-5:])) or "no runs yet"
            raise UnknownReference(f"no {wanted} in {self.url}; there is: {known}") from None

    def named(self, name: str) -> list[RunInfo]:
        """All runs of this name, by number: the last one is what a reference means."""
        return [info for info in self.runs() if info.name == name]

    def create_run(
        self,
        name: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        config_digest: str | None = None,
        forked_from: RecordAddress | None = None,
        job: str | None = None,
        number: RunNumber | None = None,
    ) -> Run:
        """A new run under the next free number: claimed atomically, durable, safe against others who do the same.

        With ``number`` under that one, or not at all.

        Raises:
            InvalidName: ``name`` cannot be a run name.
            NameTaken: somebody else has made a run of this ``number``.
            BeingDeleted: a sweep is about to delete ``forked_from``.
            Missing: ``forked_from`` is not there.
        """
        info = RunInfo(
            number=1,
            name=None if name is None else str(RunName(name)),
            created=utc_now(),
            forked_from=None if forked_from is None else Target.of(forked_from),
            job=job,
            config=dict(config or {}),
            config_digest=config_digest,
            attempt=nonce(),
        )
        # The parent is held until run.json names it, so that no sweep falls in between.
        with reading(self, [] if forked_from is None else [forked_from]):
            return self._claim(info, number)

    def _claim(self, info: RunInfo, only: RunNumber | None) -> Run:
        number = self.free() if only is None else only
        while True:
            info = msgspec.structs.replace(info, number=int(number))
            try:
                create_once(self.storage, layout.run_info(number), info)
            except ObjectExists:
                if only is not None:
                    raise NameTaken(
                        f"{only} was made by somebody else just now; start again to go on with it"
                    ) from None
                number = RunNumber(number + 1)
            else:
                return Run(self, info)

    def _infos(self, numbers: Iterable[RunNumber]) -> tuple[list[RunInfo], list[DamagedObject]]:
        return load_each(self.storage, map(layout.run_info, numbers), RunInfo)


def _lost_run(number: RunNumber) -> DamagedObject:
    name = layout.run_info(number)
    return DamagedObject(name, Missing(f"{name} is not there, but other objects of {number} are; copy it back"))


def open_store(url: str | Path, *, create: bool = False, visibility: float = 0.0, hint: bool = True) -> Store:
    """The store at ``url``; with ``create`` it is made if it is not there, also when several do so at once.

    Args:
        url: where it is.
        create: make it.
        visibility: as in `Store`.
        hint: whether the error names stores nearby, for which it looks into the folders around.

    Raises:
        NotFound: no store here, and ``create`` was not asked for.
        Missing: ``holdfast.json`` is gone, or the folder's ``catalog`` or ``data`` is not holdfast's; untouched.
        UnknownFormat: written by a newer holdfast.
        StorageError: it cannot be reached or written.
    """
    try:
        storage = retrying(open_storage(url, create=create))
    except (StorageUnavailable, ObjectMissing) as error:
        if create or not _is_absent(url):
            raise
        raise NotFound(f"no store at {url}: there is no such folder{_nearby(str(url)) if hint else ''}") from error
    store = create_store(storage) if create else existing_store(storage, hint=hint)
    return replace(store, visibility=visibility)


def existing_store(storage: Storage, *, hint: bool = True) -> Store:
    """The store in ``storage``; ``hint`` and errors as in `open_store`."""
    try:
        return Store(storage=storage, info=load(storage, layout.STORE, StoreInfo))
    except ObjectMissing:
        _refuse_orphans(storage)
        nearby = _nearby(storage.url) if hint else ""
        raise NotFound(f"no store at {storage.url}: it has no {layout.STORE}{nearby}") from None


def create_store(storage: Storage) -> Store:
    """The store in ``storage``, made if there is none; errors as in `open_store`."""
    try:
        return existing_store(storage, hint=False)
    except NotFound:
        info = StoreInfo(id=nonce(), created=utc_now())
    try:
        create_once(storage, layout.STORE, info)
    except ObjectExists:
        return existing_store(storage)
    return Store(storage=storage, info=info)


def _refuse_orphans(storage: Storage) -> None:
    found = next((prefix for prefix in ("catalog/", "data/") if _has_any(storage, prefix)), None)
    # Somebody who creates the store right now writes holdfast.json before anything else: look again.
    if found and not exists(storage, layout.STORE):
        raise Missing(
            f"{storage.url} has a folder {found} but no {layout.STORE}: either the copy of a store that is not complete"
            f" (copy {layout.STORE} too) or a folder that holds something else (choose another); nothing was changed"
        )


def _has_any(storage: Storage, prefix: str) -> bool:
    return next(iter(storage.list(prefix)), None) is not None


def _is_absent(url: str | Path) -> bool:
    try:
        return "://" not in str(url) and not Path(url).exists()
    except OSError:
        return False  # nobody here can tell


def _nearby(url: str) -> str:
    """A hint at stores around a local path, or nothing."""
    if "://" in url:
        return ""
    stores = sorted(str(place) for place in _places(Path(url)) if _is_store(place))
    return f"; did you mean {' or '.join(stores[:3])}?" if stores else "; is the path right, and is it mounted?"


def _is_store(place: Path) -> bool:
    # Python 3.11 lets EACCES, ESTALE and EIO through: the folder of somebody else is none that was meant.
    try:
        return (place / layout.STORE).is_file()
    except OSError:
        return False


def _places(path: Path) -> Iterable[Path]:
    for folder in (path, path.parent):
        yield folder
        try:
            yield from sorted(place for place in folder.iterdir() if place.is_dir())[:200]
        except OSError:
            continue
