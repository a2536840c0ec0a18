"""The operating system seam: every operation by which `LocalStorage` changes a filesystem, and nothing else.

One method is one system call (or the nearest thing to it), so a subclass can
record, fail or kill at the n-th one; see `holdfast.testing.faults`. Methods
raise plain ``OSError``; `reported` turns it into holdfast's errors in one place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import StorageError, StorageFull, StorageReadOnly, StorageUnavailable

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
_LIBC = ctypes.CDLL(None, use_errno=True)


class Files:
    """The filesystem as it is. Stateless and thread-safe."""

    def create(self, path: Path) -> int:
        """A descriptor of a new file, readable and writable; permissions follow the umask.

        Raises:
            FileExistsError: there is one.
        """
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_direct(self, path: Path) -> int:
        """A second descriptor of a file being written, past the page cache.

        Raises:
            OSError: with EINVAL where the filesystem has no direct I/O.
        """
        return open_direct(path, os.O_RDWR)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write at an offset; returns how many bytes were written, possibly fewer than given."""
        return os.pwrite(descriptor, data, offset)

    def reserve(self, descriptor: int, length: int) -> None:
        """Set ``length`` bytes aside, as zeros; does nothing where the filesystem cannot.

        Not ``posix_fallocate``: glibc would emulate it with one write per block.
        """
        call = getattr(_LIBC, "fallocate", None)
        if call is None or call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(length)) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_SUCH_CALL:
            raise OSError(code, os.strerror(code))

    def truncate(self, descriptor: int, length: int) -> None:
        """Set the length of a file."""
        os.ftruncate(descriptor, length)

    def sync(self, descriptor: int) -> None:
        """Make the bytes and the length of a file durable, not its name.

        After an error it must not be called on this descriptor again: the kernel
        has marked the lost pages clean, and the second call would succeed.
        """
        if _FULL_SYNC is None:
            os.fsync(descriptor)
        else:
            fcntl.fcntl(descriptor, _FULL_SYNC)

    def close(self, descriptor: int) -> None:
        """Close a descriptor, and with it give up its lock."""
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, if nothing has it."""
        target.hardlink_to(source)

    def rename_new(self, source: Path, target: Path) -> None:
        """Rename a file, if nothing has the new name.

        Raises:
            OSError: with ENOSYS or EINVAL where the kernel or the filesystem cannot.
        """
        call = getattr(_LIBC, "renameat2", None)
        if call is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(source), None, str(target))

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def make_folder(self, path: Path) -> None:
        """Make one folder; permissions follow the umask.

        Raises:
            FileExistsError: there is one.
        """
        path.mkdir()

    def sync_folder(self, path: Path) -> None:
        """Make the entries of a folder durable: names given, removed, and folders made in it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # SMB and some FUSE filesystems know no fsync of a folder; there is nothing else to ask for.
            if error.errno not in _NO_SUCH_CALL:
                raise
        finally:
            os.close(descriptor)


def storage_error(error: OSError, doing: str, path: Path) -> StorageError:
    """What an ``OSError`` means to the caller of a storage: the class by errno, the path, what to do."""
    said = f"cannot {doing} {path}: {error.strerror or error}"
    if error.errno in _FULL:
        return StorageFull(f"{said}; free some space or raise the quota, then save again", errno=error.errno)
    if error.errno in _READ_ONLY:
        return StorageReadOnly(f"{said}; check how it is mounted and who may read or write there", errno=error.errno)
    return StorageUnavailable(f"{said}; check that the disk or mount is there and healthy", errno=error.errno)


@contextmanager
def reported(doing: str, path: Path) -> Iterator[None]:
    """Turn any ``OSError`` inside into a `StorageError` that says what was being done to which path."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, doing, path) from error


def open_direct(path: Path, access: int) -> int:
    """A descriptor past the page cache, for ``os.O_RDONLY`` or ``os.O_RDWR``; EINVAL where there is none."""
    flag: int | None = getattr(os, "O_DIRECT", None)
    if flag is None:
        raise OSError(errno.EINVAL, "this system has no direct I/O")
    return os.open(path, access | os.O_CLOEXEC | flag)
