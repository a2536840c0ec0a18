"""Stored tensors meet live ones: do they fit, fill them in place, or make fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from holdfast import values
from holdfast.errors import StateError
from holdfast.state import composites, making, tensors
from holdfast.state.held import is_sharded, local
from holdfast.state.reading import Filling
from holdfast.state.tree import leaves
from holdfast.trees import TensorSpec
from holdfast.values import Json

CPU = torch.device("cpu")

Like = Callable[[str], Tensor | None]
"""By the path of a stored tensor, the live one that it shall be like."""


class Tree(NamedTuple):
    """The tagged JSON of one object, and the specs of the tensors that it names."""

    data: Json
    spec: Callable[[str], TensorSpec]


def misfits(stored: Tree, live: Tree, path: str) -> Iterator[str]:
    """Why a stored tensor (plain or composite) cannot go where the live one is; one line per reason."""
    was, now = stored.data, live.data
    if was["$"] != now["$"] or was.get("class") != now.get("class"):
        yield f"{path}: stored as {_form(was)}, is {_form(now)} now"
    elif was["$"] == "tensor":
        yield from _spec_misfits(stored.spec(was["name"]), live.spec(now["name"]), path)
    elif was["$"] == "subclass":
        yield from _part_misfits(stored, live, path)
    elif (facts := {k: (was[k], now.get(k)) for k in ("shape", "dtype", "layout", "axis") if k in was}) and any(
        a != b for a, b in facts.values()
    ):
        yield f"{path}: " + "; ".join(f"stored {k} {a}, live {k} {b}" for k, (a, b) in facts.items() if a != b)
    elif "values" in was["parts"]:
        a, b = (tree.spec(tree.data["parts"]["values"]["name"]) for tree in (stored, live))
        # The first dimension counts the stored elements, which may differ; the others are blocks.
        was_block, now_block = (msgspec.structs.replace(spec, shape=spec.shape[1:]) for spec in (a, b))
        yield from _spec_misfits(was_block, now_block, path)


def fill(data: Json, live: Tensor, filling: Filling) -> list[Callable[[], None]]:
    """Sends a stored tensor into a live one; what must wait for other bytes is returned, to be called after the run."""
    if data["$"] == "tensor":
        filling.place(data["name"], live)
        return []
    live = local(live)
    if data["$"] == "subclass":
        parts = composites.subclass_parts(live)
        return [later for name, part in data["parts"].items() for later in fill(part, parts[name], filling)]
    return [lambda: _replace(live, fresh(data, filling, live.device))]


def fresh(data: Json, filling: Filling, device: torch.device = CPU, like: Like = lambda _: None) -> Any:
    """A value whose tensors are all newly made and filled.

    Tensors that were tied within ``data`` are one again; nothing is shared with any other object.

    Args:
        data: tagged JSON.
        filling: where the bytes come from.
        device: of tensors that are like no other one.
        like: the live tensor, by path, that has the device, and lies on the ranks, as the new one shall.
    """
    made: dict[str, Tensor] = {}
    for leaf in leaves(data):
        name = leaf["name"]
        if name not in made:
            refuse_overlap(leaf)
            made[name] = _new(filling.stored.spec(name), like(name), device)
            filling.into(name, made[name])
    filling.run()
    return values.decode(data, readers=composites.readers(made))


def _new(spec: TensorSpec, pattern: Tensor | None, device: torch.device) -> Tensor:
    if pattern is not None and is_sharded(pattern):
        return making.made(pattern, spec, pattern.device, sharded=True)
    return tensors.allocate(spec, device if pattern is None else pattern.device)


def placeless(data: Json, like: Like) -> Iterator[str]:
    """Tensors that lay on several ranks, of which nothing here tells how they lie now; one line for each.

    Where there are no ranks they are plain.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for leaf in leaves(data):
        if leaf.get("sharded") and like(leaf["name"]) is None:
            yield (
                f"{leaf['name']}: stored as a DTensor, and nothing tells how to lay it on the ranks now; "
                "have the object make it before the restore"
            )


def refuse_overlap(leaf: dict[str, Json]) -> None:
    """Refuses to make a tensor anew that shared part of its memory with another one.

    Raises:
        StateError: two tensors would come out of one piece of memory.
    """
    if leaf.get("overlaps"):
        raise StateError(
            f"{leaf['name']} shared part of its memory with another tensor when it was saved, which cannot be made "
            "anew; store only one of the two, or a clone"
        )


def _spec_misfits(was: TensorSpec, now: TensorSpec, path: str) -> Iterator[str]:
    if was.shape != now.shape:
        yield f"{path}: stored shape {list(was.shape)}, live shape {list(now.shape)}"
    if was.dtype != now.dtype:
        yield f"{path}: stored dtype {was.dtype}, live dtype {now.dtype}"


def _part_misfits(stored: Tree, live: Tree, path: str) -> Iterator[str]:
    was, now = stored.data["parts"], live.data["parts"]
    if set(was) != set(now):
        yield f"{path}: stored with the parts {sorted(was)}, has {sorted(now)} now"
        return
    for name in was:
        yield from misfits(stored._replace(data=was[name]), live._replace(data=now[name]), values.join(path, name))


def _replace(live: Tensor, made: Tensor) -> None:
    with torch.no_grad():
        if live.is_quantized:
            live.copy_(made)
        elif live.layout == torch.sparse_coo:
            live.data = made
        else:
            # Assigning data does nothing to compressed layouts, and copy_ refuses another number of elements.
            live.resize_as_sparse_(made)
            live.copy_(made)


def _form(data: Json) -> str:
    return f"a {data['class']}" if "class" in data else {"tensor": "a plain tensor"}.get(data["$"], data["$"])
