"""What the files of a systemd unit say: no more than is needed to know whom systemd ends with a service.

Source: systemd.unit(5), "Unit File Load Path"; systemd.kill(5), "KillMode=".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from holdfast.saver.cgroups import text

_FOLDERS = ("etc/systemd/system", "run/systemd/transient", "run/systemd/system", "usr/lib/systemd/system")
"""Of the system's manager, the first wins. Users' own units lie in homes, which are not read."""

_KILL_MODE = re.compile(r"^\s*KillMode\s*=\s*([a-z-]*)\s*$", re.MULTILINE)
_SECTION = re.compile(r"^\s*\[(\w+)\]\s*$", re.MULTILINE)


def kill_mode(root: Path, unit: str) -> str:
    """``control-group``, ``mixed``, ``process`` or ``none``: the last that is set, else systemd's default."""
    mode = "control-group"
    for content in _contents(root, unit):
        for section in _sections(content, "Service"):
            for found in _KILL_MODE.findall(section):
                mode = found or "control-group"  # an empty one sets it back
    return mode


def _contents(root: Path, unit: str) -> Iterator[str]:
    """The unit's file and then its drop-ins, those of its template first, in the order in which they count."""
    names = [re.sub(r"@.+\.", "@.", unit), unit] if "@" in unit else [unit]
    folders = [root / folder for folder in _FOLDERS]
    files = (text(folder / name) for name in reversed(names) for folder in folders)
    yield next((found for found in files if found), "")
    for name in names:
        drop_ins = {path.name: path for folder in reversed(folders) for path in (folder / f"{name}.d").glob("*.conf")}
        yield from (text(drop_ins[key]) for key in sorted(drop_ins))


def _sections(unit: str, name: str) -> Iterator[str]:
    parts = _SECTION.split(unit)
    yield from (body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title == name)
