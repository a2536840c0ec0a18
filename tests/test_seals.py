"""Small objects: whatever a configuration holds is written and read back, and nothing malformed passes for sound."""

from __future__ import annotations

import enum
import json
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from holdfast.errors import Corrupt, InvalidName, UnknownFormat, UnsupportedValue
from holdfast.ids import ObjectName, Order, RecordAddress, RecordId, RunNumber
from holdfast.records import (
    Aborted,
    Batch,
    Event,
    Exactness,
    Kind,
    LaunchInfo,
    Mark,
    MarkKind,
    Owner,
    Record,
    RunInfo,
    Sizes,
    StartInfo,
    Tag,
    Target,
    Timing,
)
from holdfast.seals import seal, unseal
from holdfast.storage.files import Files

RUN = ObjectName("catalog/runs/003/run.json")
OWNER = Owner(host="h", boot="b", pid=1, started="1")
ADDRESS = RecordAddress(RunNumber(3), Order(1, 0, 500), RecordId("00ff00ff00ff00ff"))
NONCE = "1" * 16


class Activation(enum.Enum):
    RELU = 1


class Level(enum.StrEnum):
    HIGH = "high"


def run_info(**fields) -> RunInfo:
    return RunInfo(**{"number": 3, "name": "toy", "created": "2026-01-01T00:00:00Z", "attempt": NONCE} | fields)


def record(**fields) -> Record:
    return Record(
        **{
            **Target.of(ADDRESS).fields(),
            "parent": None,
            "created": "2026-01-01T00:00:00Z",
            "kind": Kind.BEST,
            "reason": "test",
            "manifest": "00" * 32,
            "tensors": 0,
            "bytes": Sizes(logical=0, new=0, stored=0),
            "timing": Timing(stall=0.5, staging=0, hashing=0, writing=0),
            "exactness": {"rng": Exactness(exact=True, reason="all")},
            "codec": "raw",
            "owner": OWNER,
            "attempt": NONCE,
        }
        | fields
    )


def resealed(data: bytes, **changes: object) -> bytes:
    """The same object with other fields, under a seal that fits: what a writer with a bug would leave."""
    fields = {**json.loads(data), **changes}
    fields.pop("seal")
    return sealed(json.dumps(fields, indent=2)[:-2].encode() + b",\n")


def sealed(body: bytes) -> bytes:
    return body + b'  "seal": "' + blake3(body).hexdigest().encode() + b'"\n}\n'


def round_trip(name: ObjectName, content: msgspec.Struct) -> msgspec.Struct:
    return unseal(name, seal(name, content), type(content))


@pytest.mark.parametrize(
    "value",
    [
        Path("/x"),
        1j,
        {1, 2},
        b"raw",
        Activation.RELU,
        Level.HIGH,
        (0.9, 0.95),
        timedelta(seconds=3),
        2**100,
        {1: 2},
        range(3),
        {"$": "not a tag"},
        "\ud800",
    ],
    ids=repr,
)
def test_what_a_configuration_holds_comes_back_as_it_was(value):
    found = round_trip(RUN, run_info(config={"value": value, "nested": {"list": [value]}})).config
    assert found == {"value": value, "nested": {"list": [value]}}
    assert type(found["value"]) is type(value)


def test_every_structure_within_a_structure_comes_back():
    saved = record(parent=Target.of(ADDRESS), metrics={"loss": math.nan, "seen": {1}}, packs=["data/runs/003/x"])
    saved = msgspec.structs.replace(saved, timing=Timing(stall=0.5, staging=0, hashing=0, writing=math.nan))
    found = round_trip(ADDRESS.name, saved)
    assert msgspec.structs.replace(found, metrics={}, timing=saved.timing) == msgspec.structs.replace(saved, metrics={})
    assert math.isnan(found.metrics["loss"])
    assert found.metrics["seen"] == {1}
    assert math.isnan(found.timing.writing)
    assert found.kind is Kind.BEST


def test_events_with_any_values_come_back():
    batch = Batch(run=3, writer="w", number=1, events=[Event(time="", kind="k", message="m", data={"at": Path("/x")})])
    name = ObjectName("catalog/runs/003/journal/w/000001.json")
    assert round_trip(name, batch) == batch


def test_a_value_without_codec_is_refused_with_its_path():
    with pytest.raises(UnsupportedValue, match="config/model/hook"):
        seal(RUN, run_info(config={"model": {"hook": Files()}}))


def test_a_reader_without_the_program_shows_what_it_cannot_make(tmp_path):
    """The command line has neither torch nor the user's classes, and lists runs all the same."""
    torch_like = {"$": "torch.dtype", "v": "bfloat16"}
    lost = {"$": "enum", "type": "gone.module:Activation", "v": ["RELU"]}
    config = {
        "dtype": torch_like,
        "act": lost,
        "betas": {"$": "tuple", "v": [0.9, lost]},
        "set": {"$": "set", "v": [lost]},
    }
    (tmp_path / "run.json").write_bytes(resealed(seal(RUN, run_info()), config=config))
    code = (
        "import sys; from pathlib import Path; from holdfast.seals import unseal\n"
        "from holdfast.ids import ObjectName; from holdfast.records import RunInfo\n"
        f"data = Path({str(tmp_path / 'run.json')!r}).read_bytes()\n"
        f"print(unseal(ObjectName({str(RUN)!r}), data, RunInfo).config, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = {
        "dtype": "torch.dtype(bfloat16)",
        "act": "Activation.RELU",
        "betas": (0.9, "Activation.RELU"),
        "set": {"Activation.RELU"},
    }
    assert found.strip() == f"{expected} False"


