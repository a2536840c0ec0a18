from __future__ import annotations

import math

import pytest

from holdfast.catalog import layout
from holdfast.catalog.marks import add_mark, add_metrics
from holdfast.catalog.naming.references import ancestor_line, resolve
from holdfast.catalog.naming.tags import create_tag
from holdfast.errors import AmbiguousReference, Corrupt, Missing, UnknownReference
from holdfast.ids import RunNumber, TagName
from holdfast.records import MarkKind


@pytest.fixture
def rolled_back(train):
    """500, 600 ... 1000 are there, then a rollback to 500 and 600 again."""
    trainer = train("gpt2-small")
    healthy = trainer.save(500, epoch=0)
    poisoned = [trainer.save(step, epoch=1) for step in range(600, 1100, 100)]
    trainer.roll_back(healthy)
    return trainer, healthy, poisoned


def test_a_run_means_its_head(store, train):
    trainer = train("gpt2-small")
    trainer.save(100)
    newest = trainer.save(200)
    for text in ("run-001", "gpt2-small", "@last", "run:gpt2-small", "run-001@last"):
        assert resolve(store, text) == newest


def test_after_a_rollback_the_head_is_what_was_restored_and_not_the_higher_step(store, rolled_back):
    """Hazards 2: by step number the relaunch would return to the poisoned timeline."""
    trainer, healthy, _ = rolled_back
    assert resolve(store, "@last") == healthy
    clean = trainer.save(600)
    assert resolve(store, "@last") == clean


def test_a_step_means_the_one_on_the_line_of_the_head(store, rolled_back):
    """Hazards 2: run@600 has two meanings after a rollback."""
    trainer, _, poisoned = rolled_back
    clean = trainer.save(600)
    assert resolve(store, "run-001@600") == clean
    assert poisoned[0].step == 600


def test_a_step_that_only_an_abandoned_timeline_has_is_an_error_with_its_id(store, rolled_back):
    """Hazards 2: nobody gets a poisoned checkpoint without asking for it by its id."""
    _, _, poisoned = rolled_back
    with pytest.raises(UnknownReference, match=f"abandoned.*{poisoned[2].id}"):
        resolve(store, "gpt2-small@800")
    assert resolve(store, poisoned[2].id) == poisoned[2]
    assert resolve(store, f"id:{poisoned[2].id[:10]}") == poisoned[2]


def test_while_the_newest_start_cannot_be_read_nothing_is_taken_for_the_newest_checkpoint(store, rolled_back, damage):
    """Hazards 2: the head would silently move back to the abandoned timeline."""
    trainer, healthy, poisoned = rolled_back
    add_mark(store, poisoned[0].address, MarkKind.GOOD, by="health")
    damage(store, layout.start(trainer.run.number, trainer.launch, trainer.timeline))
    for text in ("@last", "gpt2-small", "run-001", "@good", "@best:loss"):
        with pytest.raises(Corrupt, match=r"000001\.001"):
            resolve(store, text)
    assert resolve(store, healthy.id) == healthy


def test_a_name_does_not_fall_back_to_an_older_run_when_the_newest_cannot_be_read(store, train, damage):
    """I5: the newest run of a name is meant, and the damaged one may be it."""
    older = train("gpt2-small").save(100)
    newer = train("gpt2-small")
    newer.save(200)
    damage(store, layout.run_info(newer.run.number))
    for text in ("gpt2-small", "gpt2-small@100", "run:gpt2-small"):
        with pytest.raises(AmbiguousReference, match="run-001 or run-002"):
            resolve(store, text)
    assert resolve(store, "run-001") == older
    latest = train("gpt2-small").save(300)
    assert resolve(store, "gpt2-small") == latest


def test_no_run_at_all_means_the_newest_and_not_the_one_before_a_lost_one(store, train):
    train("one").save(100)
    newest = train("two")
    newest.save(100)
    store.storage.delete([layout.run_info(newest.run.number)])
    with pytest.raises(AmbiguousReference, match="run-002"):
        resolve(store, "@last")


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_fork_is_whole_although_the_run_that_it_left_cannot_be_opened(store, train, damage, how):
    origin = train("base").save(100)
    fork = train("fork", forked_from=origin.address)
    fork.roll_back(origin)
    records = [fork.save(step) for step in (200, 300)]
    name = layout.run_info(RunNumber(origin.run))
    damage(store, name) if how == "damaged" else store.storage.delete([name])
    assert resolve(store, "run-002@200") == records[0]
    assert resolve(store, "run-002@100") == origin
    assert list(ancestor_line(fork.run)) == [*reversed(records), origin]
    assert resolve(store, origin.id) == origin


