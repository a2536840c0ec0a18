"""Cgroups are found wherever they are mounted."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine_kit import fake_machine

from holdfast.saver.cgroups import cgroups, number, text


@pytest.fixture
def machine(tmp_path):
    return fake_machine(tmp_path)


def folders(machine, cgroup, mounts):
    machine.process("77", cgroup=cgroup, mounts=mounts)
    (found,) = cgroups(machine.root, "77")
    return [str(folder.relative_to(machine.root)) for folder in found.folders]


UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


def test_its_own_comes_first_and_then_those_above(machine):
    machine.write("sys/fs/cgroup/a/b/memory.max")
    assert folders(machine, "0::/a/b", UNIFIED) == ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"]


def test_one_that_was_removed_leaves_those_above(machine):
    machine.write("sys/fs/cgroup/a/memory.max")
    assert folders(machine, "0::/a/b (deleted)", UNIFIED) == ["sys/fs/cgroup/a", "sys/fs/cgroup"]


def test_where_only_a_part_is_mounted_the_rest_of_the_way_is_followed(machine):
    """Docker without a cgroup namespace: the container's own cgroup is mounted, under the host's names."""
    machine.write("sys/fs/cgroup/memory/inner/x")
    mounts = "33 24 0:30 /docker/0a1b /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
    own = ["sys/fs/cgroup/memory/inner", "sys/fs/cgroup/memory"]
    assert folders(machine, "4:memory:/docker/0a1b/inner", mounts) == own


def test_a_part_that_does_not_hold_it_is_taken_for_its_own(machine):
    machine.write("sys/fs/cgroup/a/x")
    for path in ("/../other", "/elsewhere/a"):
        mounts = UNIFIED.replace(" / ", " /here ", 1)
        machine.root.joinpath("proc/77/ns/pid").unlink(missing_ok=True)
        assert folders(machine, f"0::{path}", mounts) == ["sys/fs/cgroup"]


def test_a_path_that_leads_out_of_the_mounted_part_is_not_followed(machine):
    """The process was moved out of its cgroup namespace."""
    machine.write("sys/fs/other/x")
    assert folders(machine, "0::/../other", UNIFIED) == ["sys/fs/cgroup"]


def test_each_hierarchy_has_its_own_mount_and_names_may_have_spaces(machine):
    machine.write("sys/fs/cgroup/cpu and more/job/x")
    machine.write("sys/fs/cgroup/memory/job/x")
    machine.process(
        "77",
        cgroup="5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\nnonsense",
        mounts="31 24 0:30 / /sys/fs/cgroup/cpu\\040and\\040more rw - cgroup cgroup rw,cpuacct,cpu\n"
        "32 24 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    )
    found = {",".join(sorted(one.controllers)): [f.name for f in one.folders] for one in cgroups(machine.root, "77")}
    assert found == {"memory": ["job", "memory"], "cpu,cpuacct": ["job", "cpu and more"], "name=systemd": [], "": []}


def test_who_is_not_there_has_none(machine):
    assert cgroups(machine.root, "78") == ()


def test_numbers_and_texts_of_files_that_are_not_there(tmp_path):
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "n").write_text("12\n")
    assert [number(tmp_path / name) for name in ("max", "n", "none")] == [None, 12, None]
    assert text(tmp_path) == ""


def test_this_process_has_cgroups_that_exist():
    if not Path("/proc/self/cgroup").exists():
        return
    assert all(folder.is_dir() for one in cgroups() for folder in one.folders)
