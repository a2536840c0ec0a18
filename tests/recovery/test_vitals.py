"""Facts about the machine: read from fake machines and from this one, never in the way of the training."""

from __future__ import annotations

import logging
import os
import threading
from types import SimpleNamespace

import pytest
from machine_kit import fake_machine

from holdfast.health import CgroupMemory, Disk, Fact, Gpu, HostMemory, Machine
from holdfast.recovery.caring import vitals
from holdfast.recovery.caring.needs import Needs
from holdfast.recovery.caring.nvml import Nvml
from holdfast.recovery.caring.vitals import Vitals

GIB = 1 << 30
ALL = frozenset(Fact)
MEMORY_1 = "33 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
MEMORY_2 = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


@pytest.fixture
def machine(tmp_path):
    made = fake_machine(tmp_path / "machine")
    made.write("proc/meminfo", f"MemTotal:  {8 * GIB // 1024} kB\nMemAvailable:   {3 * GIB // 1024} kB\n")
    return made


@pytest.fixture(params=[1, 2])
def cgroup(request, machine):
    """Both versions must give the same answers."""
    lines = {1: ("4:memory:/a/b\n0::/", MEMORY_1), 2: ("0::/a/b", MEMORY_2)}
    own, mounts = lines[request.param]
    machine.process("self", pids=[77], cgroup=own, mounts=mounts)
    names = {
        1: ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("", "memory.max", "memory.current", "inactive_file"),
    }
    folder, limit, usage, cache = names[request.param]

    def make(path, most, used, *, clean=0):
        machine.write(f"sys/fs/cgroup/{folder}{path}/{limit}", f"{most}\n")
        machine.write(f"sys/fs/cgroup/{folder}{path}/{usage}", f"{used}\n")
        machine.write(f"sys/fs/cgroup/{folder}{path}/memory.stat", f"{cache} {clean}\n")

    return make


def test_memory_of_the_process_and_of_the_host(machine):
    machine.write("proc/self/status", "Name:\tpython\nVmPeak:\t 99 kB\nVmRSS:\t  2048 kB\n")
    assert vitals.host_memory(machine.root) == HostMemory(rss=2048 * 1024, available=3 * GIB, total=8 * GIB)


def test_a_machine_without_such_files_is_not_known(tmp_path):
    assert vitals.host_memory(tmp_path) == HostMemory()
    assert vitals.cgroup_memory(tmp_path) is None


def test_this_machine_is_known():
    found = vitals.host_memory()
    assert 1 << 20 < found.rss < found.total
    assert 0 < found.available <= found.total


def test_a_cgroup_without_its_clean_page_cache(machine, cgroup):
    cgroup("a/b", 10 * GIB, 9 * GIB, clean=3 * GIB)
    found = vitals.cgroup_memory(machine.root)
    assert (found.used, found.limit, found.share) == (6 * GIB, 10 * GIB, 0.6)
    assert "a/b" in found.where


@pytest.mark.parametrize(("own", "above", "where"), [(10, 50, "a/b/"), (50, 12, "a/")])
def test_the_limit_that_is_nearest_counts(machine, cgroup, own, above, where):
    cgroup("a/b", own * GIB, 9 * GIB)
    cgroup("a", above * GIB, 10 * GIB)
    found = vitals.cgroup_memory(machine.root).where
    assert found.rpartition("memory.")[0].endswith(where)


@pytest.mark.parametrize("none", ["max", str(2**63 - 4096)])
def test_no_limit_is_none(machine, cgroup, none):
    cgroup("a/b", none, GIB)
    assert vitals.cgroup_memory(machine.root) is None


def test_the_disk_of_a_store_that_is_not_made_yet(tmp_path):
    there = os.statvfs(tmp_path)
    found = vitals.disk(tmp_path / "not" / "yet")
    assert found.where == str(tmp_path / "not" / "yet")
    # Others write, too.
    assert found.free_bytes == pytest.approx(there.f_bavail * there.f_frsize, rel=0.5)
    assert (found.free_inodes is None) == (there.f_files == 0)


def test_a_storage_that_is_no_folder_has_no_disk():
    assert vitals.disk(None) is None


