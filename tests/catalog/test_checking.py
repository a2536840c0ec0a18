"""What a check of everything concludes from names and small objects, however odd they are."""

from __future__ import annotations

import json

import pytest
from blake3 import blake3

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import plan_sweep
from holdfast.catalog.marks import add_mark, read_marks
from holdfast.catalog.naming.tags import create_tag, read_tags
from holdfast.catalog.objects import create_once
from holdfast.catalog.owners import this_process
from holdfast.catalog.verifying.checking import links, read_small
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import Corrupt
from holdfast.ids import TagName, nonce
from holdfast.records import LaunchInfo, MarkKind
from holdfast.recovery.launching.resume import Rejected, candidates


def launch(run, number: int) -> None:
    info = LaunchInfo(run=int(run.number), number=number, created="", owner=this_process(), attempt=nonce())
    create_once(run.store.storage, layout.launch(run.number, number), info)


def test_launches_that_are_gone_are_told_in_stretches(store):
    run = store.create_run("x")
    for number in (2, 3, 10**12):
        launch(run, number)
    first, second = links(store, read_small(store))
    assert (first.object, second.object) == (layout.launch(run.number, 1), layout.launch(run.number, 4))
    assert "and those up to launch 999999999999 are not there" in second.what


def resealed(data: bytes, change) -> bytes:
    fields = json.loads(data)
    fields.pop("seal")
    change(fields)
    body = json.dumps(fields, indent=2)[:-2].encode() + b",\n"
    return body + b'  "seal": "' + blake3(body).hexdigest().encode() + b'"\n}\n'


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("mark", lambda f: f["target"].update(id="zz")),
        ("tag", lambda f: f["target"].update(run=0)),
        ("record", lambda f: f.update(run=0)),
        ("record", lambda f: f.update(step=7)),
        ("record", lambda f: f.update(manifest="zz")),
        ("record", lambda f: f.update(type=[1])),
        ("record", lambda f: f.update(metrics={"$": "enum", "type": "gone:X", "v": ["A"]})),
        ("start", lambda f: f["resumed_from"].update(run=0)),
        ("run", lambda f: f.update(number=7)),
    ],
)
def test_what_is_sealed_and_malformed_is_one_damaged_object(store, train, kind, change):
    """Whatever reads the store goes on without it, or says so in its own words; verify names it."""
    trainer = train("x")
    first, _, third = trainer.save(1), trainer.save(2), trainer.save(3)
    trainer.roll_back(first)
    mark = add_mark(store, third.address, MarkKind.NOTE, by="user", data={"text": "x"})
    create_tag(store, TagName("v1"), third.address)
    name = {
        "mark": layout.mark(third.address, MarkKind.NOTE, mark.attempt),
        "tag": layout.tag(TagName("v1")),
        "record": first.name,
        "start": layout.start(trainer.run.number, 1, 1),
        "run": layout.run_info(trainer.run.number),
    }[kind]
    run = store.run(1)
    data = resealed(store.storage.read(name), change)
    store.storage.delete([name])
    store.storage.create(name, data)
    assert (name, Corrupt.kind) in [(one.object, one.kind) for one in verify(store).problems]
    assert len(run.records()) == (2 if kind == "record" else 3)
    assert len(read_tags(store).damaged) == (kind == "tag")
    assert sum(len(one.damaged) for one in read_marks(store, run.number).values()) == (kind == "mark")
    list(candidates(store, run, Rejected())) if kind != "run" else None
    plan_sweep(store, run)
