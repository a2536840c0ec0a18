from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.catalog.naming.grammar import AtEpoch, AtStep, BestBy, Good, InRun, Last, OfId, OfTag, Word, parse
from holdfast.catalog.naming.metrics import Mode
from holdfast.errors import InvalidName, InvalidReference
from holdfast.ids import RunName, RunNumber, TagName


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("run-003", InRun(RunNumber(3), Last())),
        ("run-003@last", InRun(RunNumber(3), Last())),
        ("run-1234@500", InRun(RunNumber(1234), AtStep(500))),
        ("gpt2-small@500", InRun(RunName("gpt2-small"), AtStep(500))),
        ("gpt2-small@epoch:3", InRun(RunName("gpt2-small"), AtEpoch(3))),
        ("gpt2-small", Word("gpt2-small")),
        ("@last", InRun(None, Last())),
        ("@good", InRun(None, Good())),
        ("@0", InRun(None, AtStep(0))),
        ("@best:val_loss", InRun(None, BestBy("val_loss"))),
        ("@best:acc@5:max", InRun(None, BestBy("acc@5", Mode.MAX))),
        ("r@best:eval/loss:min", InRun(RunName("r"), BestBy("eval/loss"))),
        ("run:deadbeef", InRun(RunName("deadbeef"), Last())),
        ("run:x@500", InRun(RunName("x"), AtStep(500))),
        ("tag:deadbeef", OfTag(TagName("deadbeef"))),
        ("id:deadbeef", OfId("deadbeef")),
        ("deadbeef", Word("deadbeef")),
        ("0123456789abcdef", OfId("0123456789abcdef")),
        ("exp[lr=1]"[:3] + "+lr=1e-4", Word("exp+lr=1e-4")),
    ],
)
def test_each_form_means_one_thing(text, meaning):
    assert parse(text) == meaning
    assert parse(str(meaning)) == meaning


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "1 to 400"),
        ("@", "after the @ comes"),
        ("last", "'@last'"),
        ("good", "'@good'"),
        ("best", "'@best:METRIC'"),
        ("auto", "means something"),
        ("run-0", "start at 1"),
        ("run-003@", "after the @ comes"),
        ("run-003@-5", "after the @ comes"),
        ("run-003@5.0", "after the @ comes"),
        ("run-003@epoch:", "after the @ comes"),
        ("run-003@best", "after the @ comes"),
        ("run-003@best:", "after the @ comes"),
        ("@best:val loss", "best:METRIC"),
        ("@best:loss:least", "best:METRIC"),
        ("@last:3", "after the @ comes"),
        ("tag:x@500", "not a run name"),
        ("id:xyz", "id:HEX"),
        ("id:abc", "id:HEX"),
        ("run:", "run name"),
        ("tag:", "tag name"),
        ("tag:last", "means something"),
        ("branch:x", "tag:NAME"),
        ("../../etc", "not a tag name"),
        ("a b", "not a tag name"),
        ("[/x]", "not a tag name"),
        ("x" * 500, "500"),
    ],
)
def test_anything_else_is_refused_with_a_hint(text, hint):
    """Hazards 48: names that are paths or markup never become names."""
    with pytest.raises(InvalidReference, match=hint.replace("(", r"\(")):
        parse(text)


labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,20}", fullmatch=True)


@given(labels)
def test_reserved_forms_cannot_be_tag_names(label):
    """A word that is a tag is never read as a selector or a run number."""
    try:
        TagName(label)
    except InvalidName:
        return
    assert parse(label) == Word(label)
    assert parse(f"tag:{label}") == OfTag(TagName(label))


selectors = st.one_of(
    st.builds(Last),
    st.builds(Good),
    st.builds(AtStep, st.integers(0, 10**17)),
    st.builds(AtEpoch, st.integers(0, 10**6)),
    st.builds(BestBy, st.from_regex(r"[a-z/@_.-]{1,20}", fullmatch=True), st.sampled_from(Mode)),
)


@given(st.none() | st.integers(1, 10**6).map(RunNumber) | st.sampled_from(["a", "x.y", "7"]).map(RunName), selectors)
def test_a_reference_reads_back_from_its_text(run, selector):
    assert parse(str(InRun(run, selector))) == InRun(run, selector)


@given(st.text(max_size=40))
def test_no_text_at_all_breaks_the_parser(text):
    with contextlib.suppress(InvalidReference):
        assert parse(str(parse(text))) == parse(text)
