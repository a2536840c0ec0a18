"""Steps that get slow, memory, disks and devices that run out or run hot: warned of, never doubted."""

from __future__ import annotations

import random

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.health import (
    CgroupMemory,
    Disk,
    Gpu,
    GpuMemory,
    HostMemory,
    Machine,
    Severity,
    cgroup_memory,
    disk_low,
    gpu_errors,
    gpu_hot,
    gpu_memory,
    gpu_throttled,
    host_memory,
    out_of_memory,
    slow_steps,
)
from holdfast.policy import every

from .health_support import NAN, judged_steps, looks, seen

GIB = 1 << 30


def finding(check, **facts):
    (found,) = looks(check, [seen(5, machine=Machine(**facts))])
    return found


def steps(*took):
    return [seen(n, took=seconds) for n, seconds in enumerate(took, 1)]


def test_steps_that_stay_slow_are_judged_and_single_slow_ones_are_not():
    """One slow step is an evaluation or a checkpoint."""
    usual = [0.2] * 50
    assert judged_steps(slow_steps(), steps(*usual, 30.0, *usual, 1.0, 1.0, 1.0, 1.0, *usual)) == []
    assert judged_steps(slow_steps(), steps(*usual, *[1.0] * 7)) == [55, 56, 57]


def test_slow_steps_do_not_become_normal_until_they_are_all_there_is():
    found = judged_steps(slow_steps(window=30), steps(*[0.2] * 50, *[1.0] * 60))
    assert found == list(range(55, 81))


def test_a_clock_that_jumps_is_passed_over():
    chance = random.Random(1)
    took = [chance.choice([0.2, 0.21, -3600.0, NAN, None]) for _ in range(500)]
    assert judged_steps(slow_steps(), steps(*took)) == []
    assert judged_steps(slow_steps(), steps(*[0.2] * 5, *[-3600.0] * 30, *[0.2] * 20)) == []


def test_what_slow_means_survives_a_rollback():
    check, state = slow_steps(in_a_row=1), None
    for observation in steps(*[0.2] * 50):
        state = check.look(observation, state).state
    assert check.look(seen(11, took=5.0), check.rewound(state, 10)).finding is not None


@pytest.mark.parametrize(("available", "judges"), [(2 * GIB, False), (GIB, False), (GIB - 1, True), (None, False)])
def test_host_memory_below_the_limit_is_judged(available, judges):
    assert bool(finding(host_memory(), host=HostMemory(available=available, rss=3 * GIB))) is judges


def test_the_limit_of_host_memory_is_a_size_or_bytes():
    low = HostMemory(available=3 * GIB)
    assert finding(host_memory(below="4GiB"), host=low).message.startswith("3.0 GiB of memory are available")
    assert finding(host_memory(below=3 * GIB), host=low) is None


@pytest.mark.parametrize(("used", "judges"), [(95, False), (96, True), (100, True), (120, True)])
def test_a_cgroup_near_its_limit_is_judged(used, judges):
    found = finding(cgroup_memory(above=0.95), cgroup=CgroupMemory(used=used, limit=100, where="memory.max"))
    assert bool(found) is judges
    assert found is None or "memory.max" in found.message


def test_each_gpu_that_is_full_is_named():
    devices = tuple(GpuMemory(device=n, used=used * GIB, total=80 * GIB) for n, used in enumerate([10, 79, 78]))
    assert finding(gpu_memory(above=0.9), gpu_memory=devices).message == (
        "79.0 GiB of 80.0 GiB on GPU 1, 78.0 GiB of 80.0 GiB on GPU 2 are in use, more than 90%"
    )


def test_out_of_memory_is_what_the_device_said():
    assert looks(out_of_memory(), [seen(1), seen(2, oom="tried to allocate 2.00 GiB")])[1].message.startswith("tried")


@pytest.mark.parametrize(
    ("disk", "judges"),
    [
        (Disk(free_bytes=20, next_bytes=10), False),
        (Disk(free_bytes=19, next_bytes=10), True),
        (Disk(free_bytes=24, next_bytes=10, once_bytes=5), True),
        (Disk(free_bytes=25, next_bytes=10, once_bytes=5), False),
        (Disk(free_bytes=5), False),
        (Disk(free_bytes=0), True),
        (Disk(free_bytes=1000, free_inodes=9, next_bytes=10, next_files=5), True),
        (Disk(free_bytes=1000, free_inodes=10, next_bytes=10, next_files=5), False),
        (Disk(free_bytes=1000, free_inodes=0), True),
        (Disk(free_bytes=1000, free_inodes=None, next_files=5), False),
        (Disk(), False),
    ],
)
def test_a_disk_without_room_for_two_checkpoints_is_judged(disk, judges):
    assert bool(finding(disk_low(checkpoints=2), disk=disk)) is judges


