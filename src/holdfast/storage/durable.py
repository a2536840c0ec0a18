"""The one durable write: how `create` and `Sink.commit` put a file under its name on a filesystem.

In order, and each step for a reason:

1. Folders are made, and their parents synced: a file in a folder whose own entry is lost is lost too.
2. A temporary file in the same folder, its name beginning with ``.``, with the permissions that the umask
   gives. It is held by ``flock`` while its writer lives, so a sweeper knows a dead one by getting the lock.
   Network filesystems may keep locks to one host, so the name says whose it is, and others leave it alone.
3. The bytes, then a check of the length, then one sync. After a failed sync the file is thrown away: the
   kernel has marked its lost pages clean, and a second sync would lie.
4. The name is given only if nothing has it: by a hard link, else by ``renameat2(RENAME_NOREPLACE)``, else by
   ``O_EXCL`` and a copy. Which of them the filesystem can do is found out once.
5. The temporary name goes, and the folder is synced.

Only the last resort of step 4 is not atomic: a crash in the middle leaves a
torn object under its name, and the seal (of a small object) or the footer (of
a pack) tells. The first two never show anything but the whole object.

After a lost name race the folder is synced as well, so whoever reads the
winner's object reads something that stays.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from blake3 import blake3

from holdfast.errors import ObjectExists, StorageUnavailable
from holdfast.ids import nonce
from holdfast.storage.files import Files

PREFIX = ".tmp-"
"""How the names of unfinished files begin; no object name begins with a dot."""

_COPY = 8 << 20
_ATTEMPTS = 8
_CANNOT = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

log = logging.getLogger(__name__)


class Publishing(StrEnum):
    """How a finished file gets its name; the first that the filesystem knows is used."""

    LINK = "link"
    RENAME = "rename"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A temporary file that this process is writing, open and locked."""

    path: Path
    descriptor: int


class DurableWriter:
    """Writes files below ``root``, whole, durable and never over another one. Thread-safe."""

    def __init__(self, root: Path, files: Files) -> None:
        self.files = files
        self._root = root
        self._publishing: Publishing | None = None
        self._durable = {root}

    @property
    def publishing(self) -> Publishing | None:
        """How names are given here; None before the first one."""
        return self._publishing

    def begin(self, path: Path) -> Unfinished:
        """A locked temporary file in the folder of ``path``; folders below the root are made, durably."""
        try:
            self._make_folders(path.parent)
            return self._open(path.parent)
        except FileNotFoundError:
            # Somebody removed a folder since it was known to be durable.
            self._durable = {self._root}
            self._make_folders(path.parent)
            return self._open(path.parent)

    def write(self, unfinished: Unfinished, data: memoryview) -> None:
        """Write all of ``data`` from the start of the file."""
        write_all(self.files, unfinished.descriptor, data, 0)

    def finish(self, unfinished: Unfinished, path: Path, length: int) -> None:
        """Give the file, ``length`` bytes long, the name ``path``; durable when it returns.

        Raises:
            ObjectExists: ``path`` is taken; what is there is untouched and durable.
            OSError: not finished; the caller discards the file. If the last sync of the folder
                failed, the object may be there nevertheless, whole.
        """
        _check_length(unfinished, length)
        self.files.sync(unfinished.descriptor)
        try:
            self._publish(unfinished, path, length)
        except FileExistsError:
            self.files.sync_folder(path.parent)
            raise ObjectExists(f"{path} exists already; read it back to see whose it is", errno=errno.EEXIST) from None
        self._drop_name(unfinished.path)
        self.files.sync_folder(path.parent)
        self._close(unfinished)

    def discard(self, unfinished: Unfinished) -> None:
        """Remove a file that is not to be finished; never raises ``OSError``, for there is an error already."""
        self._drop_name(unfinished.path)
        self._close(unfinished)

    def _make_folders(self, folder: Path) -> None:
        new = [p for p in (folder, *folder.parents) if self._root in p.parents and p not in self._durable]
        for path in reversed(new):
            try:
                self.files.make_folder(path)
            except FileExistsError:
                if not path.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "an object lies where a folder is needed") from None
        # Also for folders that were there: another process may have made them and not synced them yet.
        for path in reversed(new):
            self.files.sync_folder(path.parent)
        self._durable.update(new)

    def _open(self, folder: Path) -> Unfinished:
        for _ in range(_ATTEMPTS):
            path = folder / unfinished_name()
            unfinished = Unfinished(path=path, descriptor=self.files.create(path))
            if _hold(unfinished):
                return unfinished
            self.discard(unfinished)
        raise StorageUnavailable(f"every new file in {folder} was swept away at once; is a clean-up running there?")

    def _publish(self, unfinished: Unfinished, path: Path, length: int) -> None:
        ways = list(Publishing)
        for way in ways[ways.index(self._publishing or Publishing.LINK) :]:
            try:
                self._publish_by(way, unfinished, path, length)
            except FileExistsError:
                self._publishing = way
                raise
            except OSError as error:
                if error.errno not in _CANNOT or way is Publishing.EXCLUSIVE:
                    raise
            else:
                self._publishing = way
                return

    def _publish_by(self, way: Publishing, unfinished: Unfinished, path: Path, length: int) -> None:
        match way:
            case Publishing.LINK:
                self._link(unfinished, path)
            case Publishing.RENAME:
                self.files.rename_new(unfinished.path, path)
            case Publishing.EXCLUSIVE:
                self._copy(unfinished, path, length)

    def _link(self, unfinished: Unfinished, path: Path) -> None:
        try:
            self.files.link(unfinished.path, path)
        except FileExistsError:
            # NFS may answer so to its own repeated request.
            if not _is_named(unfinished.descriptor, path):
                raise

    def _copy(self, unfinished: Unfinished, path: Path, length: int) -> None:
        descriptor = self.files.create(path)
        try:
            for offset in range(0, length, _COPY):
                chunk = os.pread(unfinished.descriptor, min(_COPY, length - offset), offset)
                write_all(self.files, descriptor, memoryview(chunk), offset)
            self.files.sync(descriptor)
            if not _is_named(descriptor, path):
                raise StorageUnavailable(f"{path} was removed while it was being written")
        except BaseException:
            if _is_named(descriptor, path):
                self._drop_name(path)
            raise
        finally:
            self.files.close(descriptor)

    def _drop_name(self, path: Path) -> None:
        try:
            self.files.unlink(path)
        except FileNotFoundError:
            pass  # renamed, or swept
        except OSError as error:
            log.warning("%s is left over (%s); a later sweep removes it", path, error)

    def _close(self, unfinished: Unfinished) -> None:
        try:
            self.files.close(unfinished.descriptor)
        except OSError as error:
            # Everything was synced or given up before, so this loses nothing.
            log.warning("closing %s: %s", unfinished.path, error)


