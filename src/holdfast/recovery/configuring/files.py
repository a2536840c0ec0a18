"""Settings from a YAML or TOML file or a mapping, each with the place where it was written."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.errors import InvalidInput

SECTION = "holdfast"
"""A table of this name holds the settings; a file without one holds nothing else."""

Lines = Mapping[tuple[str, ...], int]
"""Line numbers, from 1, by the keys that lead to a value."""

_TAKEN = "a .yaml, .yml or .toml file, or a mapping"

_TABLE = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_KEY = re.compile(r"""\s*([A-Za-z0-9_.\s"'-]+?)\s*=""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keys and values as they were written, and where."""

    values: Mapping[str, Any]
    source: str = ""
    """The name of the file, or who else says it."""
    section: tuple[str, ...] = ()
    lines: Lines = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """The place of a key, for a message: `` (train.yaml, line 3)``; empty where there is nothing to say."""
        line = self.lines.get((*self.section, *keys))
        parts = [part for part in (self.source, f"line {line}" if line else "") if part]
        return f" ({', '.join(parts)})" if parts else ""


def read_settings(source: str | Path | Mapping[str, Any]) -> Settings:
    """The settings of a file, by its suffix, or of a mapping.

    They are those under ``holdfast`` (in TOML also under ``tool.holdfast``), none if that section is empty; without
    such a section all there are.

    Raises:
        InvalidInput: it cannot be read, is no mapping of names to values, or says something twice.

    Example:
        >>> read_settings({"holdfast": {"save": "every(steps=500)"}, "lr": 0.1}).values
        {'save': 'every(steps=500)'}
    """
    if isinstance(source, Mapping):
        return _section(source, "", {})
    if not isinstance(source, str | os.PathLike):
        raise InvalidInput(f"a configuration is {_TAKEN}, not {source!r}")
    path = Path(source)
    text = _text(path)
    if path.suffix in (".yaml", ".yml"):
        return _section(*_yaml(path, text))
    if path.suffix == ".toml":
        return _section(*_toml(path, text))
    raise InvalidInput(f"{path}: a configuration is {_TAKEN}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the configuration {path}: {error}") from error


def _yaml(path: Path, text: str) -> tuple[Any, str, Lines]:
    try:
        from holdfast.recovery.configuring.yaml import read_yaml
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{path} is YAML, and PyYAML is not installed: pip install 'holdfast[yaml]', or write it as TOML"
        ) from error
    values, lines = read_yaml(text, path.name)
    return values, path.name, lines


def _toml(path: Path, text: str) -> tuple[Any, str, Lines]:
    try:
        return tomllib.loads(text), path.name, dict(_toml_lines(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: {error}{_repeated(text)}") from error


def _repeated(text: str) -> str:
    """The first key that is there twice: of this the parser says no more than that it is so."""
    seen: dict[tuple[str, ...], int] = {}
    for key, line in _toml_lines(text):
        if key in seen:
            return f"; {'.'.join(key)} is in line {seen[key]} and in line {line}"
        seen[key] = line
    return ""


def _toml_lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where keys stand: the parser does not tell, and a line that looks like a key almost always is one."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _TABLE.fullmatch(line):
            table = _dotted(match[1])
            yield table, number
        elif match := _KEY.match(line):
            yield (*table, *_dotted(match[1])), number


def _dotted(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _section(values: Any, source: str, lines: Lines) -> Settings:
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{source}: a configuration maps names to values; this is {type(values).__name__}")
    tool = values.get("tool")
    homes = ((values, ()), (tool if isinstance(tool, Mapping) else {}, ("tool",)))
    sections = [(home[SECTION], (*above, SECTION)) for home, above in homes if SECTION in home]
    if len(sections) > 1:
        raise InvalidInput(f"{source or 'the configuration'} has both [holdfast] and [tool.holdfast]; leave one out")
    found, section = sections[0] if sections else (values, ())
    settings = Settings(values=_table(found, section, source, lines), source=source, section=section, lines=lines)
    for key in settings.values:
        if not isinstance(key, str):
            raise InvalidInput(f"{source or 'the configuration'}: the key {key!r} is no text")
    return settings


def _table(found: Any, section: tuple[str, ...], source: str, lines: Lines) -> dict[Any, Any]:
    if found is None:
        return {}  # all that is in the section may be commented out
    if not isinstance(found, Mapping):
        where = Settings(values={}, source=source, lines=lines).where(*section)
        raise InvalidInput(f"{'.'.join(section)}{where}: wants a table of settings, not {type(found).__name__}")
    return dict(found)
