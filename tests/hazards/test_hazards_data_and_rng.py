"""Where the data and the random numbers are: whatever the sampler, interrupted is uninterrupted."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lives import Death, Program, lived, model_of, records
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import holdfast
from holdfast import Checkpointer, every, latest

TOTAL = 11  # three steps an epoch: the fourth epoch is reached
DEATHS = (4, 5, 5, 9)


def samples(count: int = 12) -> TensorDataset:
    x = torch.linspace(-1, 1, count * 16).view(count, 16)
    return TensorDataset(x, x.sum(1, keepdim=True))


class ByLength(BatchSampler):
    """A bucketing sampler of somebody's own: batches of neighbours, the buckets in random order."""

    def __init__(self, count: int, generator: torch.Generator | None = None) -> None:
        self.count, self.generator = count, generator

    def __iter__(self):
        for bucket in torch.randperm(self.count // 4, generator=self.generator).tolist():
            yield list(range(4 * bucket, 4 * bucket + 4))

    def __len__(self) -> int:
        return self.count // 4


class PythonShuffle(torch.utils.data.Sampler):
    """Draws from Python's and NumPy's global generators, as much code does."""

    def __iter__(self):
        order = list(range(12))
        random.shuffle(order)
        return iter(np.random.permutation(order).tolist())

    def __len__(self) -> int:
        return 12


def shared(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS = {
    "shuffle": lambda own: DataLoader(samples(), batch_size=4, shuffle=True),
    "shuffle, own generator": lambda own: DataLoader(samples(), batch_size=4, shuffle=True, generator=own),
    "in order": lambda own: DataLoader(samples(), batch_size=4),
    "weighted": lambda own: DataLoader(samples(), 4, sampler=WeightedRandomSampler(range(1, 13), 12)),
    "weighted, own generator": lambda own: DataLoader(
        samples(), 4, sampler=WeightedRandomSampler(range(1, 13), 12, generator=own)
    ),
    "with replacement": lambda own: DataLoader(samples(), 4, sampler=RandomSampler(samples(), True, 12)),
    "subset": lambda own: DataLoader(samples(24), 4, sampler=SubsetRandomSampler(range(0, 24, 2), generator=own)),
    "batch sampler": lambda own: DataLoader(samples(), batch_sampler=ByLength(12)),
    "batch sampler, own generator": lambda own: DataLoader(samples(), batch_sampler=ByLength(12, own)),
    "drop_last": lambda own: DataLoader(samples(15), batch_size=4, shuffle=True, drop_last=True),
    "a last batch that is short": lambda own: DataLoader(samples(10), batch_size=4, shuffle=True),
    "python and numpy": lambda own: DataLoader(samples(), 4, sampler=PythonShuffle()),
    "no batching": lambda own: DataLoader(samples(3), batch_size=None, shuffle=True),
    "holdfast.Sampler": lambda own: DataLoader(samples(), 4, sampler=holdfast.Sampler(samples(), seed=3)),
    "a list": lambda own: list(DataLoader(samples(), batch_size=4)),
}


def program(loader_of, **options) -> Program:
    model = model_of(seed=torch.initial_seed())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    own = shared(torch.initial_seed())
    state = {"model": model, "optimizer": optimizer, "generator": own}

    def update(batch):
        x, y = (part.view(-1, part.shape[-1]) for part in batch)
        if len(x) == 1:
            x, y = x.expand(2, -1), y.expand(2, -1)  # batch norm wants two
        loss = (model(x + 0.01 * torch.randn_like(x)) - y).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(x.sum()), float(loss.detach()), random.random(), float(np.random.rand())

    return Program(state, update, loader_of(own), options)


@pytest.mark.parametrize("loader", LOADERS)
def test_whatever_the_sampler_interrupted_is_uninterrupted(tmp_path, loader):
    """Hazard 27; users-ask 7 and 16: in the middle of epochs, in later ones, twice at one place, to the bit."""

    def build():
        return program(LOADERS[loader])

    whole = lived(tmp_path / "whole", build, total=TOTAL)
    assert len({whole[step] for step in range(TOTAL)}) == TOTAL, "each step is different, or a repeat would not show"
    assert lived(tmp_path / "torn", build, total=TOTAL, deaths=DEATHS) == whole


def test_a_generator_that_the_sampler_shares_with_augmentation_is_exact(tmp_path):
    """Hazard 27: one generator serves the order and the noise, so both advance it at once."""

    class Noisy(Dataset):
        def __init__(self, generator: torch.Generator) -> None:
            self.generator = generator

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int):
            return torch.randn(16, generator=self.generator) + index, torch.zeros(1)

    def build():
        return program(lambda own: DataLoader(Noisy(own), batch_size=4, shuffle=True, generator=own))

    whole = lived(tmp_path / "whole", build, total=TOTAL)
    assert lived(tmp_path / "torn", build, total=TOTAL, deaths=(4, 8)) == whole


def test_evaluation_loops_that_draw_numbers_are_part_of_what_is_resumed(tmp_path):
    """Users-ask 7: an evaluation with its own shuffled loader and dropout at every third step."""

    def build():
        made = program(LOADERS["shuffle"])
        held, update, steps = DataLoader(samples(8), 4, shuffle=True), made.update, [0]

        def with_evaluation(batch):
            answer = update(batch)
            steps[0] += 1
            if made.state["optimizer"].state_dict()["state"][0]["step"] % 3 == 0:
                answer = (*answer, [float(x.sum() * torch.rand(())) for x, _ in held])
            return answer

        return Program(made.state, with_evaluation, made.loader)

    whole = lived(tmp_path / "whole", build, total=TOTAL)
    assert lived(tmp_path / "torn", build, total=TOTAL, deaths=(3, 7)) == whole


@pytest.mark.parametrize("death", range(2, 8))
def test_a_save_at_the_very_end_of_an_epoch_resumes_at_the_start_of_the_next(tmp_path, death):
    """Users-ask 7 and 16: at, before and after the seam between two epochs, saved at each step."""

    def build():
        return program(LOADERS["shuffle"], save=every(steps=1))

    whole = lived(tmp_path / "whole", build, total=9)
    assert lived(tmp_path / "torn", build, total=9, deaths=(death,)) == whole


def test_saves_at_the_end_of_epochs_resume_with_whole_epochs(tmp_path):
    """Users-ask 16: resumed at the next epoch, nothing of the last one skipped or repeated."""

    def build():
        return program(lambda own: DataLoader(samples(), 4, shuffle=True), save=every(epochs=1))

    whole = lived(tmp_path / "whole", build, total=9)
    torn = lived(tmp_path / "torn", build, total=9, deaths=(4, 8))
    assert torn == whole
    assert {record.step % 3 for record in records(tmp_path / "torn")} == {0}


def test_leaving_the_loop_early_and_coming_back_goes_on_with_the_next_batch(tmp_path):
    """Hazard 27: `break` after a step, an evaluation that draws numbers, and a second loop of the same launch."""
    indices = TensorDataset(torch.arange(12.0).view(12, 1))
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(indices, batch_size=4, shuffle=True)
    seen: list[float] = []
    with Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1)) as ckpt:
        for stop in (2, 4, 6):
            for step, (batch,) in ckpt.batches(loader, total_steps=6):
                seen += batch.flatten().tolist()
                optimizer.step()
                if step + 1 == stop:
                    break
            torch.randn(100)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)), "two whole epochs, each sample once"
    assert seen[:12] != seen[12:]
    assert ckpt.last.step == 6


