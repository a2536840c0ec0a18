from __future__ import annotations

import copy
import random

import pytest

from holdfast.catalog.config import ABSENT, changed_keys, with_value
from holdfast.errors import InvalidInput, StateMismatch
from holdfast.recovery.launching.config_changes import OnChange, change_rules, decide_changes

BEFORE = {"lr": 0.1, "batch_size": 8, "optim": {"eps": 1e-8, "betas": (0.9, 0.95)}, "old": None}
AFTER = {"lr": 0.2, "batch_size": 16, "optim": {"eps": 1e-6, "betas": (0.9, 0.95)}, "new": 1}


def decided(given: object) -> dict[str, str]:
    return {change.key: str(change.decision) for change in decide_changes(BEFORE, AFTER, change_rules(given)).changes}


def test_by_default_everything_is_overridden_and_said():
    decision = decide_changes(BEFORE, AFTER, change_rules(None))
    assert decision.config == AFTER
    assert str(decision).splitlines() == [
        "batch_size: 8 -> 16",
        "lr: 0.1 -> 0.2",
        "new: absent -> 1",
        "old: None -> absent",
        "optim.eps: 1e-08 -> 1e-06",
    ]
    decision.check("run-001@500")


def test_a_key_that_is_kept_has_the_value_of_the_checkpoint():
    decision = decide_changes(BEFORE, AFTER, change_rules({"batch_size": "keep", "optim.eps": "keep"}))
    assert decision.config == AFTER | {"batch_size": 8, "optim": BEFORE["optim"]}
    assert "batch_size: 8 -> 16  (kept as it was: ckpt.config has it)" in str(decision)
    assert AFTER["optim"]["eps"] == 1e-6  # what the user gave is left alone


def test_keeping_everything_gives_the_configuration_of_the_checkpoint():
    assert decide_changes(BEFORE, AFTER, change_rules("keep")).config == BEFORE


def test_a_refused_change_lists_everything_that_differs():
    decision = decide_changes(BEFORE, AFTER, change_rules({"lr": "refuse"}))
    with pytest.raises(StateMismatch) as caught:
        decision.check("run-001@500")
    text = str(caught.value)
    assert "run-001@500" in text
    assert "refuses a change of lr (by 'lr')" in text
    assert "lr: 0.1 -> 0.2  (refused)" in text
    assert "batch_size: 8 -> 16\n" in text


def test_what_has_not_changed_is_not_refused():
    decide_changes(BEFORE, copy.deepcopy(BEFORE), change_rules("refuse")).check("run-001@500")


@pytest.mark.parametrize(
    ("rules", "key", "decision"),
    [
        ({"*": "refuse", "lr": "keep"}, "lr", "keep"),
        ({"lr": "keep", "*": "refuse"}, "lr", "keep"),
        ({"*": "refuse"}, "optim.eps", "refuse"),
        ({"optim.*": "keep", "*": "refuse"}, "optim.eps", "keep"),
        ({"optim": "keep", "*": "refuse"}, "optim.eps", "keep"),
        ({"opt*": "refuse", "optim.e?s": "keep"}, "optim.eps", "keep"),
        ({"lr*": "refuse", "lr": "keep"}, "lr", "keep"),
        ({"o*": "keep", "*s": "refuse"}, "optim.eps", "keep"),
        ({"[ln]*": "keep"}, "new", "keep"),
        ({"optim.betas": "refuse"}, "optim.eps", "override"),
        ({"opti": "override", "*": "refuse"}, "optim.eps", "refuse"),
    ],
)
def test_the_most_telling_pattern_counts(rules, key, decision):
    assert decided(rules)[key] == decision


@pytest.mark.parametrize("given", ["perhaps", 3, {"lr": "maybe"}, {"lr": True}, {3: "keep"}, {"": "keep"}, ["keep"]])
def test_what_is_no_rule_is_refused(given):
    with pytest.raises(InvalidInput, match="on_config_change"):
        change_rules(given)


@pytest.mark.parametrize("word", ["keep", "refuse"])
@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("eps", "; did you mean optim.eps?"),
        ("batchsize", "; did you mean batch_size?"),
        ("model.lr", "; did you mean lr?"),
        ("optim.esp", "; did you mean optim.eps or optim.betas or optim?"),
        ("LR", "; did you mean lr?"),
        ("old.er", "; did you mean old?"),
        ("zzz", "; its keys are batch_size, lr, new, old, optim, optim.betas, optim.eps"),
    ],
)
def test_a_slip_in_a_key_is_named_with_what_was_meant(word, slip, meant):
    """Such a rule said nothing and did nothing."""
    with pytest.raises(InvalidInput) as caught:
        decided({"lr": word, slip: word, "zz*": word})
    text = str(caught.value)
    assert text.startswith(f"on_config_change: {slip!r} is no key of the configuration, so nothing would be ")
    assert text.endswith(meant)
    decided({slip: "override"})


