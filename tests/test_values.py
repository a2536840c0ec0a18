"""The value codec: each row of the table, there and back through real JSON text."""

import enum
import json
import math
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import values
from holdfast.errors import Corrupt, InvalidInput, StateError, UnknownFormat, UnsupportedValue


class Phase(enum.Enum):
    WARMUP = "w"
    MAIN = 2


class Level(enum.IntEnum):
    LOW = 1


class Perm(enum.Flag):
    R = 1
    W = 2


Point = namedtuple("Point", "x y")


def through_text(value):
    text = json.dumps(values.encode(value), allow_nan=False, ensure_ascii=False)
    return values.decode(json.loads(text.encode().decode()))


def same(a, b):
    """Equal in type, order and bits, at every depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        extra = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        return extra and len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple, deque)):
        extra = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return extra and len(a) == len(b) and all(map(same, a, b))
    return a == b


ROWS = {
    "none": None,
    "true": True,
    "big int": 2**127 + 1,
    "negative big int": -(2**127) - 1,
    "int beyond the text limit of Python": 3**20000,
    "tiny float": 5e-324,
    "exact float": 0.1 + 0.2,
    "negative zero": -0.0,
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "text": "naïve ☂ \x00 \u2028",
    "text with a lone surrogate": "file-\udcff",
    "list": [1, [2.0, [None]]],
    "tuple": (0.9, (0.999,), ()),
    "set": {3, "a", (1, 2), None},
    "frozenset": frozenset({1, 2.5}),
    "deque": deque([1, 2], maxlen=5),
    "deque without limit": deque([(1, 2)]),
    "Counter": Counter({30: 1, 80: 2}),
    "OrderedDict": OrderedDict([("b", 1), ("a", {"x": (1,)})]),
    "defaultdict": defaultdict(list, {"a": [1], 2: []}),
    "defaultdict without factory": defaultdict(None, {1: 2}),
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"\x00\xff"),
    "complex": complex(-0.0, float("inf")),
    "Path": Path("a/b c"),
    "PurePosixPath": PurePosixPath("/x"),
    "PureWindowsPath": PureWindowsPath("C:\\x"),
    "date": date(2024, 2, 29),
    "datetime": datetime(2024, 2, 29, 1, 2, 3, 456789),
    "datetime in UTC": datetime(2024, 2, 29, tzinfo=UTC),
    "datetime with fold": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=-5), "EST")),
    "timedelta": timedelta(days=-3, microseconds=1),
    "timezone": timezone(timedelta(hours=5, minutes=45)),
    "enum": Phase.WARMUP,
    "int enum": Level.LOW,
    "flags": Perm.R | Perm.W,
    "no flag": Perm(0),
    "slice": slice(None, 10, -1),
    "range": range(2**70, 0, -3),
    "dict with integer keys": {0: "a", 1: "b"},
    "dict with many kinds of keys": {"1": 1, 1: 2, 2.5: 3, None: 4, (1, "a"): 5, b"k": 6, False: 7, Phase.MAIN: 8},
    "dict with a tag as its key": {"$": "tuple", "v": [1]},
    "dict in an order of its own": {"z": 1, "a": 2, "m": 3},
    "empty": [{}, [], (), set(), OrderedDict()],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_value_comes_back_in_type_order_and_bits(name):
    """Hazards 14: JSON and msgpack cannot hold the values of a training state."""
    assert same(through_text(ROWS[name]), ROWS[name])


@pytest.mark.parametrize("value", [None, True, 2**80, "x", 1.5, [1, {"a": [None]}], {"a": {"b": 1}}])
def test_plain_values_are_themselves_in_json(value):
    assert values.encode(value) == value


def test_one_and_true_and_one_point_zero_stay_different():
    assert [type(v) for v in through_text([1, True, 1.0])] == [int, bool, float]
    assert [type(k) for d in ({1: 0}, {True: 0}, {1.0: 0}) for k in through_text(d)] == [int, bool, float]


def test_equal_sets_are_written_alike_in_processes_with_other_hash_seeds():
    code = (
        "import json; from holdfast import values; "
        "print(json.dumps(values.encode({'alpha', 'beta', ('c', 1), 4, frozenset({'x', 'y'})})))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
keys = st.recursive(json_scalars, lambda inner: st.tuples(inner, inner), max_leaves=3)
trees = st.recursive(
    json_scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner)
        | st.lists(inner).map(deque)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(trees)
def test_any_tree_of_values_comes_back(tree):
    assert same(through_text(tree), tree)


@given(trees)
def test_display_never_fails_on_what_encode_wrote(tree):
    json.dumps(values.display(values.encode(tree)), allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, Point(1, 2), type("Sub", (dict,), {})(), type("Text", (str,), {})("x"), sys, (1).__add__],
    ids=["object", "function", "dataclass", "dict subclass", "str subclass", "module", "method"],
)
def test_what_has_no_codec_is_refused_with_its_path(value):
    with pytest.raises(UnsupportedValue, match="optimizer/param_groups/0/foo is a"):
        values.encode({"param_groups": [{"foo": value}]}, "optimizer")


@pytest.mark.parametrize("value", [{"k": {object()}}, {"k": frozenset({Point(1, 2)})}])
def test_what_has_no_codec_is_refused_within_sets_too(value):
    with pytest.raises(UnsupportedValue, match=r"k \(in a set\)"):
        values.encode(value)


def test_a_key_without_codec_is_refused():
    with pytest.raises(UnsupportedValue, match="as the key"):
        values.encode({"a": {Point(1, 2): 0}})


def test_a_container_within_itself_is_refused_with_its_path():
    value = {"a": [1]}
    value["a"].append(value)
    with pytest.raises(UnsupportedValue, match="a/1 contains itself"):
        values.encode(value)


def test_an_object_met_twice_beside_itself_is_no_recursion():
    shared = [1]
    assert values.encode([shared, shared]) == [[1], [1]]


def nested(levels, wrap, value=0):
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {(1,): v}, lambda v: ({"k": v},), lambda v: frozenset({v})])
def test_nesting_has_a_limit_when_written(wrap):
    with pytest.raises(UnsupportedValue, match="nested more than"):
        values.encode(nested(values.DEPTH + 1, wrap))


def test_nesting_has_a_limit_when_read():
    """Hazards 49: stored text cannot make the reader run out of stack."""
    with pytest.raises(Corrupt, match="nested more than"):
        values.decode(nested(values.DEPTH + 9, lambda v: [v]))


def test_the_deepest_value_that_is_written_can_be_read():
    for wrap in (lambda v: [v], lambda v: {(1,): v}):
        inner = (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "X")), slice(3**20000), -math.inf)
        deep = nested(values.DEPTH - 2, wrap, inner)
        assert same(through_text(deep), deep)


def test_a_factory_that_is_not_in_the_table_is_refused():
    with pytest.raises(UnsupportedValue, match="factory"):
        values.encode({"d": defaultdict(lambda: 0)})
    with pytest.raises(UnsupportedValue, match="factory"):
        values.encode(defaultdict(type("list", (), {})))


def test_a_datetime_in_a_zone_with_rules_is_refused_with_a_way_out():
    from zoneinfo import ZoneInfo

    with pytest.raises(UnsupportedValue, match="astimezone"):
        values.encode(datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")))


def test_an_enum_that_the_program_has_not_imported_is_an_error_that_names_it():
    """Hazards 14: reading never imports a module that the checkpoint names."""
    stored = {"$": "enum", "type": "antigravity:Sky", "v": ["BLUE"]}
    with pytest.raises(StateError, match="antigravity:Sky"):
        values.decode(stored)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["os:system", "builtins:int", "enum:Enum.__members__", "no such", ""])
def test_only_enum_classes_are_looked_up(name):
    with pytest.raises(StateError, match="not to be found"):
        values.decode({"$": "enum", "type": name, "v": ["X"]})


def test_a_member_that_is_gone_is_an_error_that_names_it():
    with pytest.raises(StateError, match="COOLDOWN"):
        values.decode({"$": "enum", "type": f"{__name__}:Phase", "v": ["COOLDOWN"]})


def test_an_enum_of_a_function_is_refused_when_it_is_saved():
    class Local(enum.Enum):
        A = 1

    with pytest.raises(UnsupportedValue, match="top of a module"):
        values.encode({"x": Local.A})


def test_an_unknown_tag_is_refused():
    with pytest.raises(UnknownFormat, match="hologram"):
        values.decode([{"$": "hologram", "v": 1}])


@pytest.mark.parametrize(
    "stored",
    [
        {"$": "tuple"},
        {"$": "tuple", "v": 3},
        {"$": "float", "v": "1e999"},
        {"$": "bytes", "v": "#"},
        {"$": "int", "v": "zz"},
        {"$": "set", "v": [[]]},
        {"$": "dict", "v": [[1]]},
        {"$": "datetime", "v": "yesterday", "fold": 0, "zone": None},
        {"$": "range", "v": [0, 1, 0]},
        {"$": "defaultdict", "factory": "exec", "v": []},
        {"$": ["tuple"], "v": []},
        {"$": "enum", "type": 3, "v": ["A"]},
    ],
    ids=json.dumps,
)
def test_malformed_values_are_typed_errors(stored):
    with pytest.raises(Corrupt, match="malformed"):
        values.decode(stored)


def test_a_registered_type_makes_the_round_trip_and_its_subclass_does_not():
    class Money:
        def __init__(self, cents):
            self.cents = cents

    values.register(Money, "test.money", lambda m: {"cents": (m.cents,)}, lambda v: Money(*v["cents"]))
    assert through_text([Money(5)])[0].cents == 5
    with pytest.raises(UnsupportedValue):
        values.encode(type("Yen", (Money,), {})(1))


@pytest.mark.parametrize("tag", ["tuple", "tensor", "Bad Tag", ""])
def test_built_in_and_malformed_tags_cannot_be_registered(tag):
    with pytest.raises(InvalidInput, match="cannot be the tag"):
        values.register(type("X", (), {}), tag, repr, repr)


def test_a_tag_cannot_be_taken_from_another_type():
    values.register(type("First", (), {}), "test.first", repr, repr)
    with pytest.raises(InvalidInput, match="First"):
        values.register(type("Second", (), {}), "test.first", repr, repr)


def test_paths_are_unambiguous():
    """Keys that would collide as text have different paths."""
    odd = ["a/b", "a~1b", "", "~2", "3", 3, True, "~(3)", 1.5, None, ("a/b",), "a"]
    paths = [values.join("x", key) for key in odd] + [values.join(values.join("x", "a"), "b")]
    assert len(set(paths)) == len(paths)
    assert all(path.count("/") == 1 for path in paths[:-1])


def test_a_leaf_of_the_caller_is_asked_first_and_read_back():
    seen = []

    def leaf(value, path):
        if isinstance(value, bytes):
            seen.append(path)
            return {"$": "tensor", "name": path}
        return None

    stored = values.encode({"a": [b"1", {2: b"2"}], "c": (b"3",)}, "root", leaf=leaf)
    assert seen == ["root/a/0", "root/a/1/~(2)", "root/c/0"]
    assert values.decode(stored, readers={"tensor": lambda d: d["name"]}) == {
        "a": ["root/a/0", {2: "root/a/1/~(2)"}],
        "c": ("root/c/0",),
    }


def test_display_reads_like_the_value():
    shown = values.display(
        values.encode(
            {"betas": (0.9, 0.999), "phase": Phase.MAIN, "milestones": Counter({30: 1}), "blob": b"abc", "z": 1 - 2j}
            | {"best": math.inf, "where": Path("a/b"), "w": Perm.R | Perm.W}
        )
    )
    assert shown == {
        "betas": [0.9, 0.999],
        "phase": "Phase.MAIN",
        "milestones": {"30": 1},
        "blob": "<3 bytes>",
        "z": "1.0-2.0j",
        "best": "inf",
        "where": "a/b",
        "w": "Perm.R|W",
    }


def test_display_shows_tags_that_nobody_registered():
    assert values.display({"$": "torch.dtype", "v": "bfloat16"}) == "torch.dtype(bfloat16)"
    assert values.display({"$": "tensor", "name": "model/w"}) == "<tensor model/w>"
    assert values.display({"$": "odd", "a": 1}) == {"odd": {"a": 1}}
