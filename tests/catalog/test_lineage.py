"""Head and ancestors, from records and starts alone."""

from __future__ import annotations

from holdfast.catalog.lineage import Lineage
from holdfast.records import Target


def steps(lineage: Lineage) -> list[tuple[int, int, int]]:
    return [(target.launch, target.timeline, target.step) for target in lineage.line()]


def test_a_run_without_records_has_no_head(train):
    assert train().run.lineage().head is None


def test_the_head_is_the_newest_record_and_its_ancestors_follow_parents(train):
    trainer = train()
    for step in (100, 200, 300):
        trainer.save(step)
    assert steps(trainer.run.lineage()) == [(1, 0, 300), (1, 0, 200), (1, 0, 100)]


def test_after_a_rollback_the_head_is_what_was_rolled_back_to_not_the_poisoned_step(train):
    """Hazards 2: by step number the poisoned 1000 would win."""
    trainer = train()
    healthy = trainer.save(500)
    for step in (600, 700, 1000):
        trainer.save(step)
    trainer.roll_back(healthy)
    assert trainer.run.lineage().head == Target.of(healthy.address)
    trainer.save(600)
    assert steps(trainer.run.lineage()) == [(1, 1, 600), (1, 0, 500)]


def test_the_same_step_on_two_timelines_is_two_records(train):
    """Hazards 1: with an id made of launch and step alone, the second 600 would be taken for the first."""
    trainer = train()
    healthy, poisoned = trainer.save(500), trainer.save(600)
    trainer.roll_back(healthy)
    clean = trainer.save(600)
    assert clean.id != poisoned.id
    assert {record.id for record in trainer.run.records()} == {healthy.id, poisoned.id, clean.id}


def test_a_relaunch_that_has_not_saved_yet_stands_where_it_resumed_from(train):
    trainer = train()
    first, _ = trainer.save(100), trainer.save(200)
    trainer.roll_back(first, relaunch=True)
    assert trainer.run.lineage().head == Target.of(first.address)


def test_a_fresh_start_has_no_ancestors(train):
    trainer = train()
    trainer.save(100)
    trainer.roll_back(None, relaunch=True)
    assert trainer.run.lineage().head is None
    trainer.save(10)
    assert steps(trainer.run.lineage()) == [(2, 0, 10)]


def test_the_line_goes_on_where_retention_has_cut_out_records(train):
    trainer = train()
    records = {step: trainer.save(step) for step in (100, 200, 300, 400, 500)}
    trainer.run.store.storage.delete([records[400].name, records[300].name])
    assert [step for _, _, step in steps(trainer.run.lineage())] == [500, 200, 100]


def test_the_line_goes_on_across_a_rollback_when_the_whole_timeline_is_gone(train):
    trainer = train()
    base = trainer.save(100)
    trainer.roll_back(base)
    cut = trainer.save(200)
    trainer.save(300)
    trainer.run.store.storage.delete([cut.name])
    assert steps(trainer.run.lineage()) == [(1, 1, 300), (1, 0, 100)]


def test_a_fork_stands_at_its_origin_until_it_saves_and_its_line_ends_there(train):
    trainer = train("base")
    trainer.save(100)
    origin = trainer.save(200)
    fork = train("fork", forked_from=origin.address)
    assert fork.run.lineage().line() == [Target.of(origin.address)]
    fork.roll_back(origin)
    fork.save(300)
    assert steps(fork.run.lineage()) == [(1, 1, 300), (1, 0, 200)]
    assert fork.run.lineage().line()[-1].run == trainer.run.number


def test_parents_in_a_circle_end_the_line(train):
    trainer = train()
    first = trainer.save(100)
    trainer.save(200)
    looped = [
        trainer.run.records()[1],
        type(first)(
            **{
                **{name: getattr(first, name) for name in first.__struct_fields__},
                "parent": Target.of(trainer.run.records()[1].address),
            }
        ),
    ]
    assert [target.step for target in Lineage.of(looped, []).line()] == [200, 100]
