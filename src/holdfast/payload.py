"""Where in the payload of a manifest the digests of a box lie: part by part, within a part in skeleton order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from holdfast.boxes import cut_count
from holdfast.trees import Skeleton, TensorSpec, item_bytes


def tensors_in_order(skeleton: Skeleton) -> Iterator[int]:
    """For each digest of a payload in order, the position of its tensor in the skeleton."""
    by_part: list[list[tuple[int, int]]] = [[] for _ in range(skeleton.parts)]
    for place, spec in enumerate(skeleton.tensors):
        for part, count in _counts(spec):
            by_part[part].append((place, count))
    return (place for part in by_part for place, count in part for _ in range(count))


def counts(skeleton: Skeleton) -> tuple[int, ...]:
    """How many digests each part has."""
    found = [0] * skeleton.parts
    # Many tensors have the very same boxes, thousands of them: each list of boxes is gone through once.
    alike: dict[tuple[int, int], list[TensorSpec]] = {}
    for number, spec in enumerate(skeleton.tensors):
        key = (-1, number) if spec.spread is None else (id(spec.spread), item_bytes(spec.dtype))
        if not spec.inline:
            alike.setdefault(key, []).append(spec)
    for specs in alike.values():
        for part, count in _counts(specs[0]):
            found[part] += count * len(specs)
    return tuple(found)


def _counts(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """Per box, its part and how many segments it has."""
    if spec.inline:
        return
    item = item_bytes(spec.dtype)
    parts = (0,) if spec.spread is None else spec.spread.parts
    for part, box in zip(parts, spec.boxes, strict=True):
        yield part, cut_count(box, item)


class Places:
    """Positions of segment digests; works out those of a part when first asked for one. Not thread-safe.

    Args:
        skeleton: what the payload is of.
        counts: digests per part; where a part begins follows from them.

    Raises:
        IndexError: there is no such box.
    """

    def __init__(self, skeleton: Skeleton, counts: Sequence[int]) -> None:
        self._tensors = skeleton.tensors
        self._begins = [0, *accumulate(counts)]
        self._known: dict[int, list[int]] = {}
        self._by_part: dict[int, dict[int, list[int]]] = {}

    def of(self, tensor: int, box: int) -> range:
        """Of one box of a tensor; both by position."""
        spec = self._tensors[tensor]
        part = 0 if spec.spread is None else spec.spread.parts[box]
        at = self._starts(part)[tensor]
        for other in self._boxes(spec, part):
            count = cut_count(spec.boxes[other], item_bytes(spec.dtype))
            if other == box:
                return range(at, at + count)
            at += count
        raise IndexError(f"{spec.name} has no box {box}")

    def _starts(self, part: int) -> list[int]:
        """Per tensor, where its first digest in a part is; and the end."""
        if part not in self._known:
            counts = [self._in_part(spec, part) for spec in self._tensors]
            self._known[part] = [*accumulate(counts, initial=self._begins[part])]
        return self._known[part]

    def _in_part(self, spec: TensorSpec, part: int) -> int:
        if spec.inline:
            return 0
        item = item_bytes(spec.dtype)
        return sum(cut_count(spec.boxes[box], item) for box in self._boxes(spec, part))

    def _boxes(self, spec: TensorSpec, part: int) -> Sequence[int]:
        """The boxes of a tensor that are in a part, by position."""
        if spec.spread is None:
            return (0,) if part == 0 else ()
        key = id(spec.spread)  # one list for many tensors; the skeleton keeps it alive
        if key not in self._by_part:
            found: dict[int, list[int]] = {}
            self._by_part[key] = found
            for box, owner in enumerate(spec.spread.parts):
                found.setdefault(owner, []).append(box)
        return self._by_part[key].get(part, ())
