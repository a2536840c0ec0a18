"""A number is a number, whoever made it: sweeps and their configurations are full of NumPy's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from holdfast.errors import InvalidPolicy
from holdfast.health import (
    cgroup_memory,
    disk_low,
    gpu_hot,
    gpu_memory,
    host_memory,
    nonfinite,
    notify,
    rollback,
    save_now,
    slow_steps,
    spike,
    watchdog,
)
from holdfast.policy import at, at_most, auto, best, every, latest, newer
from holdfast.policy.tolerance import tolerance_of, tolerate
from holdfast.saver.memory_limits import budget

WHOLE, REAL = np.int64, np.float32


@pytest.mark.parametrize(
    ("numpy", "python"),
    [
        (lambda: every(steps=WHOLE(5)), every(steps=5)),
        (lambda: every(hours=REAL(0.5)), every(hours=0.5)),
        (lambda: at(steps=np.array([5, 7])), at(steps=[5, 7])),
        (lambda: latest(WHOLE(3)), latest(3)),
        (lambda: best("loss", WHOLE(2), min_delta=REAL(0.25)), best("loss", 2, min_delta=0.25)),
        (lambda: newer(hours=REAL(1.5)), newer(hours=1.5)),
        (lambda: at_most(WHOLE(4096)), at_most(4096)),
        (lambda: auto(max_overhead=REAL(0.5)), auto(max_overhead=0.5)),
        (lambda: auto(max_overhead=Fraction(1, 4)), auto(max_overhead=0.25)),
        (lambda: tolerate(failures=WHOLE(4)), tolerate(failures=4)),
        (lambda: tolerate(hours=REAL(2)), tolerate(hours=2.0)),
        (lambda: tolerance_of(WHOLE(4)), tolerance_of(4)),
        (lambda: spike("loss", z=REAL(8), window=WHOLE(50)), spike("loss", z=8.0, window=50)),
        (lambda: nonfinite("loss", in_a_row=WHOLE(2)), nonfinite("loss", in_a_row=2)),
        (lambda: slow_steps(factor=REAL(4), window=WHOLE(50)), slow_steps(factor=4.0, window=50)),
        (lambda: host_memory(below=WHOLE(10**9)), host_memory(below=10**9)),
        (lambda: cgroup_memory(above=REAL(0.5)), cgroup_memory(above=0.5)),
        (lambda: gpu_memory(above=REAL(0.5)), gpu_memory(above=0.5)),
        (lambda: gpu_hot(celsius=REAL(90)), gpu_hot(celsius=90.0)),
        (lambda: disk_low(checkpoints=WHOLE(3)), disk_low(checkpoints=3)),
        (lambda: rollback(scale_lr=REAL(0.5), times=WHOLE(2)), rollback(scale_lr=0.5, times=2)),
        (lambda: save_now(times=WHOLE(2)), save_now(times=2)),
        (lambda: notify(print, times=WHOLE(2)), notify(print, times=2)),
        (lambda: watchdog(hung=WHOLE(600), factor=REAL(8)), watchdog(hung=600, factor=8.0)),
    ],
)
def test_a_rule_of_numpys_numbers_is_the_same_rule_and_the_same_text(numpy, python):
    assert numpy() == python
    assert str(numpy()) == str(python)


def test_memory_for_copies_may_be_a_number_of_numpy():
    assert budget(WHOLE(4096)).bytes == budget(4096).bytes == 4096


@pytest.mark.parametrize("wrong", [True, np.bool_(True), np.float64(2.5), Fraction(10**400), np.array([2]), "2", None])
def test_what_is_no_integer_is_refused_as_before(wrong):
    with pytest.raises(InvalidPolicy, match="integer"):
        latest(wrong)
