"""Which code a training runs: equal as long as nothing in it was changed."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from blake3 import blake3

_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def code_digest(modules: Iterable[ModuleType] | None = None) -> str | None:
    """A digest of the program: the bytes of every module that is loaded and was not installed, the script included.

    A package that is installed, upgraded or removed changes it too, by the time of the folder that holds the packages;
    one that is changed in place does not. None: there is no script, as in a notebook.
    """
    loaded = list(sys.modules.values()) if modules is None else list(modules)
    main = sys.modules.get("__main__") if modules is None else None
    if modules is None and getattr(main, "__file__", None) is None:
        return None
    files = {Path(file) for module in loaded if isinstance(file := getattr(module, "__file__", None), str)}
    own = sorted(file for file in files if not _is_installed(file))
    digest = blake3()
    for part in (*map(_content, own), *map(_changed, sorted(_INSTALLED))):
        digest.update(blake3(part).digest())
    return digest.hexdigest()


def _is_installed(file: Path) -> bool:
    return any(folder in file.parents for folder in _INSTALLED) or "site-packages" in file.parts


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.suffix == ".py" else _size(file)
    except OSError:  # in an archive, or gone
        return str(file).encode()


def _size(file: Path) -> bytes:
    """Of extensions size and time are enough: they may be large."""
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}".encode()


def _changed(folder: Path) -> bytes:
    try:
        return str(folder.stat().st_mtime_ns).encode()
    except OSError:
        return b""
