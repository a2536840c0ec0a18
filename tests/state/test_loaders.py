"""Interrupted is uninterrupted, for every kind of map-style loader: batches, and what the training draws."""

import gc
import weakref

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from holdfast import errors
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position
from holdfast.state.seeding import seeded

from .loaders_support import (
    Buckets,
    Eager,
    Noisy,
    Numbers,
    OwnGenerators,
    Stream,
    checkpoint,
    digest,
    fresh,
    interrupted,
    resumed,
    seed_all,
    stored,
    train,
    whole,
)

DATA = Numbers()
WEIGHTS = [1.0 + number % 5 for number in range(23)]


def weighted():
    return WeightedRandomSampler(WEIGHTS, 23)


def own():
    return torch.Generator().manual_seed(7)


LOADERS = {
    "shuffle": lambda: {"batch_size": 4, "shuffle": True},
    "shuffle with drop_last": lambda: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "sequential": lambda: {"batch_size": 4, "sampler": SequentialSampler(DATA)},
    "weighted": lambda: {"batch_size": 4, "sampler": weighted()},
    "subset": lambda: {"batch_size": 4, "sampler": SubsetRandomSampler(range(3, 23))},
    "replacement": lambda: {"batch_size": 4, "sampler": RandomSampler(DATA, replacement=True, num_samples=70)},
    "replacement, own generator": lambda: {
        "batch_size": 4,
        "sampler": RandomSampler(DATA, replacement=True, num_samples=70, generator=own()),
    },
    "own generator": lambda: {"batch_size": 4, "shuffle": True, "generator": own()},
    "no batches": lambda: {"batch_size": None, "shuffle": True},
    "distributed": lambda: {"batch_size": 2, "sampler": DistributedSampler(DATA, num_replicas=2, rank=1)},
    "batch sampler": lambda: {"batch_sampler": BatchSampler(weighted(), 4, drop_last=False)},
    "list of batches as sampler": lambda: {"batch_sampler": [[1, 2], [3, 4, 5], [6], [7, 8], [9, 10], [11]]},
    "batch sampler that draws every time": lambda: {"batch_sampler": Buckets()},
    "eager sampler that counts": lambda: {"batch_size": 4, "sampler": Eager()},
    "sampler with four generators": lambda: {"batch_size": 4, "sampler": OwnGenerators()},
}


def builder(name, dataset=DATA, **more):
    options = LOADERS[name]
    return lambda: DataLoader(dataset, **options(), **more)


def stops_of(trace):
    """In the middle, at the last batch, at the turn, in the middle of the second epoch, at the third's start."""
    last = max(batch for epoch, batch, *_ in trace if epoch == 0)
    return [(0, 2), (0, last), (1, 0), (1, 3), (2, 1)]


@pytest.mark.parametrize("name", LOADERS)
def test_five_interruptions_change_nothing(name):
    """users-ask 7 and 16: also in epoch 2 and after the second resume; hazards 27."""
    build = builder(name)
    trace = whole(build)
    assert interrupted(build, stops_of(trace)) == trace


@pytest.mark.parametrize("name", LOADERS)
def test_with_two_workers_interruptions_change_nothing(name):
    """hazards 27: workers draw indices ahead of what was handed out."""
    build = builder(name, num_workers=2)
    trace = whole(build, epochs=2)
    stops = [stop for stop in stops_of(trace)[1:4] if stop[0] < 2]
    assert interrupted(build, stops, epochs=2) == trace


@pytest.mark.parametrize(
    "name", ["shuffle", "own generator", "eager sampler that counts", "batch sampler that draws every time"]
)
@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (1, 2), (2, 0)])
def test_with_persistent_workers_interruptions_change_nothing(name, stop):
    """A kept iterator draws no seed for its workers at an epoch's start; a new one does."""
    build = builder(name, num_workers=2, persistent_workers=True, prefetch_factor=3)
    assert interrupted(build, [stop]) == whole(build)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("back_to", [(0, 2), (1, 0), (1, 2)])
