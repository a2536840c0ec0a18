"""Fake machines: the files of /proc and /sys below a folder."""

from __future__ import annotations

MACHINE = "pid:[4026531836]"
UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


class Machine:
    def __init__(self, root):
        self.root = root

    def write(self, path, text=""):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, folder, *, name="python", pids=None, parent=1, namespace=MACHINE, cgroup="0::/", mounts=UNIFIED):
        """A process; ``pids`` is one in each namespace, from that of this proc inwards."""
        status = f"Name:\t{name}\nPPid:\t{parent}\nNSpid:\t{' '.join(map(str, pids or [folder]))}\n"
        self.write(f"proc/{folder}/status", status)
        self.write(f"proc/{folder}/cgroup", cgroup + "\n")
        self.write(f"proc/{folder}/mountinfo", f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}\n")
        (self.root / f"proc/{folder}/ns").mkdir(exist_ok=True)
        (self.root / f"proc/{folder}/ns/pid").symlink_to(namespace)


def fake_machine(root):
    """A machine with one process, systemd."""
    made = Machine(root)
    made.write("sys/fs/cgroup/cgroup.procs")
    made.process("1", name="systemd", parent=0)
    return made
