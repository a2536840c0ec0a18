"""Interrupted is uninterrupted for what can only be read again from its start, and for lists."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from holdfast import errors
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position
from holdfast.state.loaders_reading import glimpse

from .loaders_support import Stream, checkpoint, fresh, interrupted, resumed, seed_all, stored, train, whole

STOPS = [(0, 2), (0, 6), (1, 0), (1, 3), (2, 1)]


class Drawing:
    """An iterable that nobody knows, drawing from the global generators."""

    def __iter__(self):
        order = list(range(6))
        random.shuffle(order)
        for number in order:
            yield torch.tensor([number, np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


BUILDERS = {
    "iterable dataset": lambda: DataLoader(Stream(), batch_size=4),
    "iterable dataset with a generator": lambda: DataLoader(
        Stream(), batch_size=4, generator=torch.Generator().manual_seed(5)
    ),
    "iterable dataset, 2 workers": lambda: DataLoader(Stream(), batch_size=4, num_workers=2),
    "iterable dataset with a generator, 2 workers": lambda: DataLoader(
        Stream(), batch_size=4, num_workers=2, generator=torch.Generator().manual_seed(5)
    ),
    "any iterable": Drawing,
    "list": lambda: [torch.tensor(number) for number in range(6)],
    "tuple": lambda: tuple(torch.tensor(number) for number in range(6)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_five_interruptions_change_nothing(name):
    """users-ask 7: also in epoch 2 and after the second resume."""
    build = BUILDERS[name]
    assert interrupted(build, STOPS) == whole(build)


def test_epochs_differ_though_the_training_draws_nothing():
    """The stream of each epoch is private; if it began where the training's stands, it would begin alike for ever."""
    position = fresh(Drawing)
    epochs = [[batch[1].item() for batch in position.batches()] for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_training_draws_the_same_whatever_the_iterable_draws():
    class Quiet:
        def __iter__(self):
            return iter([torch.tensor(0)] * 6)

    assert [line[3] for line in whole(Drawing)] == [line[3] for line in whole(Quiet)]


def test_replay_leaves_the_global_random_state_alone():
    position = fresh(Drawing)
    train(position, epochs=1, until=(0, 4))
    state, random_state = checkpoint(position)
    again = fresh(Drawing)
    again.load(state)
    randomness.restore(random_state)
    before = randomness.signature()
    again.replay()
    assert randomness.signature() == before


def test_a_generator_is_read_again_by_a_new_program():
    def build():
        return (torch.tensor(number) for number in range(8))

    assert interrupted(build, [(0, 3), (0, 5)], epochs=1) == whole(build, epochs=1)


def test_a_second_epoch_of_a_generator_is_refused_rather_than_empty_for_ever():
    position = open_position(iter([1, 2, 3]))
    assert list(position.batches()) == [1, 2, 3]
    with pytest.raises(errors.InvalidInput, match="can be read only once"):
        list(position.batches())


def test_another_content_is_refused_loudly():
    position = fresh(lambda: DataLoader(Stream(), batch_size=4))
    train(position, epochs=1, until=(0, 3))
    state, _ = checkpoint(position)

    class Shifted(Stream):
        def __iter__(self):
            return (number + 1 for number in super().__iter__())

    again = open_position(DataLoader(Shifted(), batch_size=4))
    again.load(state)
    with pytest.raises(errors.StateMismatch, match="does not repeat itself"):
        again.replay()


def test_a_shorter_iterable_is_refused():
    position = fresh(lambda: DataLoader(Stream(), batch_size=4))
    train(position, epochs=1, until=(0, 5))
    state, _ = checkpoint(position)
    again = open_position(DataLoader(Stream(9), batch_size=4))
    again.load(state)
    with pytest.raises(errors.StateMismatch, match="ends after 3 batches, before the 5"):
        again.replay()


def test_another_number_of_workers_is_refused():
    position = fresh(BUILDERS["iterable dataset"])
    train(position, epochs=1, until=(0, 2))
    state, _ = checkpoint(position)
    with pytest.raises(errors.StateMismatch, match="workers was 0 and is 2"):
        open_position(BUILDERS["iterable dataset, 2 workers"]()).load(state)


def test_a_list_of_another_length_is_refused():
    position = open_position([1, 2, 3])
    next(position.batches())
    with pytest.raises(errors.StateMismatch, match="dataset length was 3 and is 4"):
        open_position([1, 2, 3, 4]).load(position.state())


def test_reading_again_is_said_not_to_be_exact_by_itself():
    found = open_position(BUILDERS["iterable dataset"]()).exactness()
    assert not found["order"].exact
    assert "exact if it then gives the same" in found["order"].reason
    assert found["augmentation"].exact


def test_lists_are_exact():
    assert all(part.exact for part in open_position([1]).exactness().values())


def test_a_list_in_another_order_is_said_to_be_inexact_for_the_rest_of_the_epoch(caplog):
    """The program shuffles it in place, each epoch."""
    order = list(range(6))
    position = open_position(order)
    train(position, epochs=2, until=(1, 3))
    state = stored(position.state())
    again = open_position([5, 4, 3, 2, 1, 0])
    again.load(state)
    again.replay()
    assert not caplog.text, "a program that shuffles by the epoch does so right before it begins"
    next(again.batches())
    assert "first 3 batches of epoch 1" in caplog.text
    assert not again.exactness()["order"].exact
    list(again.batches())
    next(again.batches())
    assert again.exactness()["order"].exact


def test_a_list_that_is_put_in_order_before_its_epoch_goes_on_is_exact(caplog):
    position = open_position(list(range(6)))
    train(position, epochs=1, until=(0, 3))
    batches = [5, 4, 3, 2, 1, 0]
    again = open_position(batches)
    again.load(stored(position.state()))
    again.replay()
    batches.sort()
    assert list(again.batches()) == [3, 4, 5]
    assert not caplog.text
    assert again.exactness()["order"].exact


def test_a_list_of_a_checkpoint_without_a_glimpse_goes_on_by_number(caplog):
    again = open_position(list(range(6)))
    train(again, epochs=1, until=(0, 3))
    old = {**again.state(), "details": {}}
    again.load(old)
    assert list(again.batches()) == [3, 4, 5]
    assert not caplog.text


def test_progress_is_told_with_an_estimate():
    """users-ask 26: it looked as if it hung."""
    position = fresh(Drawing)
    train(position, epochs=1, until=(0, 5))
    state, _ = checkpoint(position)
    told = []
    again = fresh(Drawing)
    again.load(state)
    again.replay(told.append)
    assert (told[-1].done, told[-1].total, told[-1].remaining) == (5, 5, 0.0)


def test_a_resumed_reader_can_be_resumed():
    position = fresh(Drawing)
    train(position, epochs=3, until=(1, 2))
    second = resumed(Drawing, *checkpoint(position))
    again = resumed(Drawing, *checkpoint(second))
    assert train(again, epochs=3) == whole(Drawing)[8:]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([1, 2]), torch.tensor([[1, 2]])),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32)),
        (np.arange(3), np.arange(1, 4)),
        ({"a": torch.tensor(1)}, {"b": torch.tensor(1)}),
        ([1, "x"], [1, "y"]),
        (("a", None), ["a", 1.5]),
        (b"1", "1"),
    ],
)
def test_a_glimpse_tells_batches_apart(one, other):
    assert glimpse(one) == glimpse(one)
    assert glimpse(one) != glimpse(other)


def test_a_glimpse_of_a_strange_batch_is_its_class():
    assert glimpse(object()) == b"object"
    assert glimpse(torch.eye(2).to_sparse()) == b"torch.float32(2, 2)"


def test_a_private_stream_begins_elsewhere_than_the_training():
    seed_all(1)
    stream = randomness.Stream(randomness.entropy())
    with stream:
        inside = [random.random() for _ in range(50)]
    assert not set(inside) & {random.random() for _ in range(50)}
