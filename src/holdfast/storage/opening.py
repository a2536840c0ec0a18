"""From a path or URL to a storage."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from holdfast.errors import InvalidInput
from holdfast.storage.local import LocalStorage
from holdfast.storage.protocol import Storage

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def open_storage(url: str | Path, *, create: bool) -> Storage:
    """The storage at a path, a ``file://`` URL or ``memory://`` (a new and empty one each time).

    Args:
        url: a ``Path`` is never taken for a URL; ``~`` is not expanded.
        create: make the directory if it is missing.

    Raises:
        InvalidInput: an address of a kind that this version does not support.
        StorageUnavailable: the directory is missing and ``create`` is False, or it is no directory.

    Example:
        >>> open_storage("memory://", create=True).url
        'memory://'
    """
    if isinstance(url, Path):
        return LocalStorage(url, create=create)
    scheme = match[1].lower() if (match := _URL.match(url)) else ""
    if scheme == "memory":
        # Only those who use it pay for importing obstore.
        from holdfast.storage.memory import memory_storage

        return memory_storage()
    return LocalStorage(_path(url, scheme), create=create)


def _path(url: str, scheme: str) -> Path:
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InvalidInput(f"not a local file URL: {url!r}; write file:///a/path")
        return Path(unquote(parts.path))
    if scheme:
        raise InvalidInput(
            f"cannot open {url!r}: object stores are not supported yet in this version; "
            "give a local or mounted directory, file:// or memory://"
        )
    if not url or "\0" in url or url.startswith("~"):
        raise InvalidInput(f"not a usable path: {url!r}; '~' is not expanded here, and a path must not be empty")
    return Path(url)
