"""Checks, actions, rules and watchdogs read back as they are written, and nothing else is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import health
from holdfast.errors import InvalidPolicy
from holdfast.health import (
    action_of,
    check_of,
    disk_low,
    nonfinite,
    notify,
    own,
    parse,
    rollback,
    shrink_batch,
    spike,
    stop,
    watchdog,
    watchdog_of,
    when,
)
from holdfast.policy import every

counts = st.integers(1, 10**6)
amounts = st.integers(1, 10**6) | st.floats(1e-3, 1e6)
shares = st.floats(0.01, 1.0)
names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters=":"), min_size=1, max_size=20)
metrics = names.filter(lambda name: name not in ("gradients", "parameters"))
cadences = counts.map(lambda n: every(steps=n)) | amounts.map(lambda x: every(minutes=x))
maybe = st.none() | cadences
sizes = st.sampled_from(["4GB", "512MiB"]) | counts
checks = st.one_of(
    st.builds(nonfinite, metrics, in_a_row=counts),
    st.builds(nonfinite, st.sampled_from(["gradients", "parameters"]), every=maybe, in_a_row=counts),
    st.builds(spike, metrics, amounts, window=st.integers(5, 999)),
    st.builds(health.slow_steps, st.floats(1.01, 99), window=st.integers(5, 999), in_a_row=counts),
    st.builds(health.host_memory, below=sizes, every=maybe),
    st.builds(health.cgroup_memory, above=shares, every=maybe),
    st.builds(health.gpu_memory, above=shares, every=maybe),
    st.builds(health.out_of_memory),
    st.builds(disk_low, counts, every=maybe),
    st.builds(health.gpu_errors, every=maybe),
    st.builds(health.gpu_hot, amounts, every=maybe),
    st.builds(health.gpu_throttled, every=maybe),
    st.builds(
        own,
        st.just("json:loads"),
        every=maybe,
        severity=st.sampled_from(["warning", "doubt", "broken"]),
        wants=st.lists(st.sampled_from(list(map(str, health.Fact)))),
    ),
)
actions = st.one_of(
    st.builds(
        rollback,
        st.sampled_from(["good", "last", "500", "best:val_loss", "best:accuracy:max", "epoch:3"]),
        skip_data=st.booleans(),
        scale_lr=st.none() | amounts,
        times=counts,
    ),
    st.builds(shrink_batch, st.just("json:dumps"), times=counts),
    st.builds(health.save_now, times=counts, every=maybe),
    st.builds(health.free_space, times=counts, every=maybe),
    st.builds(notify, st.sampled_from(["https://a.example/b?c=d", "json:dumps"]), times=counts, every=maybe),
    st.builds(stop),
)
watchdogs = st.builds(watchdog, hung=st.none() | amounts, factor=st.floats(1.1, 99), minimum=amounts) | st.builds(
    lambda hung, more: watchdog(hung=hung, then="end", end_after=hung + more), amounts, amounts
)


@given(checks)
def test_a_check_reads_back_from_its_text(check):
    assert check_of(str(check)) == check


@given(actions)
def test_an_action_reads_back_from_its_text(action):
    assert action_of(str(action)) == action


@given(checks, st.lists(actions, max_size=4))
def test_a_rule_reads_back_from_its_text(check, found):
    rule = when(check, *found)
    assert parse(str(rule)) == rule


@given(watchdogs)
def test_a_watchdog_reads_back_from_its_text(dog):
    assert watchdog_of(str(dog)) == dog


@given(checks, actions)
def test_equal_ones_are_equal_and_can_be_counted(check, action):
    assert len({check, check_of(str(check)), action, action_of(str(action))}) == 2


def test_what_is_left_out_is_not_written():
    assert str(rollback(to="good", skip_data=True, scale_lr=None, times=3)) == "rollback()"
    assert str(spike("loss", z=6.0, window=100)) == 'spike("loss")'
    assert str(nonfinite("parameters", every=every(steps=10))) == 'nonfinite("parameters", every=every(steps=10))'


def test_a_check_alone_is_a_rule_that_only_notes():
    assert parse(" nonfinite('loss') ") == when(nonfinite("loss"))


def test_a_function_is_written_as_its_path():
    assert str(own(json.loads)) == 'own("json:loads")'
    assert str(when(json.loads, notify(json.dumps))) == 'when(own("json:loads"), notify("json:dumps"))'
    assert own("json:loads") == own(json.loads)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonfinite",
        "nonfinite()",
        "nonfinite('loss', 'gradients', 'parameters')",
        "nonfinite(what='loss', size=3)",
        "when()",
        "when(stop())",
        "when(nonfinite('loss'), nonfinite('loss'))",
        "when(nonfinite('loss')) | when(disk_low())",
        "stop()",
        "watchdog()",
        "every(steps=5)",
        "spike(__import__('os').getpid())",
        "spike(*['loss'])",
        "spike(**{'metric': 'loss'})",
        "own('os:environ')",
        "own('no_such_module_here:f')",
        "own('json:no_such_function')",
        "own('json.loads')",
        "own('json:loads:x')",
        "own('../json:loads')",
        "(lambda: 1)()",
        "nonfinite('loss').look",
        "when(nonfinite('loss'), rollback(to='best'))",
        "when(nonfinite('loss'), rollback(to=''))",
        "when(nonfinite('loss'), rollback(to=5))",
        "when(nonfinite('loss'), rollback(times=0))",
        "when(nonfinite('loss'), rollback(skip_data='yes'))",
        "when(nonfinite('loss'), rollback(scale_lr=-1))",
        "when(nonfinite('loss'), notify('http://a.example/b'))",
        "when(nonfinite('loss'), notify('https://'))",
        "when(nonfinite('loss'), notify('https://a.example/b c'))",
        "when(nonfinite('loss'), notify('ftp://a.example'))",
        "when(nonfinite('loss'), shrink_batch(3))",
        "when(" * 500,
        "nonfinite('loss'" + " " * 20_000 + ")",
        "\0",
    ],
    ids=lambda text: text[:40],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidPolicy):
        parse(text)


@pytest.mark.parametrize(
    ("read", "text"), [(check_of, "stop()"), (action_of, "disk_low()"), (watchdog_of, "disk_low()")]
)
def test_one_sort_is_not_read_as_another(read, text):
    with pytest.raises(InvalidPolicy, match="is no"):
        read(text)


def test_the_secret_of_a_webhook_is_in_no_message():
    with pytest.raises(InvalidPolicy) as refused:
        notify("http://hooks.example.com/secret")
    assert "secret" not in str(refused.value)
    rule = when(nonfinite("loss"), notify("https://hooks.example.com/secret"))
    assert "secret" in str(rule)
    assert "secret" not in rule.shown
    assert "hooks.example.com" in rule.shown


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: when("loss"), r"when\(\) wants a check"),
        (lambda: when(dict), r"when\(\) wants a check"),
        (lambda: own(3), r"own\(\) wants a function"),
        (lambda: own(json.loads, severity="bad"), "severity"),
        (lambda: own(json.loads, wants=["everything"]), "knows gradients"),
        (lambda: notify(None), r"notify\(to\)"),
        (lambda: shrink_batch(None), r"shrink_batch\(callback\)"),
        (lambda: health.save_now(times=0), r"save_now\(times=\)"),
        (lambda: health.free_space(every=5), r"free_space\(every=\)"),
        (lambda: health.rules_of([stop()]), "health= wants rules"),
        (lambda: health.rules_of(["nonfinite('loss')"]), r"health= wants rules .*health\.parse\(.* reads one"),
        (lambda: health.rules_of("nonfinite('loss')"), r"not \"nonfinite\('loss'\)\"; holdfast\.health\.parse\("),
        (lambda: health.rules_of(True), "health= wants rules .*, not True"),
        (lambda: health.rules_of(nonfinite), "health= wants rules .*, not <function nonfinite"),
    ],
)
def test_nonsense_is_refused_naming_the_argument(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()
