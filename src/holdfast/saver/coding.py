"""``codec="auto"``: decided once per launch, after the first save has shown what the storage takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from holdfast.packs.choosing import choose
from holdfast.packs.parallel import THREADS
from holdfast.packs.segment import Segment
from holdfast.records import Record
from holdfast.saver.jobs import Content, Shape
from holdfast.trees import Lifetime

ENOUGH = 32 * 1024 * 1024
"""A save with fewer new bytes says nothing about the storage."""
_SAMPLES = 3


def decided(record: Record, shape: Shape, content: Content, threads: int = THREADS) -> tuple[str, str] | None:
    """The codec for the saves that follow, and why; None: this save was too small to tell.

    Args:
        record: a save without a codec.
        shape: what was saved.
        content: its bytes, which are tried out.
        threads: how many have written it.
    """
    if record.bytes.stored < ENOUGH or not record.timing.writing:
        return None
    # The threads waited side by side: what each of them waited is about what all of them took.
    link = record.bytes.stored / (record.timing.writing / threads)
    choice = choose(link, list(_samples(shape, content)), threads)
    return str(choice.codec), choice.why


def _samples(shape: Shape, content: Content) -> Iterator[Segment]:
    """Some segments of parameters and of optimizer state, which differ in what can be saved."""
    for lifetime in sorted(shape.lifetimes - {Lifetime.FROZEN}):
        yield from islice(content.segments(lifetime), _SAMPLES)
