"""A trainer or a saver for tests/catalog/test_standing.py: ``python standing_worker.py STORE ROLE``.

Neither does anything by itself: each line on its standard input is one thing to do, each line that it prints says what
came of it. So the parent decides what has happened when it stops or kills one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from holds_kit import fill, save

from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import begin_save
from holdfast.catalog.standing import stand
from holdfast.catalog.store import open_store
from holdfast.errors import HoldfastError


def say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


def train(run: Run) -> None:
    """Begins a launch, saves step 500 and trains on for ever."""
    launch = begin_launch(run, deadline=0)
    save(launch, 500, [b"weights"])
    say("launched", launch.number)
    sys.stdin.read()


def stand_by(run: Run) -> None:
    """The saver of the newest launch: saves, in whole or in halves, and ends when it is told to."""
    launch = Launch(run, run.launch_numbers()[-1])
    standing = stand(launch)
    say("standing", standing.stands())
    attempts = {}

    def begin(step: int) -> None:
        attempts[step] = begin_save(launch, 0, step, standing=standing)

    def publish(step: int) -> None:
        attempts[step].publish(fill(attempts[step], step, [b"later"]))

    orders: dict[str, Callable[[int], object]] = {
        "save": lambda step: save(launch, step, [b"later"], standing=standing),
        "begin": begin,
        "publish": publish,
        "end": lambda step: standing.end(),
    }
    for line in sys.stdin:
        word, _, step = line.strip().partition(" ")
        try:
            orders[word](int(step or 0))
        except HoldfastError as error:
            say(type(error).__name__)
        else:
            say("done")


if __name__ == "__main__":
    place, role = sys.argv[1:]
    {"train": train, "stand_by": stand_by}[role](open_store(Path(place)).run(1))