def test_a_rollback_in_the_same_process_changes_nothing(persistent, back_to):
    build = builder("shuffle", num_workers=2, persistent_workers=persistent)
    trace = whole(build)
    position = fresh(build)
    before = train(position, epochs=3, until=back_to)
    state, random_state = checkpoint(position)
    train(position, epochs=3, until=(2, 2))
    position.load(state)
    position.replay()
    randomness.restore(random_state)
    between = train(position, epochs=3, until=(1, 4))
    assert before + between + train(resumed(build, *checkpoint(position)), epochs=3) == trace
    position.close()


@pytest.mark.parametrize("back_to", [(0, 0), (0, 2), (1, 0)])
def test_a_rollback_takes_back_what_a_sampler_has_counted(back_to):
    build = builder("eager sampler that counts")
    trace = whole(build)
    position = fresh(build)
    before = train(position, epochs=3, until=back_to) if back_to != (0, 0) else []
    state, random_state = checkpoint(position)
    train(position, epochs=3, until=(2, 2))
    position.load(state)
    position.replay()
    randomness.restore(random_state)
    assert before + train(position, epochs=3) == trace


def test_a_rollback_to_the_very_start_changes_nothing_for_persistent_workers():
    build = builder("shuffle", num_workers=2, persistent_workers=True)
    trace = whole(build)
    position = fresh(build)
    state, random_state = checkpoint(position)
    train(position, epochs=3, until=(1, 2))
    position.load(state)
    randomness.restore(random_state)
    assert train(position, epochs=3) == trace
    position.close()


@pytest.mark.parametrize("workers", [(0, 2), (2, 0)])
def test_order_does_not_depend_on_the_number_of_workers(workers):
    then, now = workers
    build, after = builder("weighted", num_workers=then), builder("weighted", num_workers=now)
    assert interrupted(build, [(0, 3)], after=after, epochs=1) == whole(build, epochs=1)


@pytest.mark.parametrize("name", ["shuffle", "weighted", "own generator", "replacement", "eager sampler that counts"])
def test_iterating_by_a_position_is_iterating_the_loader(name):
    """The user's own order, bit for bit, and no draw more or less for the training."""
    seed_all(1)
    loader, plain = builder(name)(), []
    for _ in range(2):
        for batch in loader:
            plain.append((digest(batch), torch.rand(()).item()))
    seed_all(1)
    position, by_position = open_position(builder(name)()), []
    for _ in range(2):
        for batch in position.batches():
            by_position.append((digest(batch), torch.rand(()).item()))
    assert by_position == plain


def test_replay_leaves_the_global_random_state_alone():
    build = builder("shuffle", num_workers=2)
    position = fresh(build)
    train(position, epochs=1, until=(0, 3))
    state, random_state = checkpoint(position)
    position.close()
    again = fresh(build)
    again.load(state)
    randomness.restore(random_state)
    before = randomness.signature()
    again.replay()
    assert randomness.signature() == before
    again.close()


def test_no_sample_is_read_by_a_replay():
    """users-ask 26: 28 hours of replay."""
    reads = []

    class Counted(Numbers):
        def __getitem__(self, index):
            reads.append(index)
            return torch.tensor(index)

    build = builder("shuffle", dataset=Counted())
    position = fresh(build)
    train(position, epochs=1, until=(0, 5))
    reads.clear()
    resumed(build, *checkpoint(position))
    assert reads == []


def test_augmentation_in_this_process_is_exact():
    build = builder("shuffle", dataset=Noisy())
    trace = whole(build)
    assert interrupted(build, [(0, 2), (1, 3)]) == trace
    assert fresh(build).exactness()["augmentation"].exact


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_seeded_augmentation_is_exact(options):
    """hazards 27: worker random numbers cannot be positioned, those of samples can."""
    build = builder("shuffle", dataset=seeded(Noisy(), seed=3), **options)
    trace = whole(build)
    assert interrupted(build, [(0, 2), (1, 0), (1, 3)]) == trace
    assert fresh(build).exactness()["augmentation"].exact


