"""KillMode, as systemd would read it."""

from __future__ import annotations

import pytest
from machine_kit import fake_machine

from holdfast.saver.units import kill_mode


@pytest.fixture
def machine(tmp_path):
    return fake_machine(tmp_path)


def unit(folder, mode):
    return f"{folder}/x.service", f"[Unit]\nKillMode=none\n\n[Service]\nExecStart=/bin/true\nKillMode={mode}\n"


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ([], "control-group"),
        ([unit("usr/lib/systemd/system", "mixed")], "mixed"),
        ([unit("usr/lib/systemd/system", "mixed"), unit("etc/systemd/system", "process")], "process"),
        ([unit("run/systemd/transient", "none")], "none"),
        ([unit("etc/systemd/system", "")], "control-group"),
        ([("etc/systemd/system/x.service", "[Unit]\nKillMode=process\n")], "control-group"),
        ([("etc/systemd/system/x.service", "[Service]\n#KillMode=process\n")], "control-group"),
        (
            [
                unit("etc/systemd/system", "process"),
                ("etc/systemd/system/x.service.d/10.conf", "[Service]\nKillMode=none\n"),
                ("run/systemd/system/x.service.d/20.conf", "[Service]\nKillMode = mixed\n"),
            ],
            "mixed",
        ),
        (
            [
                ("etc/systemd/system/x.service.d/10.conf", "[Service]\nLimitCORE=0\n"),
                ("usr/lib/systemd/system/x.service.d/10.conf", "[Service]\nKillMode=none\n"),
            ],
            "control-group",
        ),
    ],
)
def test_the_last_setting_counts(machine, files, mode):
    for path, content in files:
        machine.write(path, content)
    assert kill_mode(machine.root, "x.service") == mode


def test_an_instance_follows_its_template_unless_it_has_a_file_of_its_own(machine):
    machine.write("etc/systemd/system/x@.service", "[Service]\nKillMode=process\n")
    assert kill_mode(machine.root, "x@3.service") == "process"
    machine.write("usr/lib/systemd/system/x@3.service", "[Service]\nKillMode=mixed\n")
    assert kill_mode(machine.root, "x@3.service") == "mixed"
    machine.write("etc/systemd/system/x@.service.d/a.conf", "[Service]\nKillMode=none\n")
    assert kill_mode(machine.root, "x@3.service") == "none"