def test_a_training_in_several_loops_is_the_training_in_one(tmp_path):
    """Users-ask 16: a loop of the user's own around it, with a total that grows; no sample is skipped or repeated."""

    def build(phases):
        def run(death=None):
            torch.manual_seed(len(seen))
            model = model_of(seed=1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            loader = DataLoader(samples(), 4, shuffle=True)
            state = {"model": model, "optimizer": optimizer}
            with Checkpointer(tmp_path / phases, run="r", state=state, save=every(steps=1)) as ckpt:
                for total in (2, 4, 7) if phases == "three" else (7,):
                    for step, (x, _) in ckpt.batches(loader, total_steps=total):
                        optimizer.zero_grad()
                        model(x).mean().backward()
                        optimizer.step()
                        seen[step] = (float(x.sum()), float(torch.rand(())))
                        if step == death:
                            raise Death
            return {**seen}

        seen: dict[int, tuple[float, float]] = {}
        return run

    whole = build("one")()
    assert build("three")() == whole
    assert list(whole) == list(range(7))


def test_a_run_that_ends_on_the_last_batch_of_an_epoch_has_not_begun_the_next(tmp_path):
    """Users-ask 16: continued with a larger total, the next epoch is a new, whole one."""

    def build():
        return program(LOADERS["shuffle"])

    whole = lived(tmp_path / "whole", build, total=9)
    first = lived(tmp_path / "two", build, total=6)
    assert all(first[step] == whole[step] for step in range(6))
    rest = lived(tmp_path / "two", build, total=9)
    assert all(rest[step] == whole[step] for step in range(6, 9))
    assert rest[-1] == whole[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_dataset_goes_on_where_it_was_or_says_that_it_is_not_exact(tmp_path, workers):
    """Hazard 27: it has no indices; it is read again up to the place, and the record says what that is worth."""

    class Stream(IterableDataset):
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            begin, by = (info.id, info.num_workers) if info else (0, 1)
            return iter([(torch.full((16,), float(i)), torch.zeros(1)) for i in range(begin, 12, by)])

    def build():
        return program(lambda own: DataLoader(Stream(), batch_size=2, num_workers=workers))

    whole = lived(tmp_path / "whole", build, total=8)
    assert lived(tmp_path / "torn", build, total=8, deaths=(3, 7)) == whole
    assert not records(tmp_path / "torn")[-1].exactness["data"].exact


def test_persistent_workers_with_seeded_samples_are_exact_over_epochs_and_lives(tmp_path):
    """Hazard 27: workers that stay alive over epochs have consumed numbers that nobody can count."""
    from toy_training import Augmented

    def build():
        data = holdfast.seeded(Augmented(), seed=5)
        return program(
            lambda own: DataLoader(data, 8, shuffle=True, num_workers=2, persistent_workers=True), keep=latest(9)
        )

    whole = lived(tmp_path / "whole", build, total=8)
    assert lived(tmp_path / "torn", build, total=8, deaths=(4, 7)) == whole
    assert records(tmp_path / "torn")[-1].exactness["augmentation"].exact


def test_augmentation_in_workers_without_seeds_is_said_to_be_inexact(tmp_path):
    """Hazard 27; users-ask 17: what cannot be put back is said in the record, and at the resume."""
    from toy_training import Augmented

    def build():
        return program(lambda own: DataLoader(Augmented(), 8, shuffle=True, num_workers=1))

    lived(tmp_path, build, total=2)
    exactness = records(tmp_path)[-1].exactness
    assert exactness["data"].exact
    assert not exactness["augmentation"].exact


def test_numbers_drawn_between_the_restore_and_the_loop_change_nothing(tmp_path):
    """Hazard 27: a model built late, a printed sample, a warm-up: the loop begins with the numbers of the boundary."""
    drawn = []
    for launch in range(2):
        torch.manual_seed(launch)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(samples(), 4, shuffle=True)
        with (
            pytest.raises(Death),
            Checkpointer(
                tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1)
            ) as ckpt,
        ):
            ckpt.restore()
            torch.randn(50 * launch + 1)
            for step, _ in ckpt.batches(loader, total_steps=9):
                drawn.append((step, float(torch.rand(()))))
                optimizer.step()
                if step == 2 + launch:
                    raise Death
    by_step = dict(drawn[:3])
    assert drawn[3] == (2, by_step[2]), "step 2 was repeated with the same numbers"


def test_another_dataset_is_refused_with_what_changed(tmp_path):
    """Users-ask 7: a dataset of another length would silently be another order."""
    lived(tmp_path, lambda: program(LOADERS["shuffle"]), total=4)
    with pytest.raises(holdfast.errors.StateMismatch, match="12"):
        lived(tmp_path, lambda: program(lambda own: DataLoader(samples(20), 4, shuffle=True)), total=9)
