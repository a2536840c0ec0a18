"""Files that are kept with every checkpoint."""

from __future__ import annotations

from pathlib import Path

from holdfast.errors import InvalidInput


def read_attached(place: Path) -> dict[str, bytes]:
    """A file, or all files of a folder, by their names relative to where it lies.

    Raises:
        InvalidInput: no such file.
    """
    if not place.exists():
        raise InvalidInput(f"attach({str(place)!r}): there is no such file")
    files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else [place]
    return {str(one.relative_to(place.parent)): one.read_bytes() for one in files}
