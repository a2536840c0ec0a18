"""Storage in a directory: local disks, memory disks, network filesystems."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import InvalidName, ObjectMissing, StorageUnavailable
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.direct import FileSink, FileSource
from holdfast.storage.durable import PREFIX, DurableWriter, Publishing, left_over, made_here, sweep
from holdfast.storage.files import Files, reported, storage_error
from holdfast.storage.protocol import Listed, Sink, Source

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_CHUNK = 1 << 16

_PART = re.compile(r"[a-z0-9][a-z0-9._+=-]*")

_REPAIRS = "lost+found"  # the filesystem's own, and often unreadable

log = logging.getLogger(__name__)


class LocalStorage:
    """A `Storage` in the directory ``root``; an object is a file, its name the path.

    Everything that it changes goes through ``files``. Empty folders stay: removing
    them would race with a writer that has just found them there.

    Args:
        root: the directory; made, durably, unless ``create`` is False.
        files: the operating system seam.
        create: with False a missing root is an error, for it may be a missing mount.

    Raises:
        StorageUnavailable: the root is missing or is not a directory.
        StorageReadOnly: the root cannot be made.

    Example:
        >>> import tempfile
        >>> from holdfast.ids import ObjectName
        >>> storage = LocalStorage(Path(tempfile.mkdtemp()))
        >>> storage.create(ObjectName("catalog/a.json"), b"{}")
        >>> [(str(item.name), item.size) for item in storage.list("")]
        [('catalog/a.json', 2)]
    """

    def __init__(self, root: Path, files: Files | None = None, *, create: bool = True) -> None:
        self._root = root.absolute()
        self._files = files or Files()
        self._writer = DurableWriter(self._root, self._files)
        with reported("open", self._root):
            if create:
                _make_root(self._root, self._files)
            self._check_root()

    @property
    def url(self) -> str:
        """See `Storage.url`: the path of the root."""
        return str(self._root)

    @property
    def publishing(self) -> Publishing | None:
        """How names are given on this filesystem; None before the first object was created through this."""
        return self._writer.publishing

    def create(self, name: ObjectName, data: Buffer) -> None:
        """See `Storage.create`."""
        path, view = self._path(name), memoryview(data).cast("B")
        with reported("create", path):
            unfinished = self._writer.begin(path)
            try:
                self._writer.write(unfinished, view)
                self._writer.finish(unfinished, path, len(view))
            except BaseException:
                self._writer.discard(unfinished)
                raise

    def read(self, name: ObjectName) -> bytes:
        """See `Storage.read`."""
        known = name if type(name) is ObjectName else ObjectName(name)
        try:
            return _content(f"{self._root}/{known}")
        except OSError:
            with self._found("read", known) as path:  # once more, for what is wrong in words
                return path.read_bytes()

    def size(self, name: ObjectName) -> int:
        """See `Storage.size`."""
        with self._found("look at", name) as path:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a file")
            return facts.st_size

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Storage.list`. Files that cannot be objects (hidden, in capitals) are passed over."""
        if prefix and (not prefix.endswith("/") or not _is_name(prefix[:-1])):
            raise InvalidName(f"not a folder to list: {prefix[:120]!r}; use '' or names that end in '/'")
        with reported("list", self._root):
            self._check_root()
        return _listed(str(self._root / prefix), prefix)

    def folders(self, prefix: str) -> tuple[str, ...]:
        """The names of the folders right below ``prefix``, sorted; nothing else is read."""
        with reported("list", self._root):
            self._check_root()
            return tuple(sorted(one.name for one in _objects(str(self._root / prefix)) if one.is_dir()))

    def delete(self, names: Iterable[ObjectName]) -> None:
        """See `Storage.delete`. What one call deletes goes in no promised order; two calls are in order."""
        folders: dict[Path, None] = {}
        for path in map(self._path, names):
            with reported("delete", path):
                self._unlink(path)
            folders[path.parent] = None
        for folder in folders:
            with reported("delete from", folder):
                self._sync_if_there(folder)

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """See `Storage.sink`."""
        return FileSink(self._writer, self._path(name), reserve)

    def source(self, name: ObjectName) -> Source:
        """See `Storage.source`."""
        with self._found("open", name) as path:
            return FileSource(path)

    def sweep_unfinished(self) -> int:
        """See `Storage.sweep_unfinished`. Without working locks, and of what other hosts left, nothing is removed."""
        with reported("clean up", self._root):
            self._check_root()
            found = list(_unfinished(self._root))
            foreign = [path for path in found if not made_here(path)]
            if foreign:
                log.warning(
                    "%d unfinished files in %s are of other hosts, whose locks cannot be seen here, %s among them; "
                    "clean up there, or remove them when nobody writes",
                    *(len(foreign), self._root, foreign[0]),
                )
            return sum(sweep(self._files, path) for path in found if path not in set(foreign))

    def unfinished(self) -> int:
        """See `Storage.unfinished`; of what other hosts left, nothing counts."""
        with reported("look at", self._root):
            self._check_root()
            return sum(left_over(path) for path in _unfinished(self._root) if made_here(path))

    def _path(self, name: ObjectName) -> Path:
        return self._root / ObjectName(name)

    @contextmanager
    def _found(self, doing: str, name: ObjectName) -> Iterator[Path]:
        path = self._path(name)
        with reported(doing, path):
            try:
                yield path
            except _ABSENT as error:
                self._check_root()
                raise ObjectMissing(f"no object {name} in {self._root}", errno=errno.ENOENT) from error

    def _check_root(self) -> None:
        try:
            facts = self._root.stat()
        except FileNotFoundError as error:
            raise StorageUnavailable(
                f"there is no directory {self._root}; is the path right and its disk mounted?", errno=errno.ENOENT
            ) from error
        if not stat.S_ISDIR(facts.st_mode):
            raise StorageUnavailable(f"{self._root} is a file; a store needs a directory", errno=errno.ENOTDIR)

    def _unlink(self, path: Path) -> None:
        try:
            self._files.unlink(path)
        except _ABSENT:
            self._check_root()

    def _sync_if_there(self, folder: Path) -> None:
        try:
            self._files.sync_folder(folder)
        except _ABSENT:
            self._check_root()


