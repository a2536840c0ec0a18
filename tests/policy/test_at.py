from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy import SaveFacts, at


@dataclass(frozen=True)
class One:
    step: int
    metrics: dict = field(default_factory=dict)

    @property
    def id(self) -> RecordId:
        return RecordId(f"{self.step:016x}")


def saved(policy, boundaries, resumed=0):
    found, last = [], resumed
    for step in boundaries:
        if policy.due(SaveFacts(step=step, steps_since_save=step - last)):
            found.append(step)
            last = step
    return found


def kept(policy, *steps):
    line = [One(step) for step in sorted(steps, reverse=True)]
    return sorted(int(id_, 16) for id_ in policy.kept(line))


def test_at_saves_at_the_listed_steps_and_nowhere_else():
    assert saved(at(steps=[100, 1000]), range(1, 3000)) == [100, 1000]


def test_a_listed_step_without_a_boundary_saves_at_the_next_boundary():
    assert saved(at(steps=[100]), [98, 102, 103]) == [102]


def test_two_listed_steps_between_two_boundaries_make_one_save():
    assert saved(at(steps=[100, 101]), [98, 102, 103]) == [102]


def test_a_listed_step_that_lies_before_the_resumed_one_is_over():
    assert saved(at(steps=[100, 300]), range(151, 400), resumed=150) == [300]


def test_at_is_a_policy_by_step_so_ranks_need_not_ask_each_other():
    assert at(steps=[1]).by_step


def test_at_keeps_the_first_at_or_after_each_listed_step_and_before_the_next():
    assert kept(at(steps=[100, 1000]), 90, 99, 102, 103, 999, 1000, 1001) == [102, 1000]


def test_the_first_after_a_listed_step_stands_in_for_it_only_up_to_the_next_one():
    assert kept(at(steps=[100, 200]), 50, 230, 240) == [230]


def test_order_and_repetition_of_the_steps_do_not_matter():
    assert at(steps=[3, 1, 3]) == at(steps=(1, 3))
    assert str(at(steps=range(1, 4))) == "at(steps=[1, 2, 3])"


@pytest.mark.parametrize("steps", [[], [0], [-1], [1.5], [True], ["1"], "12", 7], ids=repr)
def test_what_is_no_list_of_steps_is_refused(steps):
    with pytest.raises(InvalidPolicy, match=r"at\(steps=\) wants a list of integers above 0"):
        at(steps=steps)


def test_the_reason_is_the_step_and_not_all_that_are_listed():
    """Each record keeps its reason: a list of thousands stood in each of them."""
    policy = at(steps=range(1, 5001))
    assert policy.due(SaveFacts(step=7, steps_since_save=1)) == "at(steps=[7])"
    assert set(policy.kept([One(9), One(7)]).values()) == {"at(steps=[9])", "at(steps=[7])"}