def test_steps_are_numbers_and_not_names(store, train):
    """Users-ask 20: names sorted as text made resume re-run 800,000 steps."""
    trainer = train("r")
    trainer.save(9_000)
    newest = trainer.save(1_000_000)
    assert resolve(store, "r@1000000") == newest == resolve(store, "r")


def test_an_unknown_step_names_the_nearest(store, train):
    trainer = train("r")
    for step in range(100, 1100, 100):
        trainer.save(step)
    with pytest.raises(UnknownReference, match="nearest: 400, 500, 600, 700"):
        resolve(store, "r@555")


def test_an_epoch_means_its_newest(store, rolled_back):
    trainer, healthy, _ = rolled_back
    assert resolve(store, "@epoch:0") == healthy
    with pytest.raises(UnknownReference, match="epoch 1; it has 0 to 0"):
        resolve(store, "@epoch:1")
    trainer.save(550, epoch=1)
    newest = trainer.save(600, epoch=1)
    assert resolve(store, "@epoch:1") == newest


def test_a_name_means_the_newest_run_of_that_name(store, train):
    train("r").save(100)
    newest = train("r").save(50)
    assert resolve(store, "r") == newest


def test_a_new_run_without_checkpoints_says_where_the_older_ones_are(store, train):
    train("r").save(100)
    train("r")
    with pytest.raises(UnknownReference, match=r"run-002 \(r\) has no checkpoint yet; others of this name: run-001"):
        resolve(store, "r")


def test_without_a_run_the_default_or_the_newest_is_meant(store, train):
    first = train("a").save(100)
    second = train("b").save(100)
    assert resolve(store, "@100") == second
    assert resolve(store, "@100", default_run=RunNumber(1)) == first


def test_good_is_the_newest_good_one(store, train):
    trainer = train("r")
    good = trainer.save(100)
    bad = trainer.save(200)
    trainer.save(300)
    with pytest.raises(UnknownReference, match="marked good"):
        resolve(store, "@good")
    for record in (good, bad):
        add_mark(store, record.address, MarkKind.GOOD, by="health")
    assert resolve(store, "@good") == bad
    add_mark(store, bad.address, MarkKind.QUARANTINED, by="health")
    assert resolve(store, "@good") == good


def test_best_ignores_nan_wherever_it_stands(store, train):
    """Hazards 14: with a plain ``<`` a first NaN stays best for ever."""
    trainer = train("r")
    trainer.save(100, metrics={"val_loss": math.nan})
    best = trainer.save(200, metrics={"val_loss": 2.0})
    worst = trainer.save(300, metrics={"val_loss": 3.0})
    trainer.save(400, metrics={"val_loss": -math.inf})
    assert resolve(store, "@best:val_loss") == resolve(store, "@best:val_loss:min") == best
    assert resolve(store, "@best:val_loss:max") == worst


def test_best_is_never_a_quarantined_one(store, train):
    trainer = train("r")
    healthy = trainer.save(100, metrics={"m": 2.0})
    rotten = trainer.save(200, metrics={"m": 1.0})
    add_mark(store, rotten.address, MarkKind.QUARANTINED, by="saver")
    assert resolve(store, "@best:m") == healthy


def test_best_counts_metrics_that_were_measured_later(store, train):
    """Hazards 36: val_loss after the step's save has a home in a mark."""
    trainer = train("r")
    trainer.save(100, metrics={"val_loss": 2.0})
    late = trainer.save(200)
    trainer.save(300, metrics={"val_loss": 3.0})
    add_metrics(store, late.address, {"val_loss": 1.0}, by="user")
    assert resolve(store, "@best:val_loss") == late


def test_best_is_never_on_an_abandoned_timeline(store, train):
    trainer = train("r")
    healthy = trainer.save(100, metrics={"m": 2.0})
    trainer.save(200, metrics={"m": 1.0})
    trainer.roll_back(healthy)
    assert resolve(store, "@best:m") == healthy


def test_an_unknown_metric_names_its_neighbours(store, train):
    train("r").save(100, metrics={"val_loss": 1.0, "bad": math.nan})
    with pytest.raises(UnknownReference, match="did you mean val_loss"):
        resolve(store, "@best:val_los")
    with pytest.raises(UnknownReference, match="finite number"):
        resolve(store, "@best:bad")


