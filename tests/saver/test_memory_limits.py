"""How much memory may still be taken: read from fake machines, and felt in a real cgroup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_kit import fake_machine

from holdfast.errors import InvalidInput
from holdfast.saver.cgroups import cgroups
from holdfast.saver.memory_limits import Limit, available_memory, budget

GIB = 1 << 30
MEMORY_1 = "33 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
MEMORY_2 = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


@pytest.fixture
def machine(tmp_path):
    made = fake_machine(tmp_path)
    made.write("proc/meminfo", f"MemTotal:  99 kB\nMemAvailable:   {100 * GIB // 1024} kB\nBuffers:  5 kB\n")
    return made


def stat(version, *, inactive=0, active=0, mapped=0, dirty=0, writeback=0, shmem=0):
    own = {"inactive_file": inactive, "active_file": active, "shmem": shmem}
    own |= {"file_mapped": mapped, "file_dirty": dirty, "file_writeback": writeback}
    old = {"inactive_file": inactive, "active_file": active, "shmem": shmem}
    old |= {"mapped_file": mapped, "dirty": dirty, "writeback": writeback}
    rows = own if version == 2 else {**dict.fromkeys(old, 0), **{f"total_{key}": value for key, value in old.items()}}
    return "".join(f"{key} {value}\n" for key, value in rows.items())


def cgroup_1(machine, path, most, used, **pages):
    machine.write(f"sys/fs/cgroup/memory/{path}/memory.limit_in_bytes", f"{most}\n")
    machine.write(f"sys/fs/cgroup/memory/{path}/memory.usage_in_bytes", f"{used}\n")
    machine.write(f"sys/fs/cgroup/memory/{path}/memory.stat", stat(1, **pages))


def cgroup_2(machine, path, most, used, high="max", **pages):
    machine.write(f"sys/fs/cgroup/{path}/memory.max", f"{most}\n")
    machine.write(f"sys/fs/cgroup/{path}/memory.high", f"{high}\n")
    machine.write(f"sys/fs/cgroup/{path}/memory.current", f"{used}\n")
    machine.write(f"sys/fs/cgroup/{path}/memory.stat", stat(2, **pages))


def found(machine):
    return available_memory(machine.root)


@pytest.fixture(params=[1, 2])
def cgroup(request, machine):
    """Both versions must give the same answers."""
    lines = {1: ("4:memory:/a/b\n0::/", MEMORY_1), 2: ("0::/a/b", MEMORY_2)}
    cgroup, mounts = lines[request.param]
    machine.process("self", pids=[77], cgroup=cgroup, mounts=mounts)
    make = {1: cgroup_1, 2: cgroup_2}[request.param]
    return lambda path, most, used, **pages: make(machine, path, most, used, **pages)


def test_without_limits_it_is_what_the_machine_has(machine):
    machine.process("self", pids=[77])
    assert found(machine) == Limit(bytes=100 * GIB, why="100.0 GiB are available on this machine")


def test_a_limit_less_what_is_in_use(machine, cgroup):
    cgroup("a/b", 10 * GIB, 4 * GIB)
    assert found(machine).bytes == 6 * GIB
    assert "6.0 GiB are left of the 10.0 GiB that " in found(machine).why


def test_page_cache_can_be_had_back_and_shared_memory_cannot(machine, cgroup):
    cgroup("a/b", 10 * GIB, 9 * GIB, inactive=3 * GIB, active=2 * GIB, shmem=4 * GIB)
    assert found(machine).bytes == 6 * GIB
    assert "(4.0 GiB in use)" in found(machine).why


@pytest.mark.parametrize("kind", ["mapped", "dirty", "writeback"])
def test_page_cache_that_is_needed_or_not_written_yet_is_not_counted(machine, cgroup, kind):
    cgroup("a/b", 10 * GIB, 9 * GIB, inactive=3 * GIB, active=2 * GIB, **{kind: GIB})
    assert found(machine).bytes == 5 * GIB


@pytest.mark.parametrize(("own", "above", "left"), [(10, 50, 9), (50, 20, 18)])
def test_the_tightest_of_a_cgroup_and_those_above_it_counts(machine, cgroup, own, above, left):
    cgroup("a/b", own * GIB, GIB)
    cgroup("a", above * GIB, 2 * GIB)
    cgroup("", 90 * GIB, 3 * GIB)
    assert found(machine).bytes == left * GIB


def test_a_limit_above_what_the_machine_has_does_not_help(machine, cgroup):
    cgroup("a/b", 500 * GIB, GIB)
    assert found(machine).bytes == 100 * GIB


def test_a_cgroup_over_its_limit_has_nothing_left(machine, cgroup):
    cgroup("a/b", GIB, 2 * GIB)
    assert found(machine).bytes == 0


@pytest.mark.parametrize("none", ["max", str(2**63 - 4096)])
def test_no_limit_is_none(machine, cgroup, none):
    cgroup("a/b", none, 200 * GIB)
    assert found(machine).bytes == 100 * GIB


def test_what_slows_everybody_down_is_a_limit(machine):
    machine.process("self", pids=[77], cgroup="0::/a", mounts=MEMORY_2)
    cgroup_2(machine, "a", 10 * GIB, GIB, high=8 * GIB)
    assert found(machine).bytes == 7 * GIB
    assert "memory.high" in found(machine).why


def test_a_cgroup_without_counters_is_passed_over(machine, cgroup):
    cgroup("a/b", 10 * GIB, "")
    assert found(machine).bytes == 100 * GIB


def test_this_machine_has_some():
    limit = available_memory()
    assert 0 < limit.bytes < 1 << 50
    assert limit.why.endswith("are available on this machine") or "are left of the" in limit.why


HOG = """
import os, sys
from pathlib import Path
from holdfast.saver.memory_limits import available_memory
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
limit = available_memory()
hold = bytearray(int(limit.bytes * float(sys.argv[2])))
hold[::4096] = b"x" * len(hold[::4096])
print(limit.bytes, limit.why, flush=True)
"""


@pytest.fixture
def small_cgroup():
    """A real cgroup of 64 MiB, of either version."""
    for one in cgroups():
        if one.folders and (not one.controllers or "memory" in one.controllers):
            folder = one.folders[0] / f"holdfast-test-{uuid.uuid4().hex[:8]}"
            name = "memory.limit_in_bytes" if one.controllers else "memory.max"
            try:
                folder.mkdir()
                if not (folder / name).exists():
                    folder.rmdir()
                    continue
                (folder / name).write_text(str(64 << 20))
            except OSError:
                continue
            yield folder
            folder.rmdir()
            return
    pytest.skip("may not make a cgroup with a memory limit here")


@pytest.mark.parametrize(("share", "survives"), [(0.8, True), (1.5, False)])
def test_the_kernel_agrees(small_cgroup, share, survives):
    """What is said to be available can be taken; half as much again is the end of the process, swap or no swap."""
    swap = small_cgroup / "memory.memsw.limit_in_bytes"
    for limit in (swap, small_cgroup / "memory.swap.max"):
        if limit.exists():
            limit.write_text(str(64 << 20) if limit == swap else "0")
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", HOG, small_cgroup, str(share)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if survives else -signal.SIGKILL), done.stderr
    if survives:
        size, why = done.stdout.split(maxsplit=1)
        assert int(size) < 64 << 20
        assert Path(small_cgroup).name in why


LIMIT = Limit(bytes=10 * GIB, why="10.0 GiB are available")


def test_half_of_what_is_available_is_taken_unless_asked():
    assert budget(None, LIMIT).bytes == 5 * GIB
    assert budget(None, LIMIT).why == "half of what may be taken: 10.0 GiB are available"
    assert 0 < budget(None).bytes <= available_memory().bytes


@pytest.mark.parametrize(("asked", "size"), [("8GB", 8 * 10**9), ("8GiB", 8 * GIB), (3, 3), ("1.5gib", 3 * GIB // 2)])
def test_what_is_asked_for_is_granted(asked, size):
    assert budget(asked, LIMIT).bytes == size
    assert budget(asked, LIMIT).why.endswith("were asked for")


def test_more_than_there_is_cannot_be_had():
    found = budget("64GiB", LIMIT)
    assert (found.bytes, found.why) == (10 * GIB, "64.0 GiB were asked for, but 10.0 GiB are available")


@given(st.integers(1, 1 << 50) | st.none(), st.integers(0, 1 << 45))
def test_no_budget_is_larger_than_what_is_available(asked, size):
    assert budget(asked, Limit(bytes=size, why="")).bytes <= size


@pytest.mark.parametrize("asked", [0, -1, True, 1.5, "much", "", "0GB", b"8GB", []])
def test_nonsense_is_refused(asked):
    with pytest.raises(InvalidInput, match=r"^ram_budget"):
        budget(asked, LIMIT)
