"""After a load: is the live state, all of it, what was stored? By digests for tensors, as text for values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast import values
from holdfast.boxes import inner_rows, row_bytes
from holdfast.ids import Digest
from holdfast.packs.threads import in_parallel
from holdfast.state import tensors
from holdfast.state.capture import Collected
from holdfast.state.held import Region, narrowed, regions_of
from holdfast.state.reading import Filling, Stored, digest_of
from holdfast.state.tree import leaves
from holdfast.trees import TensorSpec, item_bytes
from holdfast.values import Json

_NO_BYTES = torch.empty(0, dtype=torch.uint8)
_OTHER_BYTES = "other bytes than stored"


class _Here(NamedTuple):
    """A live tensor: what is here of it."""

    spec: TensorSpec
    tensor: Tensor


def differences(
    documents: Mapping[str, Json], live: Collected, filling: Filling, before: Collected | None = None
) -> list[str]:
    """Every entry of the given objects that is not as it was stored.

    Live tensors are hashed, but for those whose very memory was hashed after it was filled, and not written since.

    Args:
        documents: the stored JSON by name of the object.
        live: what is there now.
        filling: the load.
        before: what was there before the load: a DTensor is to be one still, and a plain tensor plain.
    """
    found: list[str] = []
    named: dict[str, _Here] = {}
    for name, data in documents.items():
        now = live.adapters[name].comparable(data, live.data[name])
        found += _tree_differences(data, now, name)
        found += _pair(data, now, name, named, live)
        found += _laid_otherwise(before.data[name], live.data[name]) if before is not None else ()
    return found + list(_tensors_differences(named, filling))


def _tensors_differences(named: Mapping[str, _Here], filling: Filling) -> Iterator[str]:
    stored, proven = filling.stored, filling.proofs.standing()
    for path, here in named.items():
        reason = _form_difference(stored.spec(path), here.spec)
        memory = (stored.by_path[path], here.tensor.data_ptr(), here.tensor.nbytes)
        if reason is None and memory not in proven:
            reason = _difference(path, here, filling)
        if reason is not None:
            yield f"{path}: {reason}"


def _tree_differences(was: Json, now: Json, path: str) -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict) and was.get("$") == now.get("$") and was.get("$") != "tensor":
        for key in was.keys() | now.keys():
            at = values.join(path, key)
            if key not in now or key not in was:
                yield f"{at}: {'stored, and gone' if key in was else 'not stored, and there'} after the load"
            else:
                yield from _tree_differences(was[key], now[key], at)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            yield from _tree_differences(a, b, f"{path}/{i}")
    elif _text(was) != _text(now):
        yield f"{path}: stored {_short(was)}, is {_short(now)} after the load"


def _pair(was: Json, now: Json, path: str, named: dict[str, _Here], live: Collected) -> Iterator[str]:
    """Finds the live tensor of each stored one; a tie that is gone is a difference."""
    by_name = {spec.name: _Here(spec, tensor) for spec, tensor in live.tensors}
    homes: dict[str, str] = {}
    for a, b in _leaf_pairs(was, now):
        home = homes.setdefault(a["name"], b["name"])
        if home != b["name"]:
            yield f"{path}: {a['name']} was tied to another entry and is not after the load"
        named.setdefault(a["name"], by_name[b["name"]])


def _laid_otherwise(before: Json, now: Json) -> Iterator[str]:
    """Tensors that are DTensors now and were plain, or the reverse: the bytes are the same, and the next step fails."""
    forms = {leaf["name"]: bool(leaf.get("sharded")) for leaf in leaves(before)}
    words = {True: "a DTensor", False: "a plain tensor"}
    for leaf in leaves(now):
        sharded = bool(leaf.get("sharded"))
        if forms.get(leaf["name"], sharded) is not sharded:
            yield f"{leaf['name']}: was {words[not sharded]} before the load, is {words[sharded]} after it"


def _leaf_pairs(was: Json, now: Json) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    if isinstance(was, dict) and isinstance(now, dict):
        if was.get("$") == "tensor" and now.get("$") == "tensor":
            yield was, now
            return
        for key in was.keys() & now.keys():
            yield from _leaf_pairs(was[key], now[key])
    elif isinstance(was, list) and isinstance(now, list):
        for a, b in zip(was, now, strict=False):
            yield from _leaf_pairs(a, b)


def _difference(path: str, here: _Here, filling: Filling) -> str | None:
    spec, regions = filling.stored.spec(path), regions_of(here.spec, here.tensor)
    if spec.inline:
        return None if all(_same_inline(path, region, filling.stored) for region in regions) else _OTHER_BYTES
    wanted = [pair for region in regions for pair in _whole_segments(path, region, filling.stored)]
    if not all(in_parallel(_matches, wanted)):
        return _OTHER_BYTES
    known = filling.filled.get(path)
    return None if known is None or known == digest_of(regions) else _OTHER_BYTES


def _same_inline(path: str, region: Region, stored: Stored) -> bool:
    spec = stored.spec(path)
    raw = torch.frombuffer(bytearray(stored.inline_bytes(path)), dtype=torch.uint8) if spec.nbytes else _NO_BYTES
    whole = raw.view(tensors.dtype_of(spec.dtype)).reshape(spec.shape)
    part = narrowed(whole, region.box.offsets, region.box.sizes)
    return bytes(tensors.row_bytes(part)) == bytes(tensors.row_bytes(region.tensor))


def _whole_segments(path: str, region: Region, stored: Stored) -> Iterator[tuple[memoryview, Digest]]:
    """The bytes of segments of which all is here, with their digests; of others the filling knows what was put here."""
    spec = stored.spec(path)
    item = item_bytes(spec.dtype)
    for number, box in enumerate(spec.boxes):
        common = box.overlap(region.box)
        if common is None or (common.offsets[1:], common.sizes[1:]) != (box.offsets[1:], box.sizes[1:]):
            continue
        first, last = inner_rows(box, item, common.offsets[0], common.offsets[0] + common.sizes[0])
        if first >= last:
            continue
        at = [a - b for a, b in zip((first, *box.offsets[1:]), region.box.offsets, strict=True)]
        view = tensors.row_bytes(narrowed(region.tensor, at, (last - first, *box.sizes[1:])))
        begin = (first - box.offsets[0]) * row_bytes(box, item)
        for span, digest in stored.segment_digests(path, number):
            if begin <= span.start < begin + view.nbytes:
                yield view[span.start - begin : span.start - begin + span.length], digest


def _matches(pair: tuple[memoryview, Digest]) -> bool:
    return Digest.of(pair[0]) == pair[1]


def _form_difference(spec: TensorSpec, live: TensorSpec) -> str | None:
    if live.dtype != spec.dtype:
        return f"stored as {spec.dtype}, is {live.dtype} after the load"
    if live.shape != spec.shape:
        return f"stored with shape {list(spec.shape)}, has {list(live.shape)} after the load"
    return None


def _text(data: Json) -> str:
    # Names and places of tensors may differ; their bytes are compared.
    if isinstance(data, dict) and data.get("$") == "tensor":
        return "tensor"
    return json.dumps(data)


def _short(data: Json) -> str:
    text = json.dumps(values.display(data))
    return text if len(text) <= 60 else text[:57] + "..."