def test_all_slips_are_named_at_once():
    with pytest.raises(InvalidInput, match=r"'eps' (.|\n)*'batchsize' "):
        decided({"eps": "keep", "lr": "keep", "batchsize": "refuse"})


@pytest.mark.parametrize("given", ["lr", "old", "new", "optim", "optim.betas", "zz*", "?", "[z]"])
def test_a_key_of_either_configuration_is_known(given):
    decided({given: "refuse"})


def test_keys_that_are_no_text_are_known_by_their_text():
    decide_changes({"layers": {1: 2}}, {"layers": {}}, change_rules({"layers.1": "keep"}))


def test_a_slip_is_named_where_there_is_no_configuration_at_all():
    with pytest.raises(InvalidInput, match=r"'lr' is no key of the configuration, .*; it has none at all"):
        decide_changes({}, {}, change_rules({"lr": "keep"}))


def test_a_slip_with_very_many_keys_gives_no_endless_message():
    many = {f"key{number}": number for number in range(999)}
    with pytest.raises(InvalidInput) as caught:
        decide_changes(many, many, change_rules({"zzz": "refuse"}))
    assert len(str(caught.value)) < 400


def test_what_is_kept_in_the_programs_own_is_found_by_the_text_of_its_keys():
    decision = decide_changes({"layers": {"1": 0.1}}, {"layers": {"1": 0.9}}, change_rules("keep"))
    assert decision.applied({"layers": {1: 0.9}}) == {"layers": {1: 0.1}}


def test_rules_that_are_read_are_taken_as_they_are():
    rules = change_rules({"lr": "keep"})
    assert change_rules(rules) is rules


def test_a_table_that_became_a_value_is_one_change():
    (change,) = changed_keys({"a": {"b": 1}}, {"a": 3})
    assert change == (("a",), {"b": 1}, 3)
    assert list(changed_keys({"a": {}}, {"a": {"b": 1}})) == [(("a",), {}, {"b": 1})]


def test_a_value_that_is_missing_is_another_one_than_none():
    assert list(changed_keys({"a": None}, {})) == [(("a",), None, ABSENT)]
    assert with_value({"a": 1, "b": 2}, ("a",), ABSENT) == {"b": 2}


def test_a_long_value_is_cut_in_the_text_and_nowhere_else():
    decision = decide_changes({"a": "x" * 999}, {"a": "y"}, change_rules("keep"))
    assert len(str(decision)) < 300
    assert decision.config == {"a": "x" * 999}


@pytest.mark.parametrize("seed", range(3))
def test_each_key_that_differs_is_told_once_and_the_outcome_is_made_of_old_and_new(seed):
    for number in range(200):
        print(f"seed {seed}, pair {number}")
        chance = random.Random(f"{seed}-{number}")
        before, after = _config(chance, 3), _config(chance, 3)
        rules = change_rules({"a*": "keep", "b*": "refuse"})
        decision = decide_changes(before, after, rules)
        assert len({change.key for change in decision.changes}) == len(decision.changes)
        left = {path: old for path, old, _ in changed_keys(before, decision.config)}
        assert set(left) == {one.path for one in decision.changes if one.decision is not OnChange.KEEP}
        assert [path for path, *_ in changed_keys(decision.config, decision.applied(after))] == []
        assert decide_changes(before, before, rules).changes == ()


def _config(chance: random.Random, depth: int) -> dict:
    keys = chance.sample(["a", "b", "ab", "c", "d"], chance.randint(0, 4))
    return {
        key: _config(chance, depth - 1) if depth and chance.random() < 0.4 else chance.randint(0, 1) for key in keys
    }


@pytest.mark.parametrize("now", ["adamw", None, {}])
@pytest.mark.parametrize(("word", "decision"), [("refuse", OnChange.REFUSE), ("keep", OnChange.KEEP)])
def test_a_rule_sees_that_the_whole_table_of_its_key_is_replaced(word, decision, now):
    """It was looked for by the name of the table alone, and ``optim.lr`` was overridden in silence."""
    table = {"optim": {"lr": 0.1, "eps": 1}}
    rules = change_rules({"optim.lr": word})
    for before, after in ((table, {"optim": now}), (table, {}), ({"optim": now}, table), ({}, table)):
        found = decide_changes(before, after, rules)
        assert [(change.key, change.decision, change.pattern) for change in found.changes] == [
            ("optim", decision, "optim.lr")
        ]
        assert word == "refuse" or found.config == before


def test_the_strictest_rule_within_a_replaced_table_counts():
    rules = change_rules({"optim.lr": "keep", "optim.eps": "refuse", "*": "override"})
    (change,) = decide_changes({"optim": {"lr": 0.1, "eps": 1}}, {"optim": "sgd"}, rules).changes
    assert (change.decision, change.pattern) == (OnChange.REFUSE, "optim.eps")