def _make_root(root: Path, files: Files) -> None:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        try:
            files.make_folder(path)
        except FileExistsError:
            log.debug("%s was made by somebody else meanwhile", path)
    for path in missing:
        files.sync_folder(path.parent)
    if not missing:
        _sync_entry(root, files)


def _sync_entry(root: Path, files: Files) -> None:
    """Somebody may have made the root a moment ago and not synced it; where one may not look, that is theirs to do."""
    try:
        files.sync_folder(root.parent)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        log.debug("the entry of %s was not synced: %s", root, error)


def _is_name(text: str) -> bool:
    try:
        ObjectName(text)
    except InvalidName:
        return False
    return True


def _listed(folder: str, prefix: str) -> Iterator[Listed]:
    try:
        # A folder sorts by its name and the slash, so the whole listing is sorted as text: "a-b" before "a/b".
        found = sorted((f"{one.name}/" if one.is_dir() else one.name, one) for one in _objects(folder))
    except OSError as error:
        raise storage_error(error, "list", Path(folder)) from error
    for key, entry in found:
        if key.endswith("/"):
            yield from _listed(entry.path, f"{prefix}{key}")
        elif (size := _size(entry)) is not None:
            # Prefix and parts were looked at one by one, and a listing has many names.
            yield Listed(str.__new__(ObjectName, f"{prefix}{key}"), size)


def _objects(folder: str) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _PART.fullmatch(entry.name)]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name != _REPAIRS]
    except _ABSENT:
        return []


def _size(entry: os.DirEntry[str]) -> int | None:
    """None for what is no regular file, or has gone since."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, "look at", Path(entry.path)) from error


def _content(path: str) -> bytes:
    """All of a file, without the buffers and objects that ``open`` makes: small objects are read by the thousand."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, os.fstat(descriptor).st_size + 1)]
        while parts[-1]:
            parts.append(os.read(descriptor, _CHUNK))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _unfinished(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir() and _is_name(entry.name):
            yield from _unfinished(folder / entry.name)
        elif entry.name.startswith(PREFIX) and entry.is_file(follow_symlinks=False):
            yield folder / entry.name
