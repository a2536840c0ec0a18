"""``holdfast show``: one checkpoint, with what is in it."""

from __future__ import annotations

import json as json_module
from typing import Any

import msgspec
import typer

from holdfast import values
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.naming.tags import read_tags
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_record, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, ReferenceArgument, StoreOption
from holdfast.cli.output import count, number, print_json, say, size, table
from holdfast.records import Record
from holdfast.trees import Manifest, TensorSpec

SHOWN = 20
"""Tensors listed without --all."""


def command(
    reference: ReferenceArgument,
    everything: bool = typer.Option(False, "--all", help="List every tensor and value, not the first few."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Show one checkpoint: its record, marks, tensors and values."""
    found = opened(store)
    record = find_record(found, reference)
    if not json:
        _print_record(found, record)
    manifest = read_manifest(found.run(record.run), record.manifest_digest)
    if json:
        print_json(_document(found, record, manifest))
        return
    _print_tensors(manifest.skeleton.tensors, None if everything else SHOWN)
    if everything:
        for line in json_module.dumps(_values(manifest), indent=2, ensure_ascii=False).splitlines():
            say(line)


def _document(store: Store, record: Record, manifest: Manifest) -> dict[str, Any]:
    marks = read_record_marks(store, record.address)
    return {
        "record": msgspec.to_builtins(record),
        "marks": [msgspec.to_builtins(mark) for mark in marks.marks],
        "tags": read_tags(store).by_record().get(record.id, []),
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "lifetime": str(spec.lifetime)}
            | ({"aliases": spec.aliases} if spec.aliases else {})
            | ({"boxes": len(spec.boxes)} if spec.spread is not None else {})
            for spec in manifest.skeleton.tensors
        ],
        "values": _values(manifest),
    }


def _values(manifest: Manifest) -> Any:
    return values.display(json_module.loads(manifest.values))


def _print_record(store: Store, record: Record) -> None:
    marks = read_record_marks(store, record.address)
    tags = read_tags(store).by_record().get(record.id, [])
    facts = {
        "record": f"{record.address}, launch {record.launch}, timeline {record.timeline}",
        "saved": f"{record.created}, {record.kind}: {record.reason}",
        "parent": str(record.parent.address) if record.parent else "none: started from zero",
        "tags": ", ".join(tags) or "-",
        "marks": ", ".join(sorted({str(mark.kind) for mark in marks.marks})) or "-",
        "metrics": " ".join(f"{name}={number(value)}" for name, value in marks.metrics(record).items()) or "-",
        "bytes": f"{size(record.bytes.logical)} of state, {size(record.bytes.new)} new, "
        f"{size(record.bytes.stored)} stored",
        **({"ranks": str(record.world)} if record.world > 1 else {}),
        "seconds": f"{record.timing.stall:.2f} stall, {record.timing.durable:.2f} durable",
        "exact": "; ".join(_exactness(record)) or "-",
    }
    facts |= {f"anomaly {at}": text for at, text in enumerate(record.anomalies, 1)}
    table(("field", "value"), facts.items())


def _exactness(record: Record) -> list[str]:
    return [f"{side}: {'yes' if one.exact else 'NO, ' + one.reason}" for side, one in record.exactness.items()]


def _print_tensors(tensors: tuple[TensorSpec, ...], limit: int | None) -> None:
    say()
    shown = tensors[:limit]
    rows = [(spec.dtype, "x".join(map(str, spec.shape)) or "()", spec.lifetime, spec.name) for spec in shown]
    table(("dtype", "shape", "lifetime", count(len(tensors), "tensor")), rows)
    if len(shown) < len(tensors):
        say(f"and {len(tensors) - len(shown)} more; --all lists them")
