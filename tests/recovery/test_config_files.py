from __future__ import annotations

import math
import sys

import pytest

from holdfast.errors import InvalidInput
from holdfast.recovery.configuring.files import read_settings


@pytest.fixture
def written(tmp_path):
    """A function: the settings of a file with this text."""

    def write(name: str, text: str):
        path = tmp_path / name
        path.write_text(text)
        return read_settings(path)

    return write


YAML = """\
# a comment
lr: 0.1
holdfast:
  save: every(steps=5)

  on_config_change:
    lr: keep
"""

TOML = """\
lr = 0.1
[holdfast]   # ours
save = "every(steps=5)"
"quoted" = 1

[holdfast.on_config_change]
lr = "keep"
"""


@pytest.mark.parametrize(("name", "text", "lines"), [("a.yaml", YAML, (4, 7)), ("a.toml", TOML, (3, 7))])
def test_settings_stand_under_holdfast_and_each_has_a_line(written, name, text, lines):
    settings = written(name, text)
    assert settings.values["save"] == "every(steps=5)"
    assert settings.values["on_config_change"] == {"lr": "keep"}
    assert settings.where("save") == f" ({name}, line {lines[0]})"
    assert settings.where("on_config_change", "lr") == f" ({name}, line {lines[1]})"
    assert settings.where("elsewhere") == f" ({name})"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "save: every(steps=5)"),
        ("a.toml", 'save = "every(steps=5)"'),
        ("pyproject.toml", '[project]\nname = "x"\n[tool.holdfast]\nsave = "every(steps=5)"'),
    ],
)
def test_a_file_without_a_section_holds_nothing_else_and_pyproject_has_one_under_tool(written, name, text):
    assert written(name, text).values == {"save": "every(steps=5)"}


def test_a_mapping_is_read_as_a_file_is():
    assert read_settings({"holdfast": {"run": 3}, "lr": 1}).values == {"run": 3}
    assert read_settings({"run": 3}).where("run") == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("1e-3", 0.001),
        ("1.5", 1.5),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'500'", "500"),
        ("run-003@500", "run-003@500"),
        ("-.inf", -math.inf),
        ("[1, no, 'x']", [1, "no", "x"]),
    ],
)
def test_yaml_is_what_version_1_2_says(written, text, value):
    """In version 1.1 ``save_strategy: no`` is false, and ``1e-3`` is text."""
    assert written("a.yaml", f"key: {text}").values == {"key": value}


def test_anchors_and_merged_keys_work(written):
    settings = written("a.yaml", "base: &b {lr: 1, seed: 2}\nholdfast:\n  config:\n    <<: *b\n    lr: 3\n")
    assert settings.values["config"] == {"lr": 3, "seed": 2}


def test_what_was_merged_may_be_merged_again(written):
    """The parser puts what is merged into the very mapping, which then looks as if it had a key twice."""
    text = "c: &c {x: 0, y: 0}\na:\n  inner: &b {<<: *c, x: 1}\nholdfast: {<<: *b, x: 2}\n"
    assert written("a.yaml", text).values == {"x": 2, "y": 0}


@pytest.mark.parametrize("text", ["holdfast:\nlr: 1", "holdfast: null\nlr: 1", "# nothing\nholdfast: {}\nlr: 1"])
def test_an_empty_section_says_nothing(written, text):
    settings = written("a.yaml", text)
    assert (settings.values, settings.section) == ({}, ("holdfast",))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "a: &a {lr: 1}\nb: {<<: *a, lr: 2, lr: 3}", "a.yaml, line 2: 'lr' is there already, in line 2"),
        ("a.yaml", "holdfast: 5", "holdfast (a.yaml, line 1): wants a table of settings, not int"),
        ("a.toml", "[tool]\nholdfast = 5", "tool.holdfast (a.toml, line 2): wants a table of settings, not int"),
        ("a.yaml", "save: x\nkeep: y\nsave: z", "a.yaml, line 3: 'save' is there already, in line 1"),
        ("a.yaml", "config:\n  lr: 1\n  lr: 2", "a.yaml, line 3: 'lr' is there already, in line 2"),
        ("a.yaml", "x: !!python/object/apply:os.system [ls]", "a.yaml, line 1"),
        ("a.yaml", "x: [1, 2", "a.yaml, line "),
        ("a.yaml", "a: 1\n---\nb: 2", "a.yaml"),
        ("a.yaml", "- 1\n- 2", "maps names to values"),
        ("a.yaml", "1: 2", "the key 1 is no text"),
        ("a.yaml", "a: &a [*a]\n? [1]\n: 2", "a.yaml"),
        ("a.toml", "save = 1\nsave = 2", "line 2"),
        ("a.toml", "save = ", "a.toml"),
        ("a.toml", "[holdfast]\n[tool.holdfast]", "both [holdfast] and [tool.holdfast]"),
        ("a.json", "{}", ".yaml, .yml or .toml"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(written, name, text, said):
    with pytest.raises(InvalidInput) as caught:
        written(name, text)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml"):
        read_settings(tmp_path / "nowhere.yaml")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"odd\.toml"):
        read_settings(tmp_path / "odd.toml")


def test_an_empty_file_says_nothing(written):
    assert written("a.yaml", "# nothing\n").values == {}
    assert written("a.toml", "").values == {}


def test_without_the_yaml_extra_the_message_says_what_to_install(written, monkeypatch):
    monkeypatch.delitem(sys.modules, "holdfast.recovery.configuring.yaml", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InvalidInput, match=r"pip install 'holdfast\[yaml\]'"):
        written("a.yaml", "run: x")
    assert written("a.toml", "run = 'x'").values == {"run": "x"}


@pytest.mark.parametrize("source", [None, 5, b"train.yaml", ["train.yaml"]], ids=repr)
def test_what_is_neither_a_file_nor_a_mapping_is_refused_with_what_is_taken(source):
    with pytest.raises(InvalidInput, match=r"a configuration is a \.yaml, \.yml or \.toml file, or a mapping, not "):
        read_settings(source)
