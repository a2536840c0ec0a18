"""All packs of a store: which segments they hold whole, and what is wrong with them."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from holdfast.catalog import layout
from holdfast.catalog.locating import list_packs, read_footers
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, Missing, StorageError
from holdfast.ids import Digest, ObjectName
from holdfast.packs.footer import Entry, Footer
from holdfast.packs.index import Footers, SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.verify import Problem as PackProblem
from holdfast.packs.verify import verify_pack


@dataclass(slots=True, kw_only=True)
class Packs:
    """What was found, by folder."""

    names: set[ObjectName] = field(default_factory=set)
    read: int = 0
    """Bytes that were read in the deep check."""
    whole: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """Digests of the segments that can be had from each folder."""
    problems: list[PackProblem] = field(default_factory=list)

    def lacks(self, folders: Iterable[str], digests: Iterable[Digest]) -> list[Digest]:
        """Those of ``digests`` that no pack of ``folders`` holds whole, each once."""
        held = [self.whole[folder] for folder in folders]
        return [digest for digest in dict.fromkeys(digests) if not any(digest in whole for whole in held)]


def check_packs(store: Store, *, deep: bool, progress: Callable[[int], None]) -> Packs:
    """Reads the footers of all packs, and with ``deep`` every byte of them; packs deleted meanwhile are left out."""
    packs = Packs(names=set(list_packs(store, "data/")))
    for name in sorted(packs.names):
        found = read_footers(Footers(store.storage), [name])
        # Whoever needs a pack that is gone lacks its segments, and that is found there.
        packs.problems += [_unreadable(one) for one in found.damaged if not isinstance(one.error, Missing)]
        for footer in found.footers:
            broken = _deep(store, footer, packs, progress) if deep else frozenset()
            packs.whole[_folder(name)].update(digest for digest in footer.digests() if digest not in broken)
    return packs


def _folder(pack: ObjectName) -> str:
    return "/".join(pack.split("/")[: 2 if pack.startswith(layout.SHARED_PACKS) else 3]) + "/"


def _deep(store: Store, footer: Footer, packs: Packs, progress: Callable[[int], None]) -> frozenset[bytes]:
    problems = [one for one in _problems(store, footer, progress) if one.kind != Missing.kind]
    packs.problems += problems
    packs.read += footer.size
    if any(one.digest is None and one.length == 0 for one in problems):
        return frozenset(footer.digests())  # the footer itself was readable before, and is not any more
    return frozenset(one.digest for one in problems if one.digest is not None)


def _problems(store: Store, footer: Footer, progress: Callable[[int], None]) -> list[PackProblem]:
    try:
        return verify_pack(store.storage, footer.name, progress)
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
    index, found = SegmentIndex([footer]), []
    for entry in footer:
        try:
            wanted = [(entry.digest, memoryview(bytearray(entry.length)))]
            read_segments(store.storage, index.get, wanted, threads=1)
        except Damaged as error:
            found.append(_lost_segment(footer.name, entry, error))
    return found


def _lost_segment(pack: ObjectName, entry: Entry, error: Damaged) -> PackProblem:
    return PackProblem(
        object=pack, kind=error.kind, offset=entry.offset, length=entry.stored, digest=entry.digest, message=str(error)
    )


def _unreadable(found: DamagedObject) -> PackProblem:
    return PackProblem(object=found.name, kind=found.error.kind, offset=0, length=0, message=str(found.error))
