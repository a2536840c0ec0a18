"""Which codec makes saves quickest here: measured on real segments, then decided by arithmetic.

Writing a byte takes 1 / link seconds. With a codec, encoding and writing go on side by side, so a byte takes what the
slower one of them takes: ratio / link, or 1 / (rate of encoding on all threads together).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from holdfast.errors import InvalidInput
from holdfast.packs import floats
from holdfast.packs.codec import Codec, encode
from holdfast.packs.segment import Segment

GAIN = 0.1
"""A codec must promise to save so much of the time: a measurement of a moment is not more exact."""
SAMPLE_BYTES = 16 * 1024 * 1024
"""Of the samples no more than about so many bytes are looked at."""


class Trial(NamedTuple):
    """What a codec did to the samples."""

    codec: Codec
    ratio: float
    """Stored by raw bytes."""
    rate: float
    """Raw bytes a second, of one thread."""
    parallel: int
    """Threads that get this rate at the same time."""

    def seconds(self, link: float) -> float:
        """Per byte, over a link of so many bytes a second.

        Example:
            >>> Trial(Codec.ZSTD, 0.8, 500e6, 2).seconds(100e6) * 100e6
            0.8
        """
        return max(self.ratio / link, 1 / (self.rate * self.parallel))


class Choice(NamedTuple):
    """A codec, and why."""

    codec: Codec
    why: str
    """One sentence with the figures, for log and record."""


def choose(link_bytes_per_second: float, samples: Sequence[Segment], threads: int) -> Choice:
    """The codec for saves over a link: the one that is predicted to be quickest, and `Codec.RAW` unless one clearly is.

    Takes some tens of milliseconds; encodes a few megabytes with every codec that is installed, on the calling thread.

    Args:
        link_bytes_per_second: what the storage takes, all threads together.
        samples: some real segments, best from parameters and optimizer state alike.
        threads: how many will encode.
    """
    return decide(link_bytes_per_second, trials(samples, threads))


def decide(link: float, tried: Iterable[Trial]) -> Choice:
    """The choice from measurements; pure.

    Example:
        >>> decide(100e6, [Trial(Codec.ZSTD, 0.8, 500e6, 2)]).why
        'zstd, as it stores 0.80 of the bytes at 1.00 GB/s: over a link of 0.10 GB/s that saves 20 % of the time'
    """
    if not link > 0:
        raise InvalidInput(f"a link of {link} bytes a second is none; it must be more than 0")
    best = min(tried, key=lambda trial: trial.seconds(link), default=None)
    if best is None:
        return Choice(Codec.RAW, "raw, as there was nothing to measure codecs with")
    saved = 1 - best.seconds(link) * link
    figures = f"{best.ratio:.2f} of the bytes at {_rate(best.rate * best.parallel)}: over a link of {_rate(link)} that"
    if saved >= GAIN:
        return Choice(best.codec, f"{best.codec}, as it stores {figures} saves {_percent(saved)} of the time")
    verdict = f"saves only {_percent(saved)} of the time" if saved > 0 else f"takes {_percent(-saved)} more time"
    return Choice(Codec.RAW, f"raw, as even {best.codec} stores {figures} {verdict}")


def trials(samples: Sequence[Segment], threads: int) -> list[Trial]:
    """Encodes the samples with every codec that is installed, and measures."""
    data = list(_limited(samples))
    if not data:
        return []
    return [_tried(codec, data, threads) for codec in Codec if codec is not Codec.RAW and _installed(codec)]


def _installed(codec: Codec) -> bool:
    return codec is not Codec.OPENZL or floats.available()


def _limited(samples: Sequence[Segment]) -> Iterator[Segment]:
    left = SAMPLE_BYTES
    for segment in samples:
        if left <= 0:
            return
        left -= segment.data.nbytes
        yield segment


def _tried(codec: Codec, data: list[Segment], threads: int) -> Trial:
    encode(codec, data[0].data, data[0].dtype)  # contexts and memory are there from then on
    raw = stored = 0
    begin = time.perf_counter()
    for segment in data:
        raw += segment.data.nbytes
        stored += memoryview(encode(codec, segment.data, segment.dtype)[1]).nbytes
    seconds = time.perf_counter() - begin
    return Trial(codec, stored / raw, raw / max(seconds, 1e-9), _parallel(codec, threads))


def _parallel(codec: Codec, threads: int) -> int:
    """How many threads encode at once: OpenZL holds the GIL, and more than there are processors gain nothing."""
    if codec is Codec.OPENZL:
        return 1
    return max(1, min(threads, _processors()))


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e8 else f"{rate / 1e6:.1f} MB/s"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"
