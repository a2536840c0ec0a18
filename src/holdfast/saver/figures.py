"""What a save cost, as the journal and the log have it; the record has the same."""

from __future__ import annotations

from holdfast.records import Record


def figures(record: Record) -> dict[str, float | int]:
    """Seconds and bytes by name, for the journal."""
    timing, sizes = record.timing, record.bytes
    return {
        "stall": timing.stall,
        "staging": timing.staging,
        "hashing": timing.hashing,
        "writing": timing.writing,
        "durable": timing.durable,
        "logical": sizes.logical,
        "new": sizes.new,
        "stored": sizes.stored,
    }


def sentence(record: Record) -> str:
    """The same in words. Hashing and writing are summed over the threads, so they may exceed what has passed."""
    timing, sizes = record.timing, record.bytes
    return (
        f"the loop waited {timing.stall:.2f} s ({timing.staging:.2f} s of it staging), "
        f"hashing took {timing.hashing:.2f} s, writing {timing.writing:.2f} s, durable after {timing.durable:.2f} s; "
        f"{_megabytes(sizes.new)} new of {_megabytes(sizes.logical)}, {_megabytes(sizes.stored)} stored"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
