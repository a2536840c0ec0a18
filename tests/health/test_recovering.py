"""Whole trainings in miniature: bad data poisons the state, which shows at once or later, and the rules get it out.

No torch: a state is its position in the data and whether it is poisoned. What is tested is that checks, budgets, the
mark good and the choice of what to skip work together.
"""

from __future__ import annotations

import math
import random

import pytest

from holdfast.health import (
    GoodMarks,
    Severity,
    Verdict,
    Watch,
    nonfinite,
    rollback,
    skipped,
    spike,
    suspects,
    when,
)

from .health_support import NAN, seen

TOTAL, SAVE_EVERY, GOOD_AFTER = 300, 10, 20


class Training:
    def __init__(self, bad, *, lag, shows, rules, seed=0):
        self.bad, self.lag, self.shows = bad, lag, shows
        self.watch, self.marks = Watch(rules), GoodMarks(GOOD_AFTER)
        self.noise = random.Random(seed)
        self.step = 0
        self.hurt_at = None
        self.skip = set()
        self.used = {}
        self.saved = {0: None}
        self.good = [0]
        self.rollbacks = 0
        self.stopped = None

    def run(self):
        """Until its end, or until it stops; a training that goes on for ever is found out."""
        for _ in range(100 * TOTAL):
            if self.step == TOTAL or self.stopped:
                return self
            self.one_step()
        pytest.fail("it goes on for ever")

    def one_step(self):
        data = self.next_data()
        self.step += 1
        self.used[self.step] = data
        if data in self.bad and self.hurt_at is None:
            self.hurt_at = self.step
        if self.step % SAVE_EVERY == 0:
            self.saved[self.step] = self.hurt_at
            self.marks.saved(self.step)
        judgement = self.watch.judge(seen(self.step, loss=self.loss()))
        self.good += self.marks.observed(judgement)
        for due in judgement.actions:
            if due.action.verb == "stop":
                self.stopped = due.why
            else:
                self.go_back(judgement)

    def next_data(self):
        data = self.used.get(self.step, -1) + 1
        while data in self.skip:
            data += 1
        return data

    def data_of(self, step):
        return self.used[step] if step <= self.step else self.used[self.step] + step - self.step

    def loss(self):
        if self.hurt_at is not None and self.step >= self.hurt_at + self.lag:
            return self.shows
        return (2.0 + math.exp(-self.step / 30)) * (1 + self.noise.gauss(0, 0.01))

    def go_back(self, judgement):
        target = max(self.good)
        self.stopped = self.watch.landing(str(target))
        if self.stopped:
            return
        stretch = skipped(target, judgement.verdicts, self.watch.landings(str(target)))
        self.skip |= {self.data_of(step) for step in range(stretch.first, stretch.last + 1)}
        self.rollbacks += 1
        self.step, self.hurt_at = target, self.saved[target]
        self.saved = {step: hurt for step, hurt in self.saved.items() if step <= target}
        self.good = [step for step in self.good if step <= target]
        self.watch.forget(target)
        self.marks.forget()
        self.marks.saved(target)


RULES = [when(nonfinite("loss"), rollback(times=20)), when(spike("loss"), rollback(times=20))]


@pytest.mark.parametrize("shows", [NAN, 30.0])
@pytest.mark.parametrize("lag", [0, 1, 3, 12])
def test_a_poisoned_stretch_of_data_is_left_out_and_the_training_ends_well(shows, lag):
    """Where it shows late, the steps that look suspect are not those that did it: the second time all are left out."""
    done = Training(set(range(150, 155)), lag=lag, shows=shows, rules=RULES).run()
    assert done.stopped is None
    assert done.hurt_at is None
    assert done.step == TOTAL
    assert 1 <= done.rollbacks <= 3
    assert done.skip >= done.bad
    assert len(done.skip) < 100


def test_without_rules_the_same_training_is_lost():
    done = Training(set(range(150, 155)), lag=1, shows=NAN, rules=[nonfinite("loss")]).run()
    assert done.hurt_at is not None
    assert max(done.good) <= 150


def test_a_training_that_cannot_be_saved_stops_and_says_so():
    """All data from some place on is bad."""
    done = Training(set(range(150, 10**6)), lag=1, shows=NAN, rules=RULES).run()
    assert "have not helped" in done.stopped or "used up" in done.stopped
    assert done.rollbacks <= 20


def test_no_poisoned_checkpoint_is_ever_good_in_any_of_300_trainings():
    for seed in range(300):
        chance = random.Random(seed)
        first = chance.randint(40, 250)
        bad = {data for data in range(first, first + chance.randint(1, 40)) if chance.random() < 0.5}
        lag = chance.randint(0, GOOD_AFTER - 1)
        done = Training(bad, lag=lag, shows=chance.choice([NAN, 50.0]), rules=RULES, seed=seed).run()
        late = done.hurt_at is not None and done.hurt_at + lag > TOTAL
        assert all(done.saved[step] is None for step in done.good), f"seed {seed}"
        assert done.stopped or done.hurt_at is None or late, f"seed {seed}"


def test_a_slow_machine_makes_no_data_suspect():
    """The steps since which it was slow were left out with those of the spike."""
    slow = Verdict(check="slow_steps()", message="slow", severity=Severity.WARNING, step=140, first=60, last=140)
    high = Verdict(check="spike", message="high", severity=Severity.DOUBT, step=140, first=140, last=140)
    assert skipped(50, suspects(high, [high, slow])) == (140, 141)
    assert skipped(50, suspects(slow, [slow])) == (60, 221)
