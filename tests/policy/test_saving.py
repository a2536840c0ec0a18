from __future__ import annotations

import math

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.policy import (
    SaveFacts,
    any_of,
    at_most,
    best,
    every,
    for_keeping,
    for_saving,
    latest,
    never,
    newer,
    parse,
)


def at(step: int, since: int | None = None, **facts: object) -> SaveFacts:
    return SaveFacts(step=step, steps_since_save=step if since is None else since, **facts)


def steps_that_save(policy, boundaries: list[int], resumed: int = 0) -> list[int]:
    saved, last = [], resumed
    for step in boundaries:
        if policy.due(at(step, step - last)):
            saved.append(step)
            last = step
    return saved


def test_every_steps_saves_at_multiples():
    assert steps_that_save(every(steps=500), list(range(1, 1601))) == [500, 1000, 1500]


def test_a_multiple_without_a_boundary_saves_at_the_next_boundary():
    assert steps_that_save(every(steps=500), [499, 503, 505, 999, 1001]) == [503, 1001]


def test_every_steps_stays_on_its_grid_after_a_resume_off_the_grid():
    assert steps_that_save(every(steps=500), list(range(734, 1601)), resumed=733) == [1000, 1500]


def test_a_save_for_another_reason_does_not_move_the_grid():
    assert every(steps=500).due(at(500, since=1)) == "every(steps=500)"
    assert every(steps=500).due(at(501, since=1)) is None


def test_a_save_that_failed_is_due_again_at_the_next_boundary():
    assert every(steps=500).due(at(501, since=501))


def test_nothing_is_due_before_the_first_step():
    assert every(steps=1).due(at(0)) is None
    assert every(epochs=1).due(at(0)) is None


@pytest.mark.parametrize(
    ("policy", "seconds"), [(every(seconds=90), 90), (every(minutes=1.5), 90), (every(hours=0.5), 1800)], ids=str
)
def test_every_by_time_is_due_once_the_monotonic_clock_says_so(policy, seconds):
    assert policy.due(at(7, seconds_since_save=seconds - 0.001)) is None
    assert policy.due(at(7, seconds_since_save=seconds)) == str(policy)


def test_every_epochs_saves_at_the_end_of_each_second_epoch():
    policy, saved, last = every(epochs=2), [], 0
    for epoch in range(5):
        for batch in range(3):
            ended = batch == 2
            done = epoch + ended
            if policy.due(at(9, epoch=epoch, epoch_ended=ended, epochs_since_save=done - last)):
                saved.append((epoch, batch))
                last = done
    assert saved == [(1, 2), (3, 2)]


def test_an_epoch_that_ended_without_a_boundary_saves_at_the_next_boundary():
    assert every(epochs=1).due(at(9, epoch=3, epoch_ended=False, epochs_since_save=1))


def test_best_is_due_only_when_its_metric_was_logged_at_this_boundary():
    policy = best("val_loss")
    assert policy.due(at(5)) is None
    assert policy.due(at(5, metrics={"loss": 1.0})) is None
    assert policy.due(at(5, metrics={"val_loss": 1.0})) == 'best("val_loss"): 1'


def test_best_is_due_when_the_value_beats_the_saved_one():
    policy = best("val_loss")
    saved = {"val_loss": [2.5, 2.0]}
    assert policy.due(at(5, metrics={"val_loss": 1.9}, saved=saved)) == 'best("val_loss"): 1.9 after 2'
    assert policy.due(at(5, metrics={"val_loss": 2.0}, saved=saved)) is None


def test_best_max_is_the_other_way_round():
    policy = best("accuracy", mode="max")
    assert policy.due(at(5, metrics={"accuracy": 0.9}, saved={"accuracy": [0.8]}))
    assert policy.due(at(5, metrics={"accuracy": 0.7}, saved={"accuracy": [0.8]})) is None


def test_best_n_is_due_for_a_place_among_the_n_best():
    policy = best("val_loss", 2)
    assert policy.due(at(5, metrics={"val_loss": 2.2}, saved={"val_loss": [2.0]}))
    assert policy.due(at(5, metrics={"val_loss": 2.2}, saved={"val_loss": [2.0, 2.5]}))
    assert policy.due(at(5, metrics={"val_loss": 2.2}, saved={"val_loss": [2.0, 2.1]})) is None


def test_min_delta_asks_for_more_than_a_whisker():
    policy = best("val_loss", min_delta=0.1)
    assert policy.due(at(5, metrics={"val_loss": 1.95}, saved={"val_loss": [2.0]})) is None
    assert policy.due(at(5, metrics={"val_loss": 1.85}, saved={"val_loss": [2.0]}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "low", True, 10**400], ids=repr)
def test_what_is_no_finite_number_is_never_best(value):
    """Hazards 14: with a plain ``<`` a first NaN stays best for ever."""
    for mode in ("min", "max"):
        assert best("m", mode=mode).due(at(5, metrics={"m": value})) is None


def test_a_nan_that_was_saved_does_not_stand_in_the_way():
    """Hazards 14."""
    assert best("m").due(at(5, metrics={"m": 3.0}, saved={"m": [math.nan, math.inf]}))


def test_an_int_is_as_good_as_a_float():
    assert best("m").due(at(5, metrics={"m": 3}, saved={"m": [4]})) == 'best("m"): 3 after 4'


def test_a_combination_gives_every_reason():
    policy = every(steps=5) | best("m")
    assert policy.due(at(5, metrics={"m": 1.0})) == 'every(steps=5); best("m"): 1'
    assert policy.due(at(6, since=1, metrics={"m": 1.0})) == 'best("m"): 1'
    assert policy.due(at(6, since=1)) is None


def test_never_saves_nothing_by_itself_and_keeps_nothing():
    assert never().due(at(10**9, since=10**9, metrics={"m": 1.0})) is None
    assert (never() | every(steps=5)).due(at(5)) == "every(steps=5)"
    assert parse("never()") == never()
    with pytest.raises(InvalidPolicy, match=r"never\(\) says when to save, not what to keep"):
        for_keeping(never())


def test_latest_cannot_say_when_to_save():
    with pytest.raises(InvalidPolicy, match=r"latest\(3\) says what to keep"):
        for_saving(every(steps=5) | latest(3))


@pytest.mark.parametrize("policy", [newer(hours=1), at_most("1GB")], ids=str)
def test_what_only_says_what_to_keep_is_refused_for_saving(policy):
    with pytest.raises(InvalidPolicy, match="what to keep, not when to save"):
        for_saving(every(steps=5) | policy)


def test_for_saving_gives_back_a_policy_that_can_save():
    policy = every(steps=5) | best("m")
    assert for_saving(policy) is policy


def test_only_policies_are_policies():
    with pytest.raises(InvalidPolicy, match="save="):
        for_saving(500)
    with pytest.raises(InvalidPolicy, match="is no policy"):
        any_of(every(steps=5), "latest(3)")
    with pytest.raises(InvalidPolicy, match="at least one"):
        any_of()
    with pytest.raises(TypeError):
        every(steps=5) | 3


def test_only_step_triggers_follow_from_the_step_alone():
    """Hazards 21: all else has to be agreed between ranks."""
    assert every(steps=5).by_step
    assert not (every(steps=5) | every(minutes=1)).by_step
    assert not best("m").by_step
    assert [part.by_step for part in (every(steps=5) | every(minutes=1)).parts] == [True, False]