LAUNCH = ObjectName("catalog/runs/003/launches/000002.json")
START = ObjectName("catalog/runs/003/launches/000002.001.json")
MARK = ObjectName(f"catalog/runs/003/marks/{ADDRESS.id}/note-{NONCE}.json")
TAG = ObjectName("catalog/tags/v1.json")
SOUND = {
    RUN: run_info(forked_from=Target.of(ADDRESS)),
    ADDRESS.name: record(parent=Target.of(ADDRESS)),
    LAUNCH: LaunchInfo(run=3, number=2, created="", owner=OWNER, attempt=NONCE),
    START: StartInfo(run=3, launch=2, timeline=1, created="", resumed_from=Target.of(ADDRESS), why="", attempt=NONCE),
    MARK: Mark(kind=MarkKind.NOTE, target=Target.of(ADDRESS), created="", by="user", attempt=NONCE),
    TAG: Tag(tag="v1", target=Target.of(ADDRESS), created="", attempt=NONCE),
}
TARGET = Target.of(ADDRESS).fields()
DEEP = json.loads('{"a":' + "[" * 900 + "]" * 900 + "}")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (MARK, {"target": {**TARGET, "id": "zz"}}),
        (TAG, {"target": {**TARGET, "run": 0}}),
        (TAG, {"target": {**TARGET, "step": -1}}),
        (ADDRESS.name, {"run": 0}),
        (ADDRESS.name, {"id": "zz"}),
        (ADDRESS.name, {"manifest": "zz"}),
        (ADDRESS.name, {"packs": ["../../etc/passwd"]}),
        (ADDRESS.name, {"parent": {**TARGET, "run": 0}}),
        (ADDRESS.name, {"metrics": {"$": "enum", "type": "gone.module:X", "v": ["A"]}}),
        (ADDRESS.name, {"metrics": {"loss": {"$": "float", "v": "zz"}}}),
        (ADDRESS.name, {"metrics": {"loss": {"$": [1], "v": 1}}}),
        (ADDRESS.name, {"metrics": {"x": {"$": "unheard.of", "v": DEEP}}}),
        (ADDRESS.name, {"type": [1]}),
        (RUN, {"number": 0}),
        (RUN, {"number": 10**30}),
        (LAUNCH, {"number": 0}),
        (START, {"resumed_from": {**TARGET, "run": 0}}),
    ],
    ids=lambda part: str(part)[:60],
)
def test_a_sealed_but_malformed_object_is_corrupt_and_named(name, changes):
    type_ = type(SOUND[name])
    assert unseal(name, seal(name, SOUND[name]), type_) == SOUND[name]
    with pytest.raises(Corrupt, match=name):
        unseal(name, resealed(seal(name, SOUND[name]), **changes), type_)


def test_an_object_that_is_nested_too_deep_to_be_read_is_corrupt():
    data = seal(ADDRESS.name, record())
    deep = data[: data.rindex(b'  "seal"')].replace(
        b'"metrics": {}', b'"metrics": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    )
    with pytest.raises(Corrupt, match="no JSON"):
        unseal(ADDRESS.name, sealed(deep), Record)


def test_a_format_that_is_no_number_is_an_unknown_one():
    with pytest.raises(UnknownFormat, match=RUN):
        unseal(RUN, resealed(seal(RUN, run_info()), format=[1]), RunInfo)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (ADDRESS.name, {"step": 7}),
        (ADDRESS.name, {"run": 4}),
        (RUN, {"number": 7}),
        (LAUNCH, {"number": 7}),
        (START, {"timeline": 7}),
    ],
)
def test_an_object_whose_content_belongs_elsewhere_is_corrupt(name, changes):
    """Readers go by the content, listings by the name: the two must not differ."""
    with pytest.raises(Corrupt, match=f"{name} .*belongs"):
        unseal(name, resealed(seal(name, SOUND[name]), **changes), type(SOUND[name]))


def test_a_given_up_save_under_another_name_is_corrupt():
    given_up = Aborted(**TARGET, created="", by=OWNER, saver=None, reason="test", attempt=NONCE)
    data = seal(ADDRESS.name, given_up)
    assert unseal(ADDRESS.name, data, (Record, Aborted)) == given_up
    with pytest.raises(Corrupt, match="belongs"):
        unseal(ADDRESS.name, resealed(data, step=7), (Record, Aborted))


def test_a_target_is_checked_when_it_is_made():
    with pytest.raises(InvalidName):
        Target(**{**TARGET, "run": 0})
