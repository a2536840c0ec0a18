"""Head and ancestors, from records and starts alone."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.catalog import layout
from holdfast.catalog.lineage import Lineage
from holdfast.ids import Order
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


def test_a_newest_start_that_cannot_be_read_hides_the_head(train, damage):
    """Hazards 2: without it the poisoned record would look like the head."""
    trainer = train()
    healthy, _ = trainer.save(500), trainer.save(600)
    trainer.roll_back(healthy)
    assert trainer.run.lineage().hidden is None
    start = layout.start(trainer.run.number, trainer.launch, trainer.timeline)
    damage(trainer.run.store, start)
    hidden = trainer.run.lineage().hidden
    assert hidden is not None
    assert hidden.name == start


@pytest.mark.parametrize("newer", ["record", "start"])
def test_a_start_that_cannot_be_read_hides_nothing_once_something_newer_is_there(train, damage, newer):
    trainer = train()
    healthy = trainer.save(500)
    trainer.roll_back(healthy)
    damage(trainer.run.store, layout.start(trainer.run.number, trainer.launch, trainer.timeline))
    trainer.save(600) if newer == "record" else trainer.roll_back(healthy, relaunch=True)
    assert trainer.run.lineage().hidden is None


class Counted(int):
    """A step that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Counted.compared += 1
        return int(self) < int(other)


def test_a_line_whose_every_other_record_is_gone_is_found_without_looking_through_all_of_them(train):
    """Retention that keeps one step in a hundred leaves a gap below each; quadratic, that took minutes."""
    trainer, n = train(), 1000
    first = trainer.save(0)
    records = [
        msgspec.structs.replace(
            first,
            step=Counted(number * 100),
            id=f"{number:016x}",
            parent=Target.of(first.address._replace(order=Order(1, 0, number * 100 - 1))),
        )
        for number in range(1, n + 1)
    ]
    lineage = Lineage.of(records, [])
    assert [target.step for target in lineage.line()] == [number * 100 for number in range(n, 0, -1)]
    assert Counted.compared < 50 * n


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
