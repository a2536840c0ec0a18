"""What a path means where a reference is wanted: ``resume_from_checkpoint`` of other tools names folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from holdfast.catalog import layout
from holdfast.catalog.naming.grammar import Word, parse
from holdfast.errors import InvalidInput, InvalidName, InvalidReference
from holdfast.ids import RecordAddress, RunNumber
from holdfast.recovery.launching.session import MODES

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_OTHERS = re.compile(r"checkpoint-\d+")
"""How Hugging Face names its checkpoints (transformers, trainer_utils.py)."""
_RUN = re.compile(rf"{layout.RUNS}({layout.RUN_FOLDER})(?:/{re.escape(layout.RUN_INFO)})?")


def reference_of(text: str, store: str | Path) -> str:
    """What ``resume=`` is to be, for a reference or for a path to something in ``store``; the store is not opened.

    A path is the store's folder (its newest checkpoint is meant), that of a run or a record in it, or the store's
    folder with a reference behind it.

    Raises:
        InvalidInput: neither, or what is there belongs to another store or another tool.

    Example:
        >>> reference_of("run-003@500", "out"), reference_of("out/run-003@500", "out"), reference_of("./out", "out")
        ('run-003@500', 'run-003@500', 'must')
    """
    if text in MODES:
        return text
    here, base = _folder(text), _folder(store)
    try:
        word = parse(text)
    except InvalidReference:
        if here is None or base is None:
            raise
        if here.is_relative_to(base):
            return _within(here.relative_to(base).as_posix(), text, here, store)
        if "/" in text or text[:1] in (".", "~") or _there(here):
            raise _elsewhere(text, here, store) from None
        raise
    if not isinstance(word, Word) or here is None:
        return text
    if here == base:
        return "must"
    if _is_of_others(here):
        raise InvalidInput(f"{_not_ours(text, store)}; if a run or a tag is meant, write run:{text} or tag:{text}")
    return text


def _folder(place: str | Path) -> Path | None:
    """Where it lies, links followed; None: on no disk."""
    text = str(place)
    scheme = match[1].lower() if isinstance(place, str) and (match := _SCHEME.match(text)) else ""
    path = unquote(urlsplit(text).path) if scheme == "file" else text
    if scheme not in ("", "file") or not path or "\0" in path:
        return None
    return Path(os.path.realpath(path))


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # nobody may look, or the name is too long
        return False


def _within(inside: str, text: str, here: Path, store: str | Path) -> str:
    if inside == ".":
        return "must"
    if run := _RUN.fullmatch(inside):
        return str(RunNumber(int(run[1])))
    try:
        return str(RecordAddress.from_name(inside).id)
    except InvalidName:
        pass
    if _there(here):
        raise InvalidInput(_not_ours(text, store))
    try:
        parse(inside)
    except InvalidReference as error:
        raise InvalidInput(f"{_nothing(text, store)}: {error}") from error
    if _OTHERS.fullmatch(inside):
        raise InvalidInput(f"{_nothing(text, store)}; if a run or a tag is meant, write run:{inside} or tag:{inside}")
    return inside


def _elsewhere(text: str, here: Path, store: str | Path) -> InvalidInput:
    for folder in (here, *here.parents):
        if _there(folder / layout.STORE):
            return InvalidInput(
                f"{text!r} is in the store {folder}, and the store here is {store}; a run goes on from checkpoints of "
                f"its own store, so make {folder} the store if that is meant"
            )
    return InvalidInput(_not_ours(text, store) if _there(here) else _nothing(text, store))


def _is_of_others(here: Path) -> bool:
    """Whether a word that could be the name of a run is a file, or looks like a checkpoint of another tool."""
    return _there(here) and (here.is_file() or _OTHERS.fullmatch(here.name) is not None)


def _not_ours(text: str, store: str | Path) -> str:
    return (
        f"{text!r} is no checkpoint of the store {store}, and those of other tools cannot be read yet: load it in the "
        "program, before the loop, and leave this key out; or write true for the newest checkpoint of the run"
    )


def _nothing(text: str, store: str | Path) -> str:
    tilde = " ('~' is not expanded here)" if text.startswith("~") else ""
    return (
        f"there is nothing at {text!r}{tilde}; write true for the newest checkpoint of the run, or a reference such as "
        f"run-003@500, with the path of the store {store} before it or without"
    )