def test_seeded_augmentation_does_not_depend_on_the_number_of_workers():
    build = builder("own generator", dataset=seeded(Noisy()))
    after = builder("own generator", dataset=seeded(Noisy()), num_workers=2)
    assert interrupted(build, [(0, 3)], after=after, epochs=1) == whole(build, epochs=1)


def test_seeded_samples_differ_between_epochs():
    build = builder("sequential", dataset=seeded(Noisy()))
    trace = whole(build, epochs=2)
    assert not {line[2] for line in trace if line[0] == 0} & {line[2] for line in trace if line[0] == 1}


def test_unseeded_augmentation_in_workers_is_said_to_be_inexact():
    position = open_position(builder("shuffle", dataset=Noisy(), num_workers=2)())
    found = position.exactness()
    assert found["order"].exact
    assert not found["augmentation"].exact
    assert "wrap the dataset with holdfast.seeded" in found["augmentation"].reason


def test_a_dataset_with_generators_of_its_own_is_said_to_be_inexact():
    data = Numbers()
    data.dice = torch.Generator()
    for dataset in (data, seeded(data)):
        found = open_position(builder("shuffle", dataset=dataset)()).exactness()["augmentation"]
        assert not found.exact
        assert "dice" in found.reason


def test_batches_out_of_order_are_said_to_be_inexact():
    loader = DataLoader(DATA, batch_size=4, num_workers=2, in_order=False)
    assert not open_position(loader).exactness()["order"].exact


def taken_at(build, stop):
    position = fresh(build)
    train(position, epochs=3, until=stop)
    state, _ = checkpoint(position)
    position.close()
    return state


def test_a_dataset_of_another_length_is_refused():
    state = taken_at(builder("shuffle"), (0, 3))
    position = fresh(builder("shuffle", dataset=Numbers(22)))
    with pytest.raises(errors.StateMismatch, match="dataset length was 23 and is 22"):
        position.load(state)
    assert (position.epoch, position.batch) == (0, 0)


def test_all_differences_are_named_at_once():
    state = taken_at(builder("shuffle"), (0, 3))
    position = fresh(lambda: DataLoader(Numbers(9), batch_size=3))
    with pytest.raises(errors.StateMismatch, match=r"batch size.*dataset length.*sampler"):
        position.load(state)


def test_another_kind_of_loader_is_refused():
    state = taken_at(builder("shuffle"), (0, 3))
    with pytest.raises(errors.StateMismatch, match="kept by indices, this loader's is by sequence"):
        open_position([1, 2, 3]).load(state)


def test_another_world_size_is_refused_for_samplers_that_cannot_change_it():
    """hazards 27: DistributedSampler pads with repeats; users-ask 17."""
    state = taken_at(builder("distributed"), (0, 2))
    four = lambda: DataLoader(DATA, batch_size=2, sampler=DistributedSampler(DATA, num_replicas=4, rank=1))  # noqa: E731
    with pytest.raises(errors.StateMismatch, match="world was 2 and is 4"):
        fresh(four).load(state)


def test_an_order_that_does_not_repeat_is_refused_loudly():
    state = taken_at(builder("weighted"), (0, 3))
    heavier = lambda: DataLoader(  # noqa: E731
        DATA, batch_size=4, sampler=WeightedRandomSampler([1.0] * 22 + [1e6], 23)
    )
    position = fresh(heavier)
    position.load(state)
    with pytest.raises(errors.StateMismatch, match="does not repeat itself"):
        position.replay()


