"""Threads that are shared by all calls: order, errors, forks, and work that starts work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from holdfast.packs.threads import MANY, in_parallel, start


def test_results_come_in_the_order_of_the_items():
    assert in_parallel(lambda n: n * n, range(100)) == [n * n for n in range(100)]


def test_items_are_worked_on_at_the_same_time():
    meeting = threading.Barrier(4, timeout=30)
    assert in_parallel(lambda n: meeting.wait() is not None and n, range(4)) == [0, 1, 2, 3]


def test_an_error_is_raised_when_all_have_ended():
    ended = []

    def work(n):
        if n == 1:
            raise OSError("the second one")
        ended.append(n)

    with pytest.raises(OSError, match="the second one"):
        in_parallel(work, range(20))
    assert sorted(ended) == [0, *range(2, 20)]


def test_work_that_starts_work_does_not_wait_for_itself():
    found = in_parallel(lambda n: in_parallel(lambda m: n * m, range(3)), range(4 * MANY))
    assert found[-1] == [0, 4 * MANY - 1, 2 * (4 * MANY - 1)]


def test_a_forked_child_has_threads_of_its_own():
    assert in_parallel(str, range(3)) == ["0", "1", "2"]  # there are threads now
    child = os.fork()
    if not child:
        os._exit(0 if in_parallel(str, range(3)) == ["0", "1", "2"] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_program_ends_although_the_threads_are_there():
    program = "from holdfast.packs.threads import in_parallel; print(in_parallel(str, range(3)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "['0', '1', '2']\n"


def test_one_thing_can_be_started_and_awaited():
    assert start(lambda: 7).result(timeout=30) == 7
