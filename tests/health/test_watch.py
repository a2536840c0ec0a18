"""What is done about verdicts: what, how often, in which order, and when no more."""

from __future__ import annotations

import json
import random

import pytest

from holdfast.errors import InvalidInput
from holdfast.health import (
    DEFAULTS,
    SAME_TARGET,
    Disk,
    Fact,
    Gpu,
    HostMemory,
    Machine,
    Observation,
    Severity,
    Verdict,
    Watch,
    Weight,
    cgroup_memory,
    disk_low,
    free_space,
    gpu_hot,
    host_memory,
    nonfinite,
    notify,
    of_lacking_memory,
    of_machine,
    out_of_memory,
    own,
    rollback,
    rules_of,
    save_now,
    shrink_batch,
    skipped,
    spike,
    stop,
    verdict_of,
    when,
)
from holdfast.policy import every

from .health_support import NAN, losses, probed, seen


def tell(verdict):
    return None


def smaller(verdict):
    return None


def verbs(judgement):
    return [due.action.verb for due in judgement.actions]


def bad(step, seconds=None):
    return seen(step, seconds, loss=NAN)


HOT = Machine(gpus=(Gpu(device=0, celsius=99.0),))
FULL = Machine(disk=Disk(free_bytes=0))


def test_an_action_is_taken_until_its_budget_is_used_up_and_then_the_run_stops():
    watch = Watch([when(nonfinite("loss"), rollback(times=2))])
    judged = [watch.judge(bad(step)) for step in range(1, 5)]
    assert [verbs(one) for one in judged] == [["rollback"], ["rollback"], ["stop"], ["stop"]]
    assert judged[2].actions[0].why == "rollback(times=2) has been done 2 times and is used up"
    assert [event.kind for event in judged[2].events] == ["verdict", "used-up"]
    assert judged[3].events[0].message.endswith("and is used up")


def test_remedies_are_a_ladder():
    watch = Watch([when(disk_low(every=every(steps=1)), free_space(times=2, every=every(steps=1)), stop())])
    assert [verbs(watch.judge(seen(n, machine=FULL))) for n in range(4)] == [
        ["free_space"],
        ["free_space"],
        ["stop"],
        ["stop"],
    ]


def test_a_remedy_is_waited_for_before_the_next_one_is_tried():
    """Deleting takes a while; that the disk is still full in the next second means nothing."""
    watch = Watch([when(disk_low(every=every(seconds=1)), free_space(times=2), stop())])
    judged = {seconds: verbs(watch.judge(seen(seconds, machine=FULL))) for seconds in range(0, 200, 10)}
    assert {seconds: found for seconds, found in judged.items() if found} == {
        0: ["free_space"],
        60: ["free_space"],
        **{seconds: ["stop"] for seconds in range(70, 200, 10)},
    }


def test_a_last_remedy_that_only_frees_space_ends_nothing():
    watch = Watch([when(disk_low(every=every(steps=1)), free_space(times=1, every=every(steps=1)))])
    assert [verbs(watch.judge(seen(n, machine=FULL))) for n in range(3)] == [["free_space"], [], []]


def test_telling_and_saving_are_done_beside_the_remedy_and_in_order():
    watch = Watch([when(gpu_hot(), stop(), save_now(), notify(tell))])
    assert verbs(watch.judge(seen(1, machine=HOT))) == ["notify", "save_now", "stop"]