def test_a_fork_reaches_the_steps_that_it_came_from(store, train):
    base = train("base")
    first, origin = base.save(100), base.save(200)
    base.save(300)
    tuned = train("tuned", forked_from=origin.address)
    assert resolve(store, "tuned") == origin
    assert resolve(store, "tuned@100") == first
    tuned.parent = origin
    own = tuned.save(300)
    assert resolve(store, "tuned@300") == own
    assert [record.step for record in ancestor_line(tuned.run)] == [300, 200, 100]


def test_best_of_a_fork_is_one_of_its_own(store, train):
    """Another run's loss is another measurement."""
    origin = train("base").save(200, metrics={"m": 0.1})
    tuned = train("tuned", forked_from=origin.address)
    tuned.parent = origin
    own = tuned.save(300, metrics={"m": 5.0})
    assert resolve(store, "tuned@best:m") == own


def test_tags_and_ids_are_references(store, train):
    trainer = train("r")
    record = trainer.save(100)
    trainer.save(200)
    create_tag(store, TagName("Paper-v1"), record.address)
    for text in ("Paper-v1", "tag:Paper-v1", "tag:paper-v1", record.id, f"id:{record.id[:6]}", record.id[:8]):
        assert resolve(store, text) == record


def test_a_name_that_is_a_run_and_a_tag_is_ambiguous_and_says_how_to_write_each(store, train):
    trainer = train("v1")
    record = trainer.save(100)
    newest = trainer.save(200)
    create_tag(store, TagName("v1"), record.address)
    with pytest.raises(AmbiguousReference, match="run:v1, tag:v1"):
        resolve(store, "v1")
    assert resolve(store, "run:v1") == newest
    assert resolve(store, "tag:v1") == record
    assert resolve(store, "v1@200") == newest


def test_a_name_that_begins_an_id_is_ambiguous_too(store, train):
    record = train("other").save(100)
    word = record.id[:7]
    newest = train(word).save(5)
    with pytest.raises(AmbiguousReference, match=f"run:{word}, id:{word}"):
        resolve(store, word)
    assert resolve(store, f"run:{word}") == newest
    assert resolve(store, f"id:{word}") == record


def test_a_prefix_of_two_ids_is_ambiguous_and_lists_them(store, train):
    trainer = train("r")
    ids = [trainer.save(step, id=f"abcdef{step:010d}").id for step in (1, 2)]
    with pytest.raises(AmbiguousReference, match=f"{ids[0]}.*{ids[1]}"):
        resolve(store, "id:abcdef")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gpt2-smal", "did you mean gpt2-small"),
        ("gpt2-smal@100", "did you mean gpt2-small"),
        ("paper", "did you mean paper-v1"),
        ("tag:paper-v2", "did you mean paper-v1"),
        ("paper-v1@100", "is a tag, not a run"),
        ("run-007", "there is: run-001"),
        ("zzz", r"there is: run-001 \(gpt2-small\)"),
        ("100", "did you mean run-100 or @100"),
        ("id:abcdef", "begins with abcdef"),
    ],
)
def test_what_is_not_there_gets_a_near_miss(store, train, text, hint):
    record = train("gpt2-small").save(5)
    create_tag(store, TagName("paper-v1"), record.address)
    with pytest.raises(UnknownReference, match=hint):
        resolve(store, text)


def test_an_empty_store_says_so(store):
    with pytest.raises(UnknownReference, match="no runs yet"):
        resolve(store, "@last")


def test_a_damaged_newest_record_is_an_error_and_not_silently_the_older_one(store, train, damage):
    """Users-ask 9: what was skipped silently started training from the wrong place."""
    trainer = train("r")
    older = trainer.save(100)
    newest = trainer.save(200)
    damage(store, newest.name)
    with pytest.raises(Corrupt, match="seal"):
        resolve(store, "r")
    with pytest.raises(Corrupt, match="seal"):
        resolve(store, "r@200")
    assert resolve(store, "r@100") == older


def test_a_tag_of_a_record_that_is_gone_is_damage(store, train):
    record = train("r").save(100)
    create_tag(store, TagName("v1"), record.address)
    store.storage.delete([record.name])
    with pytest.raises(Missing, match="tag v1"):
        resolve(store, "v1")
