"""After a load: is the live state, all of it, what was stored? By digests for tensors, as text for values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from holdfast import values
from holdfast.ids import Digest
from holdfast.state import tensors
from holdfast.state.capture import Collected
from holdfast.state.proofs import Proofs
from holdfast.state.reading import Stored
from holdfast.trees import TensorSpec
from holdfast.values import Json

_THREADS = 4
_OTHER_BYTES = "other bytes than stored"


def differences(documents: Mapping[str, Json], live: Collected, stored: Stored, proofs: Proofs) -> list[str]:
    """Every entry of the given objects that is not as it was stored; ``documents`` is their stored JSON by name.

    Live tensors are hashed, but for those whose very memory was hashed after it was filled, and not written since.
    """
    found: list[str] = []
    named: dict[str, Tensor] = {}
    for name, data in documents.items():
        now = live.adapters[name].comparable(data, live.data[name])
        found += _tree_differences(data, now, name)
        found += _pair(data, now, name, named, live)
    return found + list(_tensors_differences(named, stored, proofs.standing()))


def _tensors_differences(
    named: Mapping[str, Tensor], stored: Stored, proven: Collection[tuple[int, int, int]]
) -> Iterator[str]:
    with ThreadPoolExecutor(_THREADS, "holdfast-compare") as pool:
        for path, tensor in named.items():
            if (stored.by_path[path], tensor.data_ptr(), stored.spec(path).nbytes) in proven:
                reason = _form_difference(stored.spec(path), tensor)
            else:
                reason = _difference(path, tensor, stored, pool)
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


def _pair(was: Json, now: Json, path: str, named: dict[str, Tensor], live: Collected) -> Iterator[str]:
    """Finds the live tensor of each stored one; a tie that is gone is a difference."""
    by_name = {spec.name: tensor for spec, tensor in live.tensors}
    homes: dict[str, str] = {}
    for a, b in _leaf_pairs(was, now):
        home = homes.setdefault(a["name"], b["name"])
        if home != b["name"]:
            yield f"{path}: {a['name']} was tied to another entry and is not after the load"
        named.setdefault(a["name"], by_name[b["name"]])


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


def _difference(path: str, tensor: Tensor, stored: Stored, pool: ThreadPoolExecutor) -> str | None:
    spec = stored.spec(path)
    if (reason := _form_difference(spec, tensor)) is not None:
        return reason
    view = tensors.row_bytes(tensor)
    if spec.inline:
        return None if bytes(view) == stored.inline_bytes(path) else _OTHER_BYTES
    wanted = stored.segment_digests(path)
    pieces = [view[span.start : span.start + span.length] for span, _ in wanted]
    equal = all(found == digest for found, (_, digest) in zip(pool.map(Digest.of, pieces), wanted, strict=True))
    return None if equal else _OTHER_BYTES


def _form_difference(spec: TensorSpec, tensor: Tensor) -> str | None:
    if tensors.dtype_name(tensor.dtype) != spec.dtype:
        return f"stored as {spec.dtype}, is {tensors.dtype_name(tensor.dtype)} after the load"
    if tuple(tensor.shape) != spec.shape:
        return f"stored with shape {list(spec.shape)}, has {list(tensor.shape)} after the load"
    return None


def _text(data: Json) -> str:
    # Names and places of tensors may differ; their bytes are compared.
    if isinstance(data, dict) and data.get("$") == "tensor":
        return "tensor"
    return json.dumps(data)


def _short(data: Json) -> str:
    text = json.dumps(values.display(data))
    return text if len(text) <= 60 else text[:57] + "..."