def test_a_filesystem_without_a_number_of_inodes(tmp_path, monkeypatch):
    answer = SimpleNamespace(f_files=0, f_favail=0, f_bavail=5, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: answer)
    assert vitals.disk(tmp_path) == Disk(where=str(tmp_path), free_bytes=5 * 4096)


def test_all_that_is_wanted_is_there_before_the_first_step(machine, cgroup, tmp_path):
    cgroup("a/b", 10 * GIB, 6 * GIB)
    found = Vitals(tmp_path, root=machine.root).first(ALL, 0.0, needs=Needs(GIB, 7, 5))
    assert found.host.available == 3 * GIB
    assert found.cgroup == CgroupMemory(used=6 * GIB, limit=10 * GIB, where=found.cgroup.where)
    assert (found.disk.next_bytes, found.disk.next_files, found.disk.once_bytes) == (GIB, 7, 5)


def _until(vital, wanted, seconds):
    """What was gathered by the time the reading was over; the call itself waits for nothing."""
    vital.gather(wanted, seconds)
    if vital._thread is not None:
        vital._thread.join(30)
    return vital.gather(frozenset(), seconds)


def test_what_was_read_is_handed_over_at_a_later_boundary_and_once(machine):
    vital = Vitals(None, root=machine.root)
    assert vital.gather(frozenset(), 0.0) == Machine()
    assert _until(vital, frozenset({Fact.HOST}), 1.0).host.available == 3 * GIB
    assert vital.gather(frozenset(), 1.0) == Machine()


def test_nothing_is_read_that_was_not_asked_for(machine, tmp_path):
    found = _until(Vitals(tmp_path, root=machine.root), frozenset({Fact.DISK}), 1.0)
    assert found.disk is not None
    assert found.host is None
    assert found.cgroup is None


def test_one_fact_is_read_once_a_second_however_often_it_is_wanted(machine):
    reads = []
    vital = Vitals(None, root=machine.root)
    times = [0.0, 0.1, 0.9, 1.0, 1.5, 2.1, 0.5]
    for seconds in times:
        known = _until(vital, frozenset({Fact.HOST}), seconds)
        reads += [seconds] if known.host is not None else []
    # The last one after a clock that went back.
    assert reads == [0.0, 1.0, 2.1, 0.5]


class Stuck(Vitals):
    """A disk that does not answer."""

    def _readers(self):
        return {Fact.DISK: self.answers.wait}


def test_a_mount_that_is_gone_does_not_stop_the_training(caplog):
    vital = Stuck(None)
    Stuck.answers = threading.Event()
    try:
        with caplog.at_level(logging.WARNING):
            for seconds in range(200):
                assert vital.gather(frozenset({Fact.DISK}), float(seconds)) == Machine()
        assert sum(thread.name == "holdfast-vitals" for thread in threading.enumerate()) == 1
        assert [record.message for record in caplog.records] == [
            "reading memory, disk and GPUs has not come back for 61 s"
        ]
    finally:
        Stuck.answers.set()
        vital._thread.join(30)


def test_before_the_first_step_a_disk_that_does_not_answer_is_waited_for_only_so_long():
    vital = Stuck(None)
    Stuck.answers = threading.Event()
    try:
        assert vital.first(frozenset({Fact.DISK}), 0.0, timeout=0.05) == Machine()
    finally:
        Stuck.answers.set()
        vital._thread.join(30)


class Failing(Vitals):
    def _readers(self):
        def fails():
            raise PermissionError("not yours")

        return {Fact.DISK: fails, Fact.HOST: lambda: HostMemory(rss=5)}


def test_what_cannot_be_read_is_not_known_and_hides_nothing_else():
    assert _until(Failing(None), frozenset({Fact.DISK, Fact.HOST}), 0.0) == Machine(host=HostMemory(rss=5))


def test_without_cuda_there_are_no_devices():
    assert vitals.gpu_memory() == ()
    assert vitals.device_in_use() is None
    assert vitals.gpus(Nvml(Driver()), None) == ()