def test_somebody_is_told_at_most_once_in_a_while():
    watch = Watch([when(nonfinite("loss"), notify(tell, times=3, every=every(minutes=10)))])
    told = [seconds for seconds in range(0, 7200, 60) if verbs(watch.judge(bad(seconds // 60 + 1, float(seconds))))]
    assert told == [0, 600, 1200]


@pytest.mark.parametrize("action", [notify(tell), free_space(every=every(minutes=10))], ids=str)
def test_a_rollback_does_not_make_the_clock_of_an_action_begin_again(action):
    watch = Watch([when(nonfinite("loss"), rollback(times=9), action), when(disk_low(), action)])
    done = {}
    for step, seconds in ((110, 0.0), (108, 8.0), (107, 16.0), (109, 600.0)):
        judged = watch.judge(seen(step, seconds, loss=NAN, machine=FULL))
        done[seconds] = verbs(judged).count(action.verb)
        watch.forget(100)
    assert [seconds for seconds, times in done.items() if times] == [0.0, 600.0]


def test_a_rollback_makes_the_steps_of_an_action_begin_again():
    watch = Watch([when(nonfinite("loss"), rollback(times=9), notify(tell, every=every(steps=50)))])
    assert [verbs(watch.judge(bad(step))) for step in (110, 111, 101)] == [
        ["notify", "rollback"],
        ["rollback"],
        ["notify", "rollback"],
    ]


def test_of_several_verdicts_the_most_drastic_action_wins_once():
    watch = Watch(
        [
            when(spike("loss"), shrink_batch(smaller), notify(tell)),
            when(nonfinite("loss"), rollback(times=5), notify(tell)),
            when(nonfinite("grad_norm"), rollback(to="last")),
        ]
    )
    judgement = watch.judge(seen(9, loss=NAN, grad_norm=NAN))
    assert verbs(judgement) == ["notify", "notify", "rollback"]
    assert str(judgement.actions[-1].action) == "rollback(times=5)"
    spent = watch.spent["actions"]
    assert spent['nonfinite("loss"): rollback'] == 1
    assert 'spike("loss"): shrink_batch' not in spent
    assert 'nonfinite("grad_norm"): rollback' not in spent


def test_a_stop_beats_a_rollback_and_nothing_is_freed_for_it():
    rules = [when(nonfinite("loss"), rollback()), when(gpu_hot(), stop()), when(disk_low(), free_space())]
    judgement = Watch(rules).judge(
        seen(9, machine=Machine(gpus=HOT.gpus, disk=FULL.disk), loss=NAN),
    )
    assert verbs(judgement) == ["stop"]


def test_a_broken_state_is_not_saved():
    watch = Watch([when(nonfinite("loss")), when(gpu_hot(), save_now())])
    assert verbs(watch.judge(seen(9, machine=HOT, loss=NAN))) == []
    assert watch.spent["actions"] == {}
    assert verbs(watch.judge(seen(10, 100.0, machine=HOT, loss=1.0))) == ["save_now"]


def test_what_is_about_to_be_rolled_back_is_not_saved():
    rules = [when(spike("loss"), rollback()), when(gpu_hot(every=every(steps=1)), save_now())]
    watch = Watch(rules)
    for observation in losses([2.0, 2.1] * 20):
        watch.judge(observation)
    assert verbs(watch.judge(seen(41, machine=HOT, loss=50.0))) == ["rollback"]


def test_the_default_rules_note_and_change_nothing():
    watch = Watch()
    assert watch.rules == DEFAULTS
    judgement = watch.judge(seen(1, loss=NAN, machine=FULL, probes=[probed(1, bad=["w"])]))
    assert len(judgement.verdicts) == 3
    assert judgement.severity is Severity.BROKEN
    assert verbs(judgement) == []
    assert [event.message.rpartition(": ")[2] for event in judgement.events] == ["noted"] * 3


def test_whoever_gives_rules_keeps_the_guards_against_nan():
    """Else a rule about the disk would let a checkpoint with a NaN become good."""
    checks = [rule.check for rule in rules_of([when(disk_low(), stop())])]
    assert checks == [disk_low(), nonfinite("loss"), nonfinite("parameters")]
    assert rules_of([]) == rules_of("off") == ()


@pytest.mark.parametrize("one", [when(disk_low(), stop()), disk_low()], ids=["rule", "check"])
def test_one_rule_alone_is_a_list_of_one(one):
    assert rules_of(one) == rules_of([one])


def test_two_rules_with_one_check_are_one():
    (first, *_) = rules_of([when(nonfinite("loss"), notify(tell)), when(nonfinite("loss"), stop(), notify(tell))])
    assert first == when(nonfinite("loss"), notify(tell), stop())


def test_a_check_alone_will_do():
    assert verbs(Watch([spike("loss")]).judge(seen(3, loss=NAN))) == []


def test_budgets_outlive_the_process():
    rules = [when(nonfinite("loss"), rollback(times=2))]
    spent = None
    done = []
    for launch in range(4):
        watch = Watch(rules, spent=json.loads(json.dumps(spent)))
        done.append(verbs(watch.judge(bad(100 * launch + 1))))
        spent = watch.spent
    assert done == [["rollback"], ["rollback"], ["stop"], ["stop"]]


def test_a_budget_that_was_raised_goes_on_from_what_is_spent():
    watch = Watch([when(nonfinite("loss"), rollback(times=1))])
    watch.judge(bad(1))
    raised = Watch([when(nonfinite("loss"), rollback(times=2, scale_lr=0.5))], spent=watch.spent)
    assert [verbs(raised.judge(bad(step))) for step in (2, 3)] == [["rollback"], ["stop"]]


@pytest.mark.parametrize("spent", [{}, {"actions": 3}, {"actions": {"x": "y", "z": True}, "targets": None}, {"a": 1}])
def test_spent_budgets_that_cannot_be_read_count_as_nothing(spent):
    assert verbs(Watch([when(nonfinite("loss"), rollback(times=1))], spent=spent).judge(bad(1))) == ["rollback"]


def test_counts_of_rules_that_are_gone_are_kept():
    watch = Watch([when(nonfinite("loss"), stop())], spent={"actions": {"old: rollback": 2}, "targets": {"a": 1}})
    assert watch.spent == {"actions": {"old: rollback": 2}, "targets": {"a": 1}}


def test_one_checkpoint_is_gone_back_to_three_times_and_no_more():
    watch = Watch([when(nonfinite("loss"), rollback(times=100))])
    assert [watch.landing("abc") for _ in range(SAME_TARGET)] == [None] * SAME_TARGET
    assert "3 rollbacks to abc have not helped" in watch.landing("abc")
    assert watch.landing("def") is None
    again = Watch([when(nonfinite("loss"), rollback(times=100))], spent=watch.spent)
    assert again.landing("abc") is not None
    assert (again.landings("def"), again.landings("nothing")) == (1, 0)


def test_forgetting_voids_what_was_seen_and_keeps_what_is_spent():
    watch = Watch([when(nonfinite("loss", in_a_row=2), rollback(times=2))])
    judged = [verbs(watch.judge(bad(step))) for step in (11, 12)]
    watch.forget(10)
    judged += [verbs(watch.judge(bad(step))) for step in (11, 12)]
    watch.forget(10)
    judged += [verbs(watch.judge(bad(step))) for step in (11, 12)]
    assert judged == [[], ["rollback"], [], ["rollback"], [], ["stop"]]


def test_a_verdict_that_goes_on_is_noted_when_it_begins_and_when_it_ends():
    watch = Watch([when(nonfinite("loss"))])
    events = [event for one in losses([1.0, NAN, NAN, NAN, 1.0, 1.0]) for event in watch.judge(one).events]
    assert [event.kind for event in events] == ["verdict", "passed"]
    assert events[1].message == 'nonfinite("loss") passes again at step 5, after it judged at step 2'
    json.dumps([dict(event.data) for event in events], allow_nan=False)


def test_the_journal_does_not_learn_the_secret_of_a_webhook():
    watch = Watch([when(nonfinite("loss"), notify("https://hooks.example.com/secret", times=1), stop())])
    events = [event for step in (1, 2) for event in watch.judge(bad(step, step * 1e6)).events]
    assert len(events) == 3
    assert "hooks.example.com" in events[0].message
    assert "secret" not in repr(events)


def test_a_function_of_the_users_is_a_check():
    def worse(observation):
        return "worse than guessing" if observation.metrics.get("accuracy", 1.0) < 0.1 else None

    watch = Watch([when(worse, stop())])
    assert verbs(watch.judge(seen(1, accuracy=0.5))) == []
    judgement = watch.judge(seen(2, accuracy=0.05))
    assert verbs(judgement) == ["stop"]
    assert judgement.verdicts[0].message == "worse than guessing"
    assert "worse" in judgement.verdicts[0].check


def test_a_check_that_raises_does_not_end_the_training_and_is_not_asked_again():
    asked = []

    def wrong(observation):
        asked.append(observation.step)
        raise KeyError("loss")

    watch = Watch([when(wrong, stop()), when(nonfinite("loss"), stop())])
    judged = [watch.judge(seen(step, loss=1.0)) for step in (1, 2, 3)]
    assert asked == [1]
    assert [len(one.events) for one in judged] == [1, 0, 0]
    assert "raised KeyError: 'loss'" in judged[0].events[0].message
    assert verbs(watch.judge(bad(4))) == ["stop"]


@pytest.mark.parametrize("answer", [True, 0, ["loss"], 1.5])
def test_an_answer_that_is_no_text_is_a_failure_of_the_check(answer):
    judgement = Watch([when(lambda observation: answer, stop())]).judge(seen(1))
    assert verbs(judgement) == []
    assert judgement.events[0].kind == "check-failed"


def test_two_functions_without_a_name_are_told_apart():
    rules = [when(lambda one: "a" if one.step == 1 else None), when(lambda one: "b" if one.step == 2 else None, stop())]
    watch = Watch(rules)
    judged = [watch.judge(seen(step)) for step in (1, 2)]
    assert [verbs(one) for one in judged] == [[], ["stop"]]
    assert len({one.verdicts[0].check for one in judged}) == 2


def test_an_expensive_check_is_asked_as_often_as_it_says():
    asked = []
    watch = Watch([own(lambda one: asked.append(one.step), every=every(steps=10))])
    for step in range(3, 45):
        watch.judge(seen(step))
    assert asked == [3, 10, 20, 30, 40]


def test_only_what_is_due_is_wanted():
    watch = Watch([nonfinite("parameters", every=every(steps=10)), cgroup_memory(every=every(seconds=60))])
    wanted = {}
    for step in range(31):
        wanted[step] = watch.wants(step, step * 10.0)
        watch.judge(seen(step, step * 10.0, loss=1.0))
    assert wanted[0] == {Fact.PARAMETERS, Fact.CGROUP}
    assert {step for step, facts in wanted.items() if Fact.PARAMETERS in facts} == {0, 10, 20, 30}
    assert {step for step, facts in wanted.items() if Fact.CGROUP in facts} == {0, 6, 12, 18, 24, 30}


def test_after_a_rollback_and_after_a_clock_that_went_back_everything_is_due():
    watch = Watch([cgroup_memory(every=every(seconds=60)), nonfinite("parameters")])
    watch.judge(seen(5, 1000.0))
    assert watch.wants(6, 1001.0) == frozenset()
    assert watch.wants(6, 5.0) == {Fact.CGROUP, Fact.PARAMETERS}
    watch.forget(3)
    assert watch.wants(4, 1001.0) == {Fact.CGROUP, Fact.PARAMETERS}


def test_after_a_rollback_the_machine_is_looked_at_again_and_a_verdict_is_news_again():
    watch = Watch([cgroup_memory(every=every(seconds=60)), nonfinite("loss")])
    assert [len(watch.judge(bad(step, 1000.0 + step)).events) for step in (5, 20)] == [1, 0]
    watch.forget(10)
    assert Fact.CGROUP in watch.wants(11, 1021.0)
    assert len(watch.judge(bad(11, 1021.0)).events) == 1


def test_what_is_done_is_done_about_the_first_of_several_ranks():
    watch = Watch([when(nonfinite("loss"), notify(tell))])
    own_one = watch.look(bad(3))
    others = [verdict_of(own_one.verdicts[0].data() | {"rank": rank}) for rank in (2, 1)]
    for judged in (watch.decide(own_one, 0.0, others), Watch(watch.rules).decide(own_one, 0.0, others[::-1])):
        assert [due.verdict.rank for due in judged.actions] == [0]
        assert judged.events[0].data["ranks"] == [0, 1, 2]


def test_a_disk_that_was_read_in_the_background_is_judged_although_it_is_not_due_any_more():
    watch = Watch([when(disk_low(), stop())])
    assert verbs(watch.judge(seen(1, 1.0))) == []
    assert watch.wants(2, 1.5) == frozenset()
    assert verbs(watch.judge(seen(2, 1.5, machine=FULL))) == ["stop"]


def test_a_function_that_wants_facts_is_called_when_they_are_known():
    asked = []
    watch = Watch([own(lambda one: asked.append(one.step), every=every(steps=10), wants=["disk", "host"])])
    wanted = []
    for step in range(1, 25):
        wanted += [step] if Fact.DISK in watch.wants(step, float(step)) else []
        watch.judge(seen(step, machine=FULL if step in (3, 12, 13) else None))
    assert wanted == [1, 10, 20]
    assert asked == [3, 12, 13]


def test_a_sample_that_becomes_known_between_two_is_judged_at_once():
    watch = Watch([when(nonfinite("parameters", every=every(steps=50)), stop())])
    assert verbs(watch.judge(seen(50))) == []
    assert verbs(watch.judge(seen(53, probes=[probed(50, bad=["w"])]))) == ["stop"]


def test_ranks_that_bring_their_verdicts_together_decide_the_same():
    rules = [when(nonfinite("gradients"), rollback(times=2)), when(nonfinite("loss"), stop())]
    ranks = [Watch(rules) for _ in range(4)]
    for step in range(1, 5):
        looked = []
        for rank, watch in enumerate(ranks):
            hurt = ["w"] if rank == 2 and step != 1 else []
            looked.append(watch.look(seen(step, rank=rank, probes=[probed(step, "gradients", bad=hurt)])))
        said = [json.dumps([verdict.data() for verdict in one.verdicts]) for one in looked]
        judged = []
        for rank, watch in enumerate(ranks):
            others = [verdict_of(data) for n, text in enumerate(said) if n != rank for data in json.loads(text)]
            judged.append(watch.decide(looked[rank], 7.0 * step, others))
        assert len({(one.actions, one.verdicts) for one in judged}) == 1
        assert len({json.dumps(watch.spent) for watch in ranks}) == 1
        assert verbs(judged[0]) == [[], ["rollback"], ["rollback"], ["stop"]][step - 1]
        assert step == 1 or judged[0].verdicts[0].rank == 2


def test_a_verdict_of_a_rank_with_other_rules_is_told_and_nothing_is_done():
    watch = Watch([when(nonfinite("loss"), stop())])
    strange = Verdict(check="other", message="m", severity=Severity.DOUBT, step=3, first=3, last=3, rank=1)
    judgement = watch.decide(watch.look(seen(3)), 0.0, [strange])
    assert judgement.verdicts == (strange,)
    assert verbs(judgement) == []


@pytest.mark.parametrize("data", [{}, {"check": "c"}, {"severity": "awful"}, {"severity": 3, "x": 1}])
def test_what_is_no_verdict_is_refused(data):
    with pytest.raises(InvalidInput, match="not a verdict"):
        verdict_of(data)


def test_out_of_memory_shrinks_the_batch_and_ends_the_run_when_that_does_not_help():
    watch = Watch([when(out_of_memory(), shrink_batch(smaller, times=2))])
    judged = [verbs(watch.judge(seen(step, oom="tried to allocate 2 GiB"))) for step in (1, 2, 3)]
    assert judged == [["shrink_batch"], ["shrink_batch"], ["stop"]]


def test_the_first_time_suspect_data_is_left_out_and_then_more_and_more():
    def verdict(first, last):
        return Verdict(check="c", message="m", severity=Severity.DOUBT, step=last, first=first, last=last)

    assert skipped(100, [verdict(108, 109), verdict(105, 107)]) == (105, 109 + 5)
    assert skipped(100, [verdict(108, 109)], landings=2) == (101, 109 + 9)
    assert skipped(100, [verdict(108, 109)], landings=3) == (101, 109 + 18)
    assert skipped(100, [verdict(90, 109)]) == (101, 109 + 9)
    assert skipped(100, [verdict(90, 100)]) is None
    assert skipped(100, []) is None


CHECKS = [
    nonfinite("loss"),
    spike("loss", window=10),
    host_memory(every=every(steps=2)),
    disk_low(every=every(seconds=3)),
    out_of_memory(),
]


def _rules(chance):
    def action():
        times = chance.randint(1, 4)
        return chance.choice(
            [
                rollback(times=times, to=chance.choice(["good", "last"])),
                shrink_batch(smaller, times=times),
                save_now(times=times, every=every(steps=chance.randint(1, 5))),
                free_space(times=times, every=every(seconds=chance.randint(1, 5))),
                notify(tell, times=times, every=every(steps=chance.randint(1, 5))),
                stop(),
            ]
        )

    return [when(check, *(action() for _ in range(chance.randint(0, 3)))) for check in chance.sample(CHECKS, 3)]


def _observation(chance, step, seconds):
    loss = chance.choice([NAN, float("inf"), 50.0, -3.0, 2.0, 2.1, 2.0, 2.1, 1.9, None])
    machine = chance.choice([Machine(), FULL, Machine(host=HostMemory(available=chance.choice([1, 1 << 40])))])
    return seen(step, seconds, machine=machine, oom=chance.choice([None, None, None, "no memory"]), loss=loss)


def _lived(seed):
    """One history with clock jumps, rollbacks and restarts; how often each action was done, and the rules."""
    chance = random.Random(seed)
    rules = _rules(chance)
    watch, step, seconds = Watch(rules), 0, 0.0
    done = {}
    for _ in range(chance.randint(1, 25)):
        step, seconds = step + 1, seconds + chance.choice([0.0, 1.0, 5.0, -2.0])
        judgement = watch.judge(_observation(chance, step, seconds))
        drastic = [due for due in judgement.actions if due.action.weight >= Weight.SHRINK_BATCH]
        assert len(drastic) <= 1, f"seed {seed}"
        for due in judgement.actions:
            key = (due.rule, due.number)
            done[key] = done.get(key, 0) + 1
        if drastic and drastic[0].action.verb == "rollback" and watch.landing(f"r{chance.randint(0, 1)}") is None:
            step = max(0, step - chance.randint(1, 10))
            watch.forget(step)
        if chance.random() < 0.05:
            watch = Watch(rules, spent=json.loads(json.dumps(watch.spent)))
    return watch, done


@pytest.mark.parametrize("histories", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_no_budget_is_ever_exceeded_in_thousands_of_histories(histories):
    rolled = 0
    for seed in range(histories):
        watch, done = _lived(seed)
        for (place, number), count in done.items():
            if number is not None:
                budget = watch.rules[place].actions[number].budget
                assert budget is None or count <= budget, f"seed {seed}"
                rolled += watch.rules[place].actions[number].verb == "rollback"
    assert rolled > histories / 10


@pytest.mark.parametrize("launches", [1, 50])
def test_an_endless_rollback_is_impossible(launches):
    """A poisoned state under every rule that could roll it back, restarted again and again: it ends in a stop."""
    rules = [
        when(nonfinite("loss"), rollback(times=1000)),
        when(spike("loss"), rollback(to="last", times=1000)),
        when(own(lambda one: "bad"), rollback(times=1000)),
    ]
    spent, rollbacks = None, 0
    for _ in range(launches):
        watch = Watch(rules, spent=spent)
        for step in range(501, 600):
            (due,) = watch.judge(bad(step)).actions
            if due.action.verb == "stop" or watch.landing("the only good one") is not None:
                break
            rollbacks += 1
            watch.forget(500)
        else:
            pytest.fail("it never stopped")
        spent = watch.spent
    assert rollbacks == SAME_TARGET


def test_a_pace_in_steps_does_not_begin_again_with_a_rollback():
    """Each rollback was followed by one more message at once, and the budget went that way."""
    watch = Watch([when(nonfinite("loss"), notify(print, every=every(steps=100)), rollback(to="last", times=1000))])
    told = []
    for step, seconds in [(150, 1.0), (120, 2.0), (160, 3.0), (205, 4.0)]:
        judgement = watch.judge(bad(step, seconds))
        told += [step for due in judgement.actions if due.action.verb == "notify"]
        watch.forget(step - 50)
    assert told == [150, 205]


def test_before_the_first_step_only_the_machine_is_looked_at():
    """A check of metrics that are always logged failed there, and was never asked again."""
    too_high = own(lambda observation: "too high" if observation.metrics["loss"] > 10 else None)
    watch = Watch([too_high, nonfinite("parameters", every=every(minutes=30)), cgroup_memory()])
    assert watch.look(seen(0, 1.0), of_machine).events == ()
    assert Fact.PARAMETERS in watch.wants(1, 2.0)
    assert Fact.CGROUP not in watch.wants(1, 2.0)
    assert [verdict.message for verdict in watch.look(seen(1, 2.0, loss=11.0)).verdicts] == ["too high"]


def test_in_a_step_without_memory_only_rules_about_that_are_asked():
    too_high = own(lambda observation: "too high" if observation.metrics["loss"] > 10 else None)
    watch = Watch([too_high, when(out_of_memory(), shrink_batch(print))])
    without = Observation(step=5, seconds=1.0, out_of_memory="no memory")
    looked = watch.look(without, of_lacking_memory)
    assert [verdict.message for verdict in looked.verdicts] == ["no memory"]
    assert looked.events == ()
