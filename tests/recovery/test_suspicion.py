"""What is made of launches that ended too soon: hazard 11 and users-ask 5, as facts alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from holdfast.catalog.journal.attempts import Noted
from holdfast.catalog.journal.events import Ending, Exit
from holdfast.records import Target
from holdfast.recovery.launching.crash_loops import end_of
from holdfast.recovery.launching.suspicion import STORM, Asker, Blame, Life, blame_of, decide, wanted

ASKER = Asker(same="job, command, config, code")
BUG = "KeyError: 'loss'"
OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB"


def at(step: int) -> Target:
    return Target(run=1, launch=1, timeline=0, step=step, id=f"{step:016x}")


def lived(*ends: tuple[int | None, str], **facts: object) -> list[Life]:
    """Launches, the oldest first, as (step of the checkpoint or None, exception or nothing for a kill)."""
    made = [
        Life(
            launch=number + 1,
            same=ASKER.same,
            origin=None if step is None else at(step),
            ended=Ending.FAILED if error else Ending.KILLED,
            error=error,
        )
        for number, (step, error) in enumerate(ends)
    ]
    return [replace(one, **facts) for one in reversed(made)]


def test_one_crash_is_an_accident():
    for end in ((400, ""), (400, BUG), (None, BUG)):
        verdict = decide(ASKER, lived(end))
        assert (verdict.suspect, verdict.stop) == (None, "")


def test_what_has_killed_two_launches_in_a_row_is_suspect():
    verdict = decide(ASKER, lived((500, ""), (500, "")))
    assert verdict.suspect == at(500)
    assert "launches 1 and 2" in verdict.why
    assert not verdict.stop


def test_it_stays_suspect_while_the_older_one_is_tried():
    assert decide(ASKER, lived((500, ""), (500, ""), (400, ""))).suspect == at(500)


def test_the_same_end_from_two_checkpoints_is_no_fault_of_either():
    """No more than one checkpoint is ever passed over, so nothing rolls back for ever."""
    verdict = decide(ASKER, lived((500, ""), (500, ""), (400, ""), (400, "")))
    assert (verdict.suspect, verdict.stop) == (None, "")


@pytest.mark.parametrize("ended", [Ending.PREEMPTED, Ending.COMPLETED, Ending.LEFT])
def test_a_launch_that_ended_well_is_no_sign_of_anything(ended):
    lives = lived((500, ""), (500, ""), (500, ""))
    assert decide(ASKER, [replace(lives[0], ended=ended), *lives[1:]]).suspect is None


@pytest.mark.parametrize("facts", [{"saved": True}, {"steps": 50}])
def test_a_launch_that_got_on_takes_the_suspicion_away(facts):
    lives = lived((500, ""), (500, ""), (500, ""))
    assert decide(ASKER, [lives[0], replace(lives[1], **facts), lives[2]]).suspect is None


def test_the_same_steps_made_again_and_again_are_no_progress():
    """A training diverges 60 steps after its newest checkpoint, and its script raises: users-ask 5, once an hour."""
    assert not decide(ASKER, lived(*[(4, BUG)] * 2, steps=60)).stop, "the second may have come farther"
    assert BUG in decide(ASKER, lived(*[(4, BUG)] * 3, steps=60)).stop
    storm = lived(*[(4, "")] * (STORM + 2), steps=60)
    assert "got on" in decide(ASKER, storm).stop
    assert decide(ASKER, storm[1:]) == decide(ASKER, []), "a checkpoint that bears 60 steps is not suspect"


def test_steps_beyond_all_that_were_made_before_are_progress():
    """Killed at any time before its first save, a launch may come as far as that one day."""
    lives = [replace(life, steps=60 * life.launch) for life in lived(*[(4, "")] * 20)]
    assert not decide(ASKER, lives).stop


@pytest.mark.parametrize("asker", [Asker(same="another code, config or command"), Asker(same=None)])
@pytest.mark.parametrize("end", [(500, ""), (500, BUG)])
def test_everything_is_void_as_soon_as_something_has_changed(asker, end):
    verdict = decide(asker, lived(*[end] * 9))
    assert (verdict.suspect, verdict.stop) == (None, "")


def test_an_exception_of_the_script_stops_it_and_no_checkpoint_is_suspect():
    verdict = decide(ASKER, lived((500, BUG), (500, BUG)))
    assert verdict.suspect is None
    assert BUG in verdict.stop
    assert "launches 1 and 2" in verdict.stop


def test_the_same_exception_from_two_checkpoints_is_not_the_checkpoint():
    verdict = decide(ASKER, lived((500, BUG), (502, BUG)))
    assert "that is not the checkpoint" in verdict.stop
    assert "run-001@500" in verdict.stop
    assert "run-001@502" in verdict.stop


def test_two_exceptions_that_differ_are_not_one():
    assert not decide(ASKER, lived((500, BUG), (500, "KeyError: 'lr'"))).stop


def test_an_exception_that_names_an_address_in_memory_is_the_same_every_time():
    errors = [f"TypeError: <Loss object at 0x7f{number}> is not callable" for number in (1, 2)]
    assert decide(ASKER, lived(*[(500, error) for error in errors])).stop


def test_out_of_memory_may_be_the_checkpoint_until_another_one_ends_like_that():
    assert decide(ASKER, lived((500, OOM.format(1)), (500, OOM.format(2)))).suspect == at(500)
    assert "that is not the checkpoint" in decide(ASKER, lived((500, OOM.format(1)), (400, OOM.format(2)))).stop


def test_a_network_that_is_away_says_nothing_of_checkpoint_and_script():
    verdict = decide(ASKER, lived(*[(500, "ConnectionResetError: [Errno 104]")] * STORM))
    assert (verdict.suspect, verdict.stop) == (None, "")


@pytest.mark.parametrize("error", ["", "PeerLost: rank 3", "OSError: [Errno 5]", "SaveFailed: full"])
def test_a_restart_storm_ends_whatever_it_is_made_of(error):
    assert not decide(ASKER, lived(*[(None, error)] * STORM)).stop
    assert "1, 2, 3, 4, 5 and 6" in decide(ASKER, lived(*[(None, error)] * (STORM + 1))).stop


def _exit(rank: int, how: Ending, error: str = "") -> Exit:
    return Exit(launch=1, timeline=0, step=5, step_seconds=1.0, how=how, wall_seconds=2.0, error=error, rank=rank)


def test_a_rank_that_the_others_have_lost_and_that_has_said_nothing_was_killed():
    """A checkpoint that kills one rank of two kills as well; ranks that end without an error say nothing."""
    lost, storage = (Ending.FAILED, "PeerLost: nothing is heard of rank 1"), (Ending.FAILED, "StorageUnavailable: EIO")
    assert end_of([_exit(0, *lost)], Noted(), world=2) == (Ending.KILLED, "")
    assert end_of([], Noted(error=lost[1]), world=2) == (Ending.KILLED, ""), "in the middle of the load"
    assert end_of([_exit(0, *lost), _exit(1, *lost)], Noted(), world=2) == lost, "the network"
    assert end_of([_exit(0, *lost), _exit(1, Ending.FAILED, BUG)], Noted(), world=3) == (Ending.FAILED, BUG)
    assert end_of([_exit(0, *storage)], Noted(), world=2) == storage
    assert end_of([_exit(0, *storage), _exit(1, *lost)], Noted(), world=3)[0] is Ending.FAILED
    assert end_of([_exit(0, Ending.PREEMPTED)], Noted(), world=2) == (Ending.PREEMPTED, "")


def test_a_launch_that_never_began_is_not_counted():
    assert not decide(ASKER, lived(*[(None, "")] * 20, began=False)).stop
    assert not decide(ASKER, lived(*[(500, "RefusedFresh: none can be used")] * 20)).stop


def test_what_was_stopped_stays_stopped_until_something_changes():
    stopped = Life(launch=9, same=ASKER.same, began=False, stopped="launches 3 and 4 have all ended with X")
    assert decide(ASKER, [stopped]).stop == stopped.stopped
    assert not decide(Asker(same="fixed"), [stopped]).stop


def test_another_torchrun_without_an_id_is_another_job():
    lives = lived((500, BUG), (500, BUG))
    assert not decide(ASKER, [replace(lives[0], first=True), lives[1]]).stop


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        ("ValueError: x", Blame.PROGRAM),
        ("FileNotFoundError: data.bin", Blame.PROGRAM),
        ("StateMismatch: 3 entries", Blame.PROGRAM),
        ("MyOwnError", Blame.PROGRAM),
        ("MemoryError", Blame.UNKNOWN),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Blame.UNKNOWN),
        ("DistBackendError: NCCL error", Blame.SURROUNDINGS),
        ("TimeoutError", Blame.SURROUNDINGS),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", Blame.SURROUNDINGS),
        ("StorageUnavailable: EIO", Blame.SURROUNDINGS),
    ],
)
def test_who_is_to_blame(error, blame):
    assert blame_of(error) is blame


def _any_life(dice: random.Random, number: int) -> Life:
    error = dice.choice(["", "", BUG, "ValueError: y", OOM.format(number), "PeerLost: 1", "OSError: [Errno 5]"])
    return Life(
        launch=number,
        same=dice.choice([ASKER.same] * 6 + ["other", None]),
        first=dice.random() < 0.05,
        began=dice.random() < 0.9,
        origin=dice.choice([None, at(300), at(400), at(500)]),
        ended=Ending.FAILED if error else dice.choice([Ending.KILLED] * 6 + [Ending.PREEMPTED]),
        error=error,
        steps=dice.choice([0, 1, 49, 49, 0, 0, 0, 50]),
        saved=dice.random() < 0.05,
    )


def test_whatever_has_happened_the_answer_is_careful():
    """Of any history: never both answers, never a checkpoint that only the script has failed on, never an old cause."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    stops = suspects = 0
    for _ in range(3000):
        lives = [_any_life(dice, number) for number in range(dice.randrange(12), 0, -1)]
        verdict = decide(ASKER, lives)
        stops, suspects = stops + bool(verdict.stop), suspects + (verdict.suspect is not None)
        cut = next((at for at, life in enumerate(lives) if not wanted(ASKER, life)), len(lives)) + 1
        assert verdict == decide(ASKER, lives[:cut]), "what is not wanted is not looked at"
        assert not (verdict.stop and verdict.suspect)
        if verdict.suspect is not None:
            fatal = [life for life in lives if life.origin == verdict.suspect and life.blame is Blame.UNKNOWN]
            assert len(fatal) >= 2
            assert all(life.same == ASKER.same for life in lives[: lives.index(fatal[1]) + 1])
    assert stops > 50
    assert suspects > 0
