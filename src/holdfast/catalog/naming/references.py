"""From what people write to the record that is meant; the grammar is in `holdfast.catalog.naming.grammar`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.naming.grammar import AtStep, InRun, Last, OfId, OfTag, Reference, Word, parse
from holdfast.catalog.naming.selecting import MENTIONED, ancestor_line, near_misses, select
from holdfast.catalog.naming.tags import find_tag, read_tags
from holdfast.catalog.runs import Run, read_record
from holdfast.errors import AmbiguousReference, InvalidName, Missing, UnknownReference
from holdfast.ids import RecordAddress, RunName, RunNumber, TagName
from holdfast.records import Record

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

__all__ = ["Reference", "ancestor_line", "moves", "named_run", "newest_run", "parse", "resolve"]


def resolve(store: Store, reference: Reference | str, default_run: RunNumber | None = None) -> Record:
    """The record that a reference means, read and checked; what it names is not read.

    Args:
        store: where to look.
        reference: parsed, or as text.
        default_run: the run that ``@500`` means; by default the newest one.

    Raises:
        InvalidReference: the text is not in the grammar.
        UnknownReference: nothing answers to it; near misses are in the message.
        AmbiguousReference: several things do; the message says how to write each.
        Damaged: what it means is there and cannot be read.
    """
    wanted = parse(reference) if isinstance(reference, str) else reference
    match wanted:
        case InRun(run, selector):
            return select(_run(store, run, default_run), selector)
        case OfTag(tag):
            return _tagged(store, tag)
        case OfId(prefix):
            return _by_id(store, prefix)
        case Word(word):
            return _by_word(store, word)


def moves(store: Store, reference: str) -> bool:
    """Whether a reference means another record once its run has gone on: ``run-003``, ``toy@best:loss``.

    Raises:
        InvalidReference: the text is not in the grammar.
    """
    wanted = parse(reference)
    if isinstance(wanted, Word):
        wanted = next(iter(_readings(store, wanted.word).values()), wanted)
    return isinstance(wanted, InRun) and not isinstance(wanted.selector, AtStep)


def _run(store: Store, run: RunNumber | RunName | None, default: RunNumber | None) -> Run:
    if isinstance(run, RunName):
        return named_run(store, run)
    wanted = run or default
    return newest_run(store) if wanted is None else store.run(wanted)


def newest_run(store: Store) -> Run:
    """The newest run.

    Raises:
        UnknownReference: there is none.
        AmbiguousReference: the ``run.json`` of a newer one is lost.
        Damaged: it cannot be read.
    """
    number = max(store.numbers(), default=None)
    if number is None:
        raise UnknownReference(f"{store.url} has no runs yet")
    _refuse_hidden(store, number, "the newest run")
    return store.run(number)


def named_run(store: Store, name: str) -> Run:
    """The newest run of this name.

    Raises:
        UnknownReference: there is none.
        AmbiguousReference: a newer run cannot be read, and may have this name.
    """
    named = store.named(name)
    if not named:
        raise UnknownReference(_no_run(store, name))
    _refuse_hidden(store, named[-1].number, repr(str(name)))
    return store.run(named[-1].number)


def _refuse_hidden(store: Store, number: int, what: str) -> None:
    """An older run than the one that is meant would be another one, silently."""
    broken = store.unreadable_after(number)
    if broken is not None:
        hidden = RunNumber(int(broken.name.split("/")[2]))
        raise AmbiguousReference(
            f"{what} may be {RunNumber(number)} or {hidden}: {broken.error}; write {RunNumber(number)} if that is meant"
        )


def _no_run(store: Store, name: str) -> str:
    if find_tag(store, TagName(name)) is not None:
        return f"{name!r} is a tag, not a run: write it without what follows the @"
    known = near_misses(name, [info.name for info in store.runs() if info.name])
    return f"no run named {name!r} in {store.url}{known or _what_there_is(store)}"


def _what_there_is(store: Store) -> str:
    runs = [f"{RunNumber(info.number)}{f' ({info.name})' if info.name else ''}" for info in store.runs()]
    return f"; there is: {', '.join(runs[-MENTIONED:])}" if runs else "; it has no runs yet"


def _tagged(store: Store, name: TagName) -> Record:
    tag = find_tag(store, name)
    if tag is None:
        known = near_misses(name, [tag.tag for tag in read_tags(store).tags])
        raise UnknownReference(f"no tag {str(name)!r} in {store.url}{known}")
    return _read(store, tag.target.address, f"tag {tag.tag}")


def _by_id(store: Store, prefix: str) -> Record:
    found = _with_prefix(store, prefix)
    if len(found) > 1:
        listed = ", ".join(map(str, found[:MENTIONED]))
        raise AmbiguousReference(f"{len(found)} checkpoints have an id that begins with {prefix}: {listed}; add digits")
    if not found:
        raise UnknownReference(f"no checkpoint in {store.url} has an id that begins with {prefix}")
    return _read(store, found[0], f"id {prefix}")


def _with_prefix(store: Store, prefix: str) -> list[RecordAddress]:
    names = (listed.name for run in store.claimed() for listed in store.storage.list(layout.records_folder(run)))
    return [address for address in map(_address, names) if address is not None and address.id.startswith(prefix)]


def _address(name: str) -> RecordAddress | None:
    try:
        return RecordAddress.from_name(name)
    except InvalidName:
        return None


def _read(store: Store, address: RecordAddress, what: str) -> Record:
    found = read_record(store, address)
    if found is None:
        raise Missing(f"{what} names {address}, which is not there; its record was deleted outside of holdfast")
    if not isinstance(found, Record):
        raise UnknownReference(f"{what} names {address}, a save that was given up: {found.reason}")
    return found


def _by_word(store: Store, word: str) -> Record:
    readings = _readings(store, word)
    if len(readings) > 1:
        raise AmbiguousReference(f"{word!r} is more than one thing: {', '.join(readings)}; write one of these")
    if not readings:
        raise UnknownReference(_nothing_called(store, word))
    return resolve(store, next(iter(readings.values())))


def _readings(store: Store, word: str) -> dict[str, Reference]:
    found: dict[str, Reference] = {}
    if store.named(word):
        found[f"run:{word}"] = InRun(RunName(word), Last())
    if find_tag(store, TagName(word)) is not None:
        found[f"tag:{word}"] = OfTag(TagName(word))
    if _is_prefix(word) and _with_prefix(store, word):
        found[f"id:{word}"] = OfId(word)
    return found


def _is_prefix(word: str) -> bool:
    return len(word) >= 6 and set(word) <= set("0123456789abcdef")


def _nothing_called(store: Store, word: str) -> str:
    names = [info.name for info in store.runs() if info.name] + [tag.tag for tag in read_tags(store).tags]
    if word.isdigit():
        number = RunNumber(max(int(word[:9]), 1))
        return f"no run or tag named {word!r} in {store.url}; did you mean {number} or @{word}?"
    return f"no run, tag or checkpoint id {word!r} in {store.url}{near_misses(word, names) or _what_there_is(store)}"
