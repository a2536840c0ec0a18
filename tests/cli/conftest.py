"""A store as training makes it, with everything in it that is hard to show."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.catalog.launches import begin_launch
from holdfast.catalog.marks import add_mark, pin
from holdfast.catalog.naming.forks import fork
from holdfast.catalog.naming.tags import create_tag
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import Store, open_store
from holdfast.cli.app import run
from holdfast.ids import TagName
from holdfast.policy import every, latest
from holdfast.records import MarkKind, Record

EVIL = "\x1b[31mred\x1b[0m [bold]b[/bold]\nnew line \x9b2J \u202eback [red]"
"""What a terminal, a table and a markup language would each fall for."""


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsys):
    """A function: runs a command line in this process, on the given store."""

    def call(store: Path, *words: object) -> Result:
        capsys.readouterr()
        code = run([*map(str, words), "--store", str(store)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Run 1: steps 2, 4 (then resumed), 6, 8. Run 2: a metric name to be feared. Run 3: a fork of step 8."""
    torch = pytest.importorskip("torch")
    from holdfast import Checkpointer

    place = tmp_path_factory.mktemp("cli") / "checkpoints"

    def train(name: str, steps: int, metric: str, keep) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 40)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        state = {"model": model, "optimizer": optimizer}
        config = {"lr": 1e-3, "note": EVIL}
        with Checkpointer(place, run=name, config=config, state=state, save=every(steps=2), keep=keep) as ckpt:
            ckpt.values["note"] = EVIL
            for _ in ckpt.steps(steps):
                loss = model(torch.ones(4, 40)).pow(2).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.log(**{metric: loss.item()})

    keep = latest(9)
    train("gpt2-small", 4, "loss", keep)
    train("gpt2-small", 8, "loss", keep)
    train("exp-lr.1e-4", 2, EVIL, latest(1))
    store = open_store(place)
    first, second, _, last = store.run(1).records()
    pin(store, first.address, by="user", why=EVIL)
    add_mark(store, second.address, MarkKind.GOOD, by="health")
    create_tag(store, TagName("baseline"), last.address, note=EVIL)
    fork(store, "baseline", "a-name-that-is-as-long-as-a-run-name-may-be" + "-and-longer" * 5)
    return place


@pytest.fixture
def place(trained, tmp_path) -> Path:
    """A copy of that store, to be changed."""
    return shutil.copytree(trained, tmp_path / "checkpoints")


@pytest.fixture
def store(place) -> Store:
    return open_store(place)


@pytest.fixture
def records(store) -> list[Record]:
    """Of run 1, steps 2, 4, 6, 8: pinned; good and resumed from; free to go; head, tagged and forked."""
    return store.run(1).records()


def flip(path: Path, at: int | None = None) -> None:
    """One bit of a file, in the middle by default."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def unfinished(store: Store, number: int, step: int):
    """A save in flight: its hold is there, its record is not."""
    launch = begin_launch(store.run(number), deadline=0)
    return begin_save(launch, 0, step)