class Driver:
    """What pynvml looks like."""

    def __init__(self, **answers):
        self.begun = 0
        self.answers = {
            "nvmlDeviceGetTemperature": 71,
            "nvmlDeviceGetTotalEccErrors": 2,
            "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
        } | answers

    def nvmlInit(self):  # noqa: N802
        self.begun += 1
        if isinstance(self.answers.get("nvmlInit"), Exception):
            raise self.answers["nvmlInit"]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != "GPU-1234":
            raise RuntimeError("not found")
        return f"handle of {uuid}"

    def __getattr__(self, name):
        if name not in self.answers or self.answers[name] is AttributeError:
            raise AttributeError(name)
        answer = self.answers[name]

        def ask(handle="", *arguments):
            assert handle == ("handle of GPU-1234" if name.startswith("nvmlDevice") else "" if "Create" in name else 7)
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask


def test_a_device_is_read_by_its_uuid_and_keeps_the_number_that_torch_gives_it():
    driver = Driver()
    nvml = Nvml(driver)
    assert nvml.read(3, "1234") == Gpu(device=3, celsius=71, uncorrected=2)
    assert vitals.gpus(nvml, (3, "1234")) == (Gpu(device=3, celsius=71, uncorrected=2),)
    assert driver.begun == 1


def test_reasons_of_throttling_have_names_and_everyday_ones_are_left_out():
    assert Nvml(Driver(nvmlDeviceGetCurrentClocksEventReasons=0xFF)).read(0, "1234").throttled == (
        "hw-slowdown",
        "sw-thermal",
        "hw-thermal",
        "hw-power-brake",
    )


def test_an_older_package_has_another_name_for_it():
    driver = Driver(
        nvmlDeviceGetCurrentClocksEventReasons=AttributeError, nvmlDeviceGetCurrentClocksThrottleReasons=0x40
    )
    assert Nvml(driver).read(0, "1234").throttled == ("hw-thermal",)


def test_memory_that_could_not_be_remapped_is_told():
    assert "wants to be replaced" in Nvml(Driver(nvmlDeviceGetRemappedRows=(1, 2, 0, 1))).read(0, "1234").failing


def test_xid_errors_are_told_once_and_no_event_waits():
    events = [SimpleNamespace(eventType=8, eventData=number) for number in (79, 95)]

    def wait(milliseconds):
        assert milliseconds == 0
        if not events:
            raise RuntimeError("Timeout")
        return events.pop(0)

    sets = []
    driver = Driver(
        nvmlEventSetCreate=lambda: sets.append(7) or 7,
        nvmlDeviceRegisterEvents=lambda types, made: sets.append((types, made)),
        nvmlEventSetWait_v2=wait,
    )
    nvml = Nvml(driver)
    assert nvml.read(0, "1234").xids == (79, 95)
    assert nvml.read(0, "1234").xids == ()
    assert sets == [7, (8, 7)], "one set of events, for good"


def test_a_driver_that_never_runs_out_of_events_ends_no_training():
    event = SimpleNamespace(eventType=8, eventData=31)
    driver = Driver(
        nvmlEventSetCreate=7, nvmlDeviceRegisterEvents=lambda *given: None, nvmlEventSetWait_v2=lambda *given: event
    )
    assert set(Nvml(driver).read(0, "1234").xids) == {31}


@pytest.mark.parametrize(
    "name",
    [
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ],
)
@pytest.mark.parametrize("how", [RuntimeError("Not Supported"), AttributeError])
def test_a_sensor_that_is_missing_is_not_known_and_hides_no_other(name, how):
    found = Nvml(Driver(**{name: how})).read(0, "1234")
    known = [found.celsius == 71, found.uncorrected == 2, found.failing is None, found.throttled == ()]
    assert sum(known) >= 3


def test_a_device_that_the_driver_does_not_know_is_none():
    assert Nvml(Driver()).read(0, "MIG-of-somebody") is None


def test_a_driver_that_cannot_be_begun_is_said_once_and_never_an_error(caplog):
    nvml = Nvml(Driver(nvmlInit=RuntimeError("Driver Not Loaded")))
    with caplog.at_level(logging.INFO):
        assert [nvml.read(0, "1234") for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert "Driver Not Loaded" in record.message
    assert "holdfast[gpu]" in record.message


def test_without_the_package_nothing_is_known(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert Nvml().read(0, "1234") is None