def test_what_is_frozen_is_written_once_whatever_number_of_checkpoints_is_to_come():
    disk = Disk(where="scratch", free_bytes=6 * GIB, next_bytes=GIB, once_bytes=5 * GIB)
    assert finding(disk_low(), disk=disk).message == (
        "6.0 GiB are free on scratch, too little for the next 2 checkpoints of 1.0 GiB each and 5.0 GiB that they share"
    )
    assert finding(disk_low(1), disk=disk) is None


def test_the_disk_is_judged_before_the_first_step():
    low = Machine(disk=Disk(where="scratch", free_bytes=GIB, next_bytes=GIB, free_inodes=3, next_files=2))
    (found,) = looks(disk_low(), [seen(0, machine=low)])
    assert found.message == (
        "1.0 GiB are free on scratch, too little for the next 2 checkpoints of 1.0 GiB each; "
        "3 inodes are free on scratch, too few for the next 2 checkpoints of 2 files each"
    )


def gpu(step, *gpus):
    return seen(step, machine=Machine(gpus=gpus))


def test_memory_errors_of_a_gpu_are_judged_when_they_grow():
    series = [gpu(n, Gpu(device=0, uncorrected=count)) for n, count in enumerate([7, 7, 8, 8, 10, 0, 1], 1)]
    found = looks(gpu_errors(), series)
    assert [bool(one) for one in found] == [False, False, True, False, True, False, True]
    assert found[4].message == "GPU 0 has had 2 uncorrected memory errors since the last look"
    assert found[4].severity is Severity.DOUBT


def test_memory_that_cannot_be_repaired_is_judged_at_once():
    assert looks(gpu_errors(), [gpu(1, Gpu(device=3, failing="it is broken"))])[0].message == "GPU 3: it is broken"


def test_xid_errors_that_no_program_brings_about_are_named():
    fallen = looks(gpu_errors(), [gpu(1, Gpu(device=2, uncorrected=0, xids=(43, 79, 79, 999)))])[0]
    assert fallen.message == "GPU 2: XID 79, it has fallen off the bus; GPU 2: XID 999, see the Xid catalog of NVIDIA"
    assert looks(gpu_errors(), [gpu(1, Gpu(device=2, xids=(13, 31, 43, 45)))]) == [None]


def test_a_driver_that_says_nothing_is_no_error():
    for check in (gpu_errors(), gpu_hot(), gpu_throttled()):
        assert not check.look(seen(1), None).seen
    assert looks(gpu_errors(), [gpu(1, Gpu(device=0)), gpu(2, Gpu(device=0, uncorrected=5))]) == [None, None]
    assert not gpu_hot().look(gpu(1, Gpu(device=0)), None).seen


@pytest.mark.parametrize(("celsius", "judges"), [(89.0, False), (90.0, True)])
def test_a_hot_gpu_is_judged(celsius, judges):
    assert bool(finding(gpu_hot(), gpus=(Gpu(device=0, celsius=celsius),))) is judges


def test_a_throttled_gpu_is_named_with_the_reasons():
    found = finding(gpu_throttled(), gpus=(Gpu(device=0), Gpu(device=1, throttled=("hw-thermal", "sw-thermal"))))
    assert found.message == "throttled: GPU 1 (hw-thermal, sw-thermal)"


@pytest.mark.parametrize(
    ("check", "facts"),
    [
        (host_memory(below="1TB"), {"host": HostMemory(available=1)}),
        (cgroup_memory(), {"cgroup": CgroupMemory(used=1, limit=1)}),
        (gpu_memory(), {"gpu_memory": (GpuMemory(device=0, used=1, total=1),)}),
        (disk_low(), {"disk": Disk(free_bytes=0)}),
        (gpu_hot(), {"gpus": (Gpu(device=0, celsius=99.0),)}),
        (gpu_throttled(), {"gpus": (Gpu(device=0, throttled=("hw-thermal",)),)}),
    ],
    ids=lambda one: str(one)[:20],
)
def test_a_machine_in_trouble_is_a_warning_and_no_doubt_about_the_state(check, facts):
    assert finding(check, **facts).severity is Severity.WARNING
    assert not check.tests_training


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: slow_steps(factor=1), r"slow_steps\(factor=\)"),
        (lambda: slow_steps(window=1), "window"),
        (lambda: slow_steps(in_a_row=0), "in_a_row"),
        (lambda: host_memory(below="much"), r"host_memory\(below=\)"),
        (lambda: host_memory(below=0), r"host_memory\(below=\)"),
        (lambda: cgroup_memory(above=95), "at most 1"),
        (lambda: gpu_memory(above=0), "above 0"),
        (lambda: gpu_hot(celsius=-5), "celsius"),
        (lambda: disk_low(0), "checkpoints"),
        (lambda: disk_low(every=every(epochs=2)), "every"),
        (lambda: gpu_errors(every="often"), "every"),
    ],
)
def test_nonsense_is_refused_naming_the_argument(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()
