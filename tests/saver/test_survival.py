"""What a staged checkpoint survives: found on fake machines, and confirmed by the kernel on this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from machine_kit import fake_machine

from holdfast.saver.survival import INLINE, Facts, Survival, Survives, decide, gather, probe

CONTAINER = "pid:[4026532841]"


@pytest.fixture
def machine(tmp_path):
    return fake_machine(tmp_path)


def probed(machine, environ=None):
    return probe(machine.root, environ=environ or {}, pid=77)


def test_a_plain_process_is_survived(machine):
    machine.process("77")
    found = probed(machine)
    assert found == Survival(survives=Survives.PROCESS)
    assert str(found) == (
        "a staged checkpoint survives a SIGKILL of the trainer, not the end of its container, job or machine"
    )


def test_nothing_survives_the_first_process_of_a_container(machine):
    machine.process("77", pids=[1], parent=0, namespace=CONTAINER)
    assert probed(machine).survives is Survives.NOTHING
    assert "process 1 of its container" in str(probed(machine))


def test_the_first_process_is_known_through_the_proc_of_another_namespace(machine):
    """``unshare --pid`` without a proc of its own: getpid() says 1, and /proc/1 is somebody else."""
    machine.process("77", pids=[77, 1], namespace=CONTAINER)
    assert gather(machine.root, environ={}, pid=77).is_first


def test_a_container_may_end_with_the_shell_that_started_the_trainer(machine):
    machine.process("1000", name="bash", pids=[1000, 1], namespace=CONTAINER)
    machine.process("1001", name="torchrun", pids=[1001, 7], parent=1000, namespace=CONTAINER)
    machine.process("77", pids=[77, 8], parent=1001, namespace=CONTAINER)
    assert gather(machine.root, environ={}, pid=77) == Facts(started_by_first="bash")
    assert "process 1 (bash)" in str(probed(machine))


def test_the_first_process_of_a_machine_stays_whatever_its_name(machine):
    machine.process("2000", name="init.sh", pids=[1], parent=0)
    machine.process("77", parent=2000)
    assert probed(machine).survives is Survives.PROCESS


@pytest.mark.parametrize("name", ["systemd", "sshd", "supervisord"])
def test_a_container_does_not_end_while_its_first_process_stays(machine, name):
    machine.process("1000", name=name, pids=[1000, 1], namespace=CONTAINER)
    machine.process("77", pids=[77, 8], parent=1000, namespace=CONTAINER)
    assert probed(machine).survives is Survives.PROCESS


def test_who_came_into_a_container_from_outside_does_not_end_it(machine):
    """As with ``docker exec``: the parent is not visible."""
    machine.process("77", pids=[77, 8], parent=0, namespace=CONTAINER)
    assert probed(machine).survives is Survives.PROCESS


def test_parents_that_form_a_loop_end_the_search(machine):
    machine.process("77", pids=[8], parent=77, namespace=CONTAINER)
    assert probed(machine).survives is Survives.PROCESS


@pytest.mark.parametrize("place", ["job", "job/step", ""])
def test_an_out_of_memory_kill_takes_the_saver_where_a_cgroup_dies_as_one(machine, place):
    machine.process("77", cgroup="0::/job/step")
    for folder in ("job", "job/step", ""):
        machine.write(f"sys/fs/cgroup/{folder}/memory.oom.group", "1\n" if folder == place else "0\n")
    found = probed(machine)
    assert found.survives is Survives.NOTHING
    assert f"memory.oom.group is set in {machine.root}/sys/fs/cgroup/{place}".rstrip("/") in str(found)
    assert "a SIGKILL of the trainer alone would be survived" in str(found)


def test_cgroups_of_others_do_not_matter(machine):
    machine.process("77", cgroup="0::/job/step")
    machine.write("sys/fs/cgroup/job/step/memory.oom.group", "0\n")
    machine.write("sys/fs/cgroup/job/other/memory.oom.group", "1\n")
    machine.write("sys/fs/cgroup/job/step/below/memory.oom.group", "1\n")
    assert probed(machine).survives is Survives.PROCESS


@pytest.mark.parametrize(
    "path", ["/slurm/uid_0/job_9/step_0", "/system.slice/node1_slurmstepd.scope/job_9/step_0/user/task_0"]
)
def test_slurm_ends_what_a_job_step_leaves(machine, path):
    machine.process("77", cgroup=f"0::{path}")
    found = probed(machine, {"SLURM_JOB_ID": "9"})
    assert found.survives is Survives.NOTHING
    assert [reason.split(" when ")[0] for reason in found.reasons] == [f"Slurm ends whatever is left in {path}"]


@pytest.mark.parametrize("path", ["/system.slice/slurmd.scope", "/slurm", "/batch/job_9/step_0"])
def test_a_cgroup_is_slurms_only_if_it_is_of_a_job(machine, path):
    machine.process("77", cgroup=f"0::{path}")
    assert probed(machine).survives is Survives.PROCESS


def test_slurm_is_believed_where_its_cgroup_cannot_be_seen(machine):
    machine.process("77")
    found = probed(machine, {"SLURM_JOB_ID": "9"})
    assert found.survives is Survives.NOTHING
    assert "Slurm may end whatever is left of job 9" in str(found)


SERVICE = "0::/system.slice/train@3.service"


@pytest.mark.parametrize(
    ("environ", "parent", "whose"),
    [
        ({"SYSTEMD_EXEC_PID": "77"}, 50, "when the trainer ends"),
        ({"SYSTEMD_EXEC_PID": "50"}, 1, "when the trainer ends"),
        ({"SYSTEMD_EXEC_PID": "50"}, 50, "when its main process ends, which may be right after the trainer"),
    ],
)
def test_systemd_ends_what_a_service_leaves(machine, environ, parent, whose):
    machine.process("50", name="bash")
    machine.process("77", cgroup=SERVICE, parent=parent)
    found = probed(machine, environ)
    assert found.reasons == (f"systemd ends whatever is left of train@3.service {whose}",)


@pytest.mark.parametrize("mode", ["process", "none"])
def test_systemd_leaves_the_saver_alone_where_it_is_told_to(machine, mode):
    machine.process("77", cgroup=SERVICE)
    machine.write("etc/systemd/system/train@.service", f"[Service]\nKillMode={mode}\n")
    assert probed(machine).survives is Survives.PROCESS


@pytest.mark.parametrize(
    "path",
    [
        "/user.slice/user-1.slice/session-3.scope",
        "/user.slice/user-1.slice/user@1.service/app.slice/terminal.scope",
        "/user.slice/user-1.slice/user@1.service/app.slice",
        "/system.slice/docker-0a1b.scope",
    ],
)
def test_scopes_do_not_end_with_a_process(machine, path):
    machine.process("77", cgroup=f"0::{path}")
    assert probed(machine).survives is Survives.PROCESS


def test_the_unit_is_found_in_the_old_hierarchies_as_well(machine):
    mounts = "33 24 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
    machine.process("77", cgroup="4:memory:/a.service\n1:name=systemd:/system.slice/train.service", mounts=mounts)
    assert gather(machine.root, environ={}, pid=77).service == "train.service"


def test_elsewhere_than_on_linux_nothing_survives(tmp_path):
    assert "only on Linux" in str(probe(tmp_path, environ={}))


def test_all_reasons_are_told():
    facts = Facts(is_first=True, oom_groups=("/a", "/b"), slurm_job="9", service="x.service")
    found = decide(facts)
    assert len(found.reasons) == 5
    assert str(found) == "a staged checkpoint may be lost with the trainer: " + "; ".join(found.reasons)


def test_saving_inline_survives_nothing_and_says_so():
    assert INLINE.survives == "nothing"
    assert str(INLINE).endswith("the trainer itself saves, and nobody finishes what it began")


TRAINER = """
import os, subprocess, sys
from holdfast.saver.survival import probe
saver = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(probe(environ={}).survives, saver.pid, flush=True)
saver.wait()
"""


class Training:
    """A trainer that probes, tells, and waits; its saver is a process in a session of its own."""

    def __init__(self, *around):
        self.outer = subprocess.Popen(
            [*around, sys.executable, "-c", TRAINER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        words = self.outer.stdout.readline().split()
        self.said = words[0] if words else None

    def processes(self):
        me = psutil.Process(self.outer.pid)
        family = [me, *me.children(recursive=True)]
        saver = next(one for one in family if one.name() == "sleep")
        return saver.parent(), saver

    def close(self):
        for one in (
            [*psutil.Process(self.outer.pid).children(recursive=True)][::-1] if self.outer.poll() is None else []
        ):
            one.kill()
        self.outer.kill()
        self.outer.wait()
        self.outer.stdout.close()


def in_a_namespace(*more):
    words = ["unshare", "--pid", "--fork", "--mount-proc", *more]
    allowed = subprocess.run([*words[:4], "true"], capture_output=True, text=True, check=False)
    if allowed.returncode != 0:
        pytest.skip(f"may not make a pid namespace here: {allowed.stderr.strip()}")
    return Training(*words)


@pytest.mark.parametrize("shell", [(), ("sh", "-c", '"$0" "$@"; exit $?')], ids=["alone", "below a shell"])
def test_the_kernel_ends_the_saver_of_a_trainer_that_ends_its_container(shell):
    """Hazards 18: a session of its own does not help."""
    training = in_a_namespace(*shell)
    try:
        assert training.said == "nothing"
        trainer, saver = training.processes()
        trainer.send_signal(signal.SIGKILL)
        assert psutil.wait_procs([saver], timeout=300)[1] == []
    finally:
        training.close()


def test_elsewhere_the_saver_is_left_alone():
    """The counterpart: else the test above would pass for a saver that always dies."""
    training = Training()
    trainer, saver = training.processes()
    try:
        assert training.said == probe(environ={}).survives
        trainer.send_signal(signal.SIGKILL)
        training.outer.wait(300)
        if training.said == "process":
            assert saver.is_running()
            assert saver.status() != psutil.STATUS_ZOMBIE
    finally:
        saver.kill()
        training.close()