def unfinished_name() -> str:
    """A new name for a temporary file of this host."""
    return f"{PREFIX}{_here()}-{nonce()}"


def made_here(path: Path) -> bool:
    """Whether an unfinished file is of this kernel, or of this machine before it was started again."""
    return any(one in path.name.split("-")[1:3] for one in _here().split("-"))


@cache
def _here() -> str:
    """Which host and which boot of it, as digests: containers share a boot, and a host outlives it."""
    host = platform.node() + _line("/etc/machine-id")
    facts = (host, _line("/proc/sys/kernel/random/boot_id") or host)
    return "-".join(blake3(fact.encode(errors="replace")).hexdigest()[:12] for fact in facts)


def _line(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def sweep(files: Files, path: Path) -> int:
    """Remove an unfinished file if its writer is dead; returns the bytes freed.

    Where locks are not to be had nothing is removed. Only for files that are `made_here`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return 0
    try:
        return _remove(files, path, os.fstat(descriptor)) if _is_dead(descriptor) else 0
    finally:
        os.close(descriptor)


def left_over(path: Path) -> int:
    """The bytes that `sweep` would free; none of what cannot be opened, for that cannot be removed either."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return _freed(os.fstat(descriptor)) if _is_dead(descriptor) else 0
    finally:
        os.close(descriptor)


def write_all(files: Files, descriptor: int, data: memoryview, offset: int) -> None:
    """Write until nothing is left: one call may write less than it is given."""
    while data:
        written = files.write(descriptor, data, offset)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written, and no reason given")
        data, offset = data[written:], offset + written


def _is_dead(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(files: Files, path: Path, facts: os.stat_result) -> int:
    try:
        files.unlink(path)
    except FileNotFoundError:
        return 0
    return _freed(facts)


def _freed(facts: os.stat_result) -> int:
    return facts.st_size if facts.st_nlink == 1 else 0


def _hold(unfinished: Unfinished) -> bool:
    try:
        fcntl.flock(unfinished.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("no locks at %s (%s); its leftovers will not be swept", unfinished.path.parent, error)
    # A sweeper may have been quicker between the opening and the lock.
    return unfinished.path.exists()


def _check_length(unfinished: Unfinished, length: int) -> None:
    found = os.fstat(unfinished.descriptor).st_size
    if found != length:
        raise StorageUnavailable(f"{unfinished.path} has {found} bytes after {length} were written; is the disk well?")


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