def test_a_sampler_that_ends_early_is_refused():
    batches = [[number] for number in range(9)]
    state = taken_at(lambda: DataLoader(DATA, batch_sampler=batches), (0, 7))
    position = fresh(lambda: DataLoader(DATA, batch_sampler=batches[:5]))
    position.load(state)
    with pytest.raises(errors.StateMismatch, match="ends after 5 batches, before the 7"):
        position.replay()


def test_a_refused_epoch_can_be_started_over():
    state = taken_at(builder("shuffle"), (1, 3))
    position = fresh(builder("shuffle", dataset=Numbers(8)))
    with pytest.raises(errors.StateMismatch):
        position.load(state)
    position.start_over(state["epoch"])
    assert len(train(position, epochs=2)) == 2


def test_the_loader_keeps_its_own_samplers():
    """hazards 27: the user holds a reference to the loader, and calls len and set_epoch."""
    loader = builder("shuffle", num_workers=2)()
    inner, outer = loader.sampler, loader.batch_sampler
    position = open_position(loader)
    train(position, epochs=2, until=(1, 2))
    state = stored(position.state())
    position.load(state)
    position.replay()
    assert loader.sampler is inner
    assert loader.batch_sampler is outer
    assert loader.generator is None
    position.close()


def test_workers_end_with_the_last_reference_to_their_loader():
    """Kept in a reference cycle, each kept iterator would hold the program up for ten seconds at its collection."""
    loader = builder("shuffle", num_workers=2, persistent_workers=True)()
    position = open_position(loader)
    train(position, epochs=2, until=(1, 1))
    workers, gone = loader._iterator._workers, weakref.ref(loader)
    gc.disable()
    try:
        position.close()
        del position, loader
        assert gone() is None
        assert not any(worker.is_alive() for worker in workers)
    finally:
        gc.enable()


def test_set_epoch_is_called_wherever_it_is_wanted():
    """users-ask 7: without it DistributedSampler gives every epoch the same order."""
    build = builder("distributed")
    trace = whole(build, epochs=2)
    assert [line[2] for line in trace if line[0] == 0] != [line[2] for line in trace if line[0] == 1]


def test_an_abandoned_epoch_goes_on_where_it_was():
    position = open_position(DataLoader(DATA, batch_size=4))
    assert len(train(position, epochs=1, until=(0, 2))) == 2
    assert [batch[0].item() for batch in position.batches()] == [8, 12, 16, 20]


def test_loaders_that_make_their_iterator_late_are_positioned_too():
    """Accelerate's loaders have a generator function for __iter__ and read one batch ahead."""

    class Ahead(DataLoader):
        def __iter__(self):
            iterator = super().__iter__()
            held = next(iterator)
            for batch in iterator:
                yield held
                held = batch
            yield held

    for workers in (0, 2):
        build = lambda workers=workers: Ahead(DATA, batch_size=4, shuffle=True, num_workers=workers)  # noqa: E731
        trace = whole(build)
        assert interrupted(build, [(0, 2), (1, 0), (1, 3)]) == trace
        assert sorted({line[0] for line in trace}) == [0, 1, 2]


def test_a_position_prints_how_long_a_replay_takes():
    told = []
    build = lambda: DataLoader(Numbers(3000), batch_size=1)  # noqa: E731
    state = taken_at(build, (0, 2500))
    position = fresh(build)
    position.load(state)
    position.replay(told.append)
    assert (told[-1].done, told[-1].total) == (2500, 2500)
    assert "2,500 of 2,500 batches" in str(told[-1])


def test_a_stored_position_before_its_replay_stores_the_same_again():
    state = taken_at(builder("shuffle"), (0, 3))
    position = fresh(builder("shuffle"))
    position.load(state)
    again = position.state()
    assert again["details"] is state["details"]
    assert (again["epoch"], again["batch"]) == (0, 3)


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(errors.InvalidInput, match="cannot be iterated"):
        open_position(3)


def test_iterable_datasets_are_not_asked_for_indices():
    assert open_position(DataLoader(Stream())).strategy == "reading"
