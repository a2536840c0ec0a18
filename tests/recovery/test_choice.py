"""Which run a launch works on, decided from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.errors import InvalidInput, InvalidName, NothingToResume, RefusedFresh, UnknownReference
from holdfast.ids import Order, RecordAddress, RecordId, RunName, RunNumber
from holdfast.records import RunInfo, Target
from holdfast.recovery.launching.choice import KnownRun, NewRun, choose_run, new_run


def address(run: int, step: int = 4) -> RecordAddress:
    return RecordAddress(RunNumber(run), Order(1, 0, step), RecordId(f"{run:08x}{step:08x}"))


def known(
    number: int, name: str | None, *, job: str | None = None, fork: RecordAddress | None = None, finished: bool = False
) -> KnownRun:
    forked = None if fork is None else Target.of(fork)
    info = RunInfo(
        number=number, name=name, created="2026-01-01T00:00:00Z", forked_from=forked, job=job, attempt="0" * 16
    )
    return KnownRun(info=info, head=address(number), finished=finished)


TOY = RunName("toy")
RUNS = [known(1, "toy", job="slurm:7", finished=True), known(2, "toy", job="slurm:8"), known(3, "other")]


@pytest.mark.parametrize(
    ("want", "resume", "source", "job", "number"),
    [
        (TOY, "auto", None, None, 2),
        (TOY, "must", None, None, 2),
        (TOY, "never", None, None, None),
        (TOY, "never", None, "slurm:8", 2),
        (TOY, "never", None, "slurm:9", None),
        (TOY, "auto", None, "slurm:7", 1),
        (RunName("unheard-of"), "auto", None, None, None),
        (RunName("unheard-of"), "never", None, None, None),
        (RunNumber(1), "auto", None, None, 1),
        (RunNumber(3), "never", None, None, 3),
        (NewRun(TOY), "auto", None, None, None),
        (NewRun(TOY), "auto", None, "slurm:8", 2),
        (NewRun(None), "auto", None, None, None),
        (TOY, "reference", address(2), None, 2),
        (TOY, "reference", address(3), None, None),
        (TOY, "reference", address(3), "slurm:8", 2),
    ],
)
def test_the_run_that_is_worked_on(want, resume: str, source, job: str | None, number: int | None) -> None:
    """Hazard 28: ``never`` and ``new_run`` mean never another job's work; a restarted job goes on with its own."""
    choice = choose_run(want, resume, source, [replace(run, ours=run.info.job == job is not None) for run in RUNS])
    assert choice.number == number
    assert choice.why


def test_a_finished_run_is_only_taken_where_no_other_of_its_name_is_unfinished() -> None:
    finished = [known(1, "toy", finished=True), known(2, "toy", finished=True)]
    assert choose_run(TOY, "auto", None, finished).number == 2
    assert choose_run(TOY, "auto", None, [known(1, "toy"), known(2, "toy", finished=True)]).number == 1


def test_a_reference_to_another_run_makes_a_fork_once() -> None:
    """The same command line works for the first and the n-th launch."""
    source = address(3)
    first = choose_run(TOY, "reference", source, RUNS)
    assert (first.number, first.forked_from) == (None, source)
    again = choose_run(TOY, "reference", source, [*RUNS, known(4, "toy", fork=source)])
    assert (again.number, again.forked_from) == (4, None)


def test_a_reference_that_moves_makes_a_fork_once_too() -> None:
    """``resume="run-003"``: run 3 goes on, and the same command still means the fork that it has made."""
    runs = [*RUNS, known(4, "toy", fork=address(3, 10))]
    assert choose_run(TOY, "reference", address(3, 30), runs, moves=True).number == 4
    assert choose_run(TOY, "reference", address(3, 30), runs).number is None, "another checkpoint is another fork"
    assert choose_run(TOY, "reference", address(1, 30), runs, moves=True).number == 1


def test_a_run_by_its_number_goes_on_from_what_is_asked_for_or_not_at_all() -> None:
    """``run=2, resume="run-001@4"`` trained run 2 on from its own head, or from zero where it had none."""
    runs = [known(1, "a"), known(2, "b"), known(3, "c", fork=address(1))]
    assert choose_run(RunNumber(1), "reference", address(1), runs).number == 1
    assert choose_run(RunNumber(3), "reference", address(1), runs).number == 3
    assert choose_run(RunNumber(3), "reference", address(1, 30), runs, moves=True).number == 3
    for number, source in ((2, address(1)), (3, address(1, 30))):
        with pytest.raises(InvalidInput, match=f"run-00{number} does not go on from run-001@{source.order.step} "):
            choose_run(RunNumber(number), "reference", source, runs)


@pytest.mark.parametrize(("restarts", "finished", "number"), [(0, False, 2), (1, True, 2), (0, True, None)])
@pytest.mark.parametrize(("want", "resume"), [(TOY, "never"), (NewRun(TOY), "auto")])
def test_who_asks_for_a_new_run_after_a_finished_one_is_no_restart(want, resume, restarts, finished, number) -> None:
    """Interactive jobs start one command many times."""
    ours = replace(known(2, "toy", job="slurm:8", finished=finished), ours=True)
    assert choose_run(want, resume, None, [RUNS[0], ours], restarts=restarts).number == number


def test_a_number_that_no_run_has_is_an_unknown_reference() -> None:
    with pytest.raises(UnknownReference, match=r"run=9: there is no run-009 .* run-001, run-002, run-003"):
        choose_run(RunNumber(9), "auto", None, RUNS)
    with pytest.raises(UnknownReference, match="no runs yet"):
        choose_run(RunNumber(9), "auto", None, [])


def test_must_wants_a_run_of_this_name() -> None:
    with pytest.raises(NothingToResume, match="named 'gone'"):
        choose_run(RunName("gone"), "must", None, RUNS)
    with pytest.raises(NothingToResume, match="without a name"):
        choose_run(None, "must", None, RUNS)


@pytest.mark.parametrize(("slip", "name"), [("Toy", "toy"), ("to-y", "toy"), ("toyss", "toys")])
def test_a_slip_of_the_name_of_a_run_is_refused(slip: str, name: str) -> None:
    """Hazard 28: a typo in ``run=`` is no reason to begin at zero."""
    with pytest.raises(RefusedFresh, match="new_run"):
        choose_run(RunName(slip), "auto", None, [known(1, name)])
    assert choose_run(NewRun(RunName(slip)), "auto", None, [known(1, name)]).number is None


@pytest.mark.parametrize("text", ["3", "003"])
def test_the_number_of_a_run_as_text_is_no_name_for_a_new_one(text: str) -> None:
    """``run: "3"`` began at zero beside run-003, for a shell or a file had made text of the number."""
    with pytest.raises(RefusedFresh, match=rf"there is run-003; say run=3 to .*new_run\('{text}'\)"):
        choose_run(RunName(text), "auto", None, RUNS)
    assert choose_run(NewRun(RunName(text)), "auto", None, RUNS).number is None
    assert choose_run(RunName("4"), "auto", None, RUNS).number is None
    assert choose_run(RunName(text), "auto", None, [*RUNS, known(4, text)]).number == 4


@pytest.mark.parametrize("name", ["../x", "", "a b", "-x", "run-003", "last"])
def test_a_new_run_has_a_name_that_can_be_one(name: str) -> None:
    with pytest.raises(InvalidName):
        new_run(name)
