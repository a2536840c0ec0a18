"""Whether the process behind a hold is still there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from holdfast.catalog import owners
from holdfast.catalog.owners import Liveness, liveness, this_process
from holdfast.catalog.waiting import Waiter

HERE = this_process()


def owned_by(pid: int, started: str | None = None):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return msgspec.structs.replace(HERE, pid=pid, started=started or fields[19])


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_this_process_is_alive():
    assert liveness(HERE) is Liveness.ALIVE


def test_a_running_child_is_alive_and_a_killed_one_is_dead_before_and_after_it_is_reaped(child):
    owner = owned_by(child.pid)
    assert liveness(owner) is Liveness.ALIVE
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert liveness(owner) is Liveness.DEAD, "a zombie"
    child.wait()
    assert liveness(owner) is Liveness.DEAD


def test_a_stopped_process_is_alive(child):
    """Its publish will come when it is continued."""
    child.send_signal(signal.SIGSTOP)
    assert liveness(owned_by(child.pid)) is Liveness.ALIVE


def test_a_recycled_pid_is_not_taken_for_the_process_that_had_it(child):
    assert liveness(owned_by(child.pid, started="12345")) is Liveness.DEAD


@pytest.fixture
def machine(monkeypatch):
    """A function: lets this machine have an id, or none."""

    def identified(id_: str):
        owners._host.cache_clear()
        monkeypatch.setattr(owners, "_machine", lambda: id_)
        return this_process()

    yield identified
    owners._host.cache_clear()


def test_after_a_reboot_of_a_machine_that_has_an_id_everybody_is_dead(machine):
    assert liveness(msgspec.structs.replace(machine("a" * 32), boot="another")) is Liveness.DEAD


def test_a_process_of_another_machine_with_the_same_host_name_is_not_taken_for_dead(machine):
    """Two machines of one name on a shared filesystem: their boot ids differ, and both are alive."""
    nameless = machine("")
    assert liveness(msgspec.structs.replace(nameless, boot="another", pid=2**22)) is Liveness.REBOOTED
    away = msgspec.structs.replace(machine("a" * 32), boot="another")
    owners._host.cache_clear()
    machine("b" * 32)
    assert liveness(away) is Liveness.UNKNOWN


def test_the_id_of_a_machine_is_not_believed_in_a_container(monkeypatch):
    """Files and namespace numbers of an image are the same on many machines."""
    owners._machine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_namespace", lambda: "/4026532000")
        assert owners._machine() == ""
        owners._machine.cache_clear()
        patch.setattr(owners, "_namespace", lambda: owners._FIRST_NAMESPACE)
        patch.setattr(owners, "_is_from_image", lambda: True)
        assert owners._machine() == ""
    owners._machine.cache_clear()


def test_a_root_filesystem_on_layers_is_one_of_an_image(monkeypatch):
    def mounted(line):
        monkeypatch.setattr(Path, "read_text", lambda self, **_: f"proc /proc proc rw 0 0\n{line}\n")
        return owners._is_from_image()

    assert mounted("overlay / overlay rw,lowerdir=/a 0 0")
    assert not mounted("/dev/sda / ext4 rw 0 0")


def test_nothing_is_known_of_processes_on_other_hosts():
    away = msgspec.structs.replace(HERE, host="another", boot="another", pid=2**22)
    assert liveness(away) is Liveness.UNKNOWN


def test_a_forked_child_is_somebody_else():
    code = """
import os
from holdfast.catalog.owners import this_process
before = this_process()
if os.fork() == 0:
    print(this_process().pid == os.getpid() != before.pid, flush=True)
    os._exit(0)
os.wait()
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "True\n"


class FakeTime:
    def __init__(self):
        self.time, self.pauses = 0.0, []

    def sleep(self, seconds):
        self.time += seconds
        self.pauses.append(seconds)


def test_waiting_ends_at_the_deadline_with_growing_pauses():
    fake = FakeTime()
    waiter = Waiter(now=lambda: fake.time, sleep=fake.sleep)
    assert waiter.until(lambda: False, seconds=5) is False
    assert fake.time == pytest.approx(5)
    assert fake.pauses[:3] == [0.01, 0.02, 0.04]
    assert max(fake.pauses) == 0.5


def test_waiting_ends_as_soon_as_it_is_over():
    fake = FakeTime()
    waiter = Waiter(now=lambda: fake.time, sleep=fake.sleep)
    assert waiter.until(lambda: fake.time > 1, seconds=60) is True
    assert fake.time < 2


def test_a_deadline_of_zero_asks_once():
    asked = []
    assert Waiter(sleep=time.sleep).until(lambda: bool(asked.append(1)), seconds=0) is False
    assert asked == [1]
