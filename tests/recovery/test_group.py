"""Ranks that agree, with real processes: values, errors, and what becomes of a wait when somebody is gone.

The worlds are forked from one process (tests/kits/group_worker.py), and a rank that has hung ends with another status.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import errors
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.recovery.environment.launcher import LauncherFacts
from holdfast.recovery.ranks.group import Alone, open_group

SOAK = pytest.mark.soak

WORKER = Path(__file__).parents[1] / "kits" / "group_worker.py"
# Every new connection to the store asks for the name of an address: without an answer that lasts five seconds.
ENVIRONMENT = {**os.environ, "RES_OPTIONS": "timeout:1 attempts:1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
ENVIRONMENT |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
GROUP_ENDS = "end this rank too and start the job again"


@pytest.fixture(scope="module")
def worker():
    with subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        yield process
        process.stdin.close()
        process.wait(10)


@pytest.fixture
def world(worker):
    """Plays a world; gives what each rank said."""

    def play(name, size=2, timeout=6.0, **order):
        worker.stdin.write(json.dumps({"play": name, "size": size, "timeout": timeout, **order}) + "\n")
        worker.stdin.flush()
        ranks = json.loads(worker.stdout.readline())
        ended = [rank for rank in range(size) if rank != order.get("stops")]
        assert [ranks[rank]["status"] for rank in ended] == [0] * len(ended), ranks
        return [ranks[rank]["said"] for rank in range(size)]

    return play


def facts(world=1):
    return LauncherFacts(job=None, restarts=0, rank=0, world=world)


# --- what is agreed


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_have_what_was_told_gathered_and_reduced(world, size):
    for rank, said in enumerate(world("values", size)):
        assert said[:8] == [
            [rank, size, 500, True],
            [None, 0],
            3_000_000,
            rank * 10,
            ["r" * other for other in range(size)],
            list(range(size)),
            0,
            None,
        ]
        assert said[8:10] == [[size - 1, 0, 2**62], None]
        assert said[10][0] == "InvalidInput"


def test_every_class_of_error_reaches_the_other_ranks(world):
    first, last = world("failures", 2)
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, HoldfastError)]
    assert first.pop() == last.pop() == [kind.__name__ for kind in kinds]
    told = [[kind.__name__, f"no {kind.kind}", []] for kind in kinds]
    from_first = [[kind.__name__, f"rank 0: no {kind.kind}", []] for kind in kinds]
    from_last = [[kind.__name__, f"rank 1: no {kind.kind}", []] for kind in kinds]
    assert (first[::2], first[1::2]) == (told, from_last)
    assert (last[::2], last[1::2]) == (from_first, told)


def test_a_foreign_error_is_named_and_one_of_ones_own_stays_itself(world):
    first, second, *_ = world("foreign", 4)
    assert first[0] == ["KeyError", "'weights'", []]
    assert second[0] == ["HoldfastError", "rank 0: KeyError: 'weights'", []]
    assert first[1] == ["HoldfastError", "rank 1: ValueError: from 1", False]
    assert second[1] == ["ValueError", "from 1", True]


def test_what_cannot_be_sent_is_refused_on_all_ranks_and_the_group_goes_on(world):
    said = world("foreign", 4)
    for rank in said:
        assert [kind for kind, *_ in rank[2:7]] == ["UnsupportedValue"] * 3 + ["InvalidInput"] * 2
        assert rank[7] == "well"
    assert said[3][2][1].startswith("rank 0: what rank 0 tells cannot be sent: Encoding objects of type object")
    assert "is no <class 'int'>" in said[3][3][1]
    assert "68157445 bytes" in said[3][4][1]
    assert "4 ranks of up to 41943040 bytes" in said[0][5][1]
    assert "3 to 6 flags" in said[0][6][1]


# --- beside the user


@pytest.mark.parametrize("size", [2, 4])
def test_collectives_of_the_user_may_lie_anywhere_in_between(world, size):
    assert world("beside", size) == [[True]] * size


def test_default_device_inference_mode_and_timeouts_of_the_user_do_not_matter(world):
    assert world("strange") == [["well", [[1], [1, 0]], 2, 60.0]] * 2


def test_a_post_waits_for_a_rank_that_evaluates_for_longer_than_the_deadline(world):
    assert world("late", timeout=4.0) == [[[1]], [[1]]]


def test_the_backend_of_the_user_need_not_carry_anything(world):
    assert world("fake", backend="fake") == [[[True, float(rank), "well", rank]] for rank in range(2)]


def test_groups_that_were_closed_leave_no_thread_and_no_descriptor(world):
    assert world("many", timeout=20.0) == [[[True, 0, 0]]] * 2


@pytest.mark.parametrize("awaited", [True, False])
def test_a_rank_that_closes_first_takes_nothing_from_the_others(world, awaited):
    assert world("closing", 4, timeout=20.0, awaited=awaited) == [[True]] * 4


def test_the_last_words_of_all_ranks_are_heard_by_all_or_by_none(world):
    words = [f"from {rank}" for rank in range(4)]
    assert world("parting", 4, timeout=20.0, busy=[], seconds=10.0) == [[words, [3]]] * 4


@pytest.mark.parametrize("busy", [0, 2])
def test_who_ends_does_not_disturb_those_that_train_on(world, busy):
    said = world("parting", 4, timeout=20.0, busy=[busy], seconds=0.2)
    assert said == [[[3]] if rank == busy else [None, [3]] for rank in range(4)]


@pytest.mark.parametrize("late", [0, 1])
def test_a_word_that_was_left_long_ago_is_no_news(world, late):
    """One rank fails, waits and goes; the other one fails of that, later: they have not failed together."""
    said = world("parting", 2, timeout=20.0, busy=[], seconds=0.3, late={str(late): 1.5})
    assert said == [[None, [1]]] * 2


@pytest.mark.parametrize("refuse", [0, 1])
def test_a_refusal_is_heard_by_who_waits(world, refuse):
    said = world("parting", 2, timeout=20.0, busy=[], seconds=10.0, refuse=[refuse])
    heard = said[1 - refuse][0]
    assert f"from {refuse}" in heard


def test_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(WORKER), "launched", "20"], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    said = sorted(line for line in ended.stdout.splitlines() if line.startswith("["))
    assert said == [json.dumps([rank, word]) for rank in range(2) for word in ("well from 0", [1])]


# --- ranks that are gone


@pytest.mark.parametrize("wait", ["told", "result", *(pytest.param(w, marks=SOAK) for w in ("agreed", "everywhere"))])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_noticed_by_all_others(world, wait, victim):
    said = world("lost", 4, victim=victim, by="SIGKILL", stops=victim, wait=wait)
    _assert_lost(said, victim)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("wait", ["agreed", "result"])
def test_a_stopped_rank_is_noticed_when_the_deadline_is_over(world, wait, victim):
    said = world("lost", 2, victim=victim, by="SIGSTOP", stops=victim, wait=wait, timeout=8.0)
    _assert_lost(said, victim)
    assert "got no answer within 8 s" in said[1 - victim][0][1]


@pytest.mark.parametrize("by", ["SIGSTOP", "SIGKILL"])
def test_what_is_in_flight_does_not_keep_a_rank_that_gave_up(world, by):
    _assert_lost(world("lost", 4, victim=1, by=by, stops=1, wait="told", flying=True, timeout=8.0), 1)


def _assert_lost(said, victim):
    """All others say so, name the rank where the store is still there to ask, and then never wait again."""
    for rank, words in enumerate(said):
        if rank == victim:
            continue
        lost, again, result, post, at_once = words
        assert lost[0] == "PeerLost", words
        assert lost[1].startswith(f"rank {rank} "), words
        assert GROUP_ENDS in lost[1], words
        # Rank 0 kept the store here: without it nobody can be asked.
        assert lost[2] == ([victim] if victim else []), words
        assert (f"nothing is heard of rank {victim}," if victim else "does not answer either") in lost[1], words
        assert again == result == post == lost, words
        assert at_once is True


def test_a_rank_that_alone_uses_the_checkpointer_is_told_who_does_not(world):
    (kind, text, ranks), *_ = world("missing", 4, timeout=4.0, absent=[1, 3, 2])[0]
    assert (kind, ranks) == ("PeerLost", [1, 2, 3])
    assert text.startswith("ranks 1, 2, 3 did not come within 4 s")
    assert "Checkpointer must be used on every rank, not under `if rank == 0`" in text


@pytest.mark.parametrize("absent", [0, 1])
def test_one_rank_that_does_not_come_is_named_by_the_others(world, absent):
    said = world("missing", 4, timeout=4.0, absent=[absent])
    assert [words[0][2] for rank, words in enumerate(said) if rank != absent] == [[absent]] * 3


def test_a_store_that_does_not_answer_is_not_waited_for(world):
    _, ((kind, text, _),) = world("stopped_server", timeout=4.0, stops=0)
    assert kind == "PeerLost"
    assert "could not meet the other ranks within 4 s" in text


def test_ctrl_c_on_one_rank_reaches_the_others(world):
    first, ((kind, text, _),) = world("interrupted")
    assert first[0] == "interrupted"
    assert first[1][0] == kind == "PeerLost"
    assert "rank 0 was interrupted in told('a choice') (KeyboardInterrupt)" in text


def test_handlers_of_signals_run_while_a_rank_waits(world):
    rang, early, after = world("alarmed", timeout=20.0)[1]
    assert (rang[:2], early, after[0]) == (["TimeoutError", "rang"], True, "PeerLost")


def test_a_process_ends_although_what_it_posted_never_does(tmp_path):
    """As a program ends that nobody closes anything in: the interpreter takes everything down."""
    with socket.create_server(("localhost", 0)) as listening:
        port = listening.getsockname()[1]
    env = {**ENVIRONMENT, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(WORKER), "last_words", "6"]
    with (
        (tmp_path / "said").open("w+") as out,
        subprocess.Popen(command, env={**env, "RANK": "0"}, stdout=out) as ends,
        subprocess.Popen(command, env={**env, "RANK": "1"}) as stops,
    ):
        try:
            assert ends.wait(300) == 0
        finally:
            stops.kill()
            ends.kill()
        assert json.loads((tmp_path / "said").read_text())[1][0] == "PeerLost"


# --- ranks that do not do the same


@pytest.mark.parametrize(
    ("calls", "named"),
    [
        ([["told"], ["agreed"]], ["told('a choice'), its call 1", "agreed('a deed'), its call 1"]),
        ([["told", "flags"], ["told", "told"]], ["everywhere('flags'), its call 2", "told('a choice'), its call 2"]),
        ([["post", "result"], ["told"]], ["post(2 words), its call 1", "told('a choice'), its call 1"]),
    ],
)
def test_ranks_in_different_calls_are_told_in_which(world, calls, named):
    for rank, words in enumerate(world("differ", calls=calls)):
        kind, text, _ = words[-1]
        assert kind == "InvalidInput", words
        assert f"the ranks do not make the same calls: rank {rank} is in {named[rank]}, " in text
        assert f"rank {1 - rank} is in {named[1 - rank]}" in text or rank


def test_a_rank_that_is_in_no_call_is_missed(world):
    ((kind, _, ranks),), _ = world("differ", calls=[["told"], []])
    assert (kind, ranks) == ("PeerLost", [1])


@pytest.mark.parametrize("first", ["told", "flags", "agreed"])
def test_a_post_that_met_another_call_never_ends_the_process(world, first):
    """Messages of different lengths that meet would; gloo then aborts."""
    said = world("differ", 4, calls=[["post", "told", "flags"], [first], ["post", "result"], ["post", first]])
    assert all(words[-1][0] == "InvalidInput" for words in said), said


# --- one rank


def test_one_process_is_alone():
    group = open_group(facts(), 1.0)
    assert isinstance(group, Alone)
    assert (group.rank, group.size) == (0, 1)
    assert group.told(lambda: 5, "a number") == group.agreed(lambda: 5, "a deed") == 5
    assert (group.gathered(b"x", "names"), group.everywhere(bytearray(b"\1\0"), "flags")) == ([b"x"], b"\1\0")
    assert group.result() is None
    group.post([1, 2])
    assert (group.result(), group.result()) == ([1, 2], None)
    group.close()


def test_a_world_of_one_is_alone_whatever_the_environment_says(world):
    assert world("alone", 1) == [[True]]


def test_several_ranks_need_torch_distributed():
    with pytest.raises(InvalidInput, match=r"call torch\.distributed\.init_process_group\(\) before"):
        open_group(facts(world=2), 1.0)
