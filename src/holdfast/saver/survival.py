"""What a staged checkpoint survives here: whether the saver outlives the trainer, asked once at the start.

The saver is a process of its own, in a session of its own, so a signal to the
trainer leaves it alone. But some of those who end a trainer end everything
around it, and no process can keep out of that: the kernel, when the first
process of a pid namespace dies (pid_namespaces(7)) or memory runs out in a
cgroup with ``memory.oom.group`` (the kernel's cgroup-v2 page), Slurm, when a
job step ends (slurm.conf, ProctrackType), and systemd, when a service ends
(systemd.kill(5)).

The answer is the worst case: where one of them may take the saver as well,
nothing is promised, and the reasons say who and when. What cannot be seen from
here, such as ``memory.oom.group`` above a container's own cgroup, is not known.

Example:
    >>> print(decide(Facts()))
    a staged checkpoint survives a SIGKILL of the trainer, not the end of its container, job or machine
    >>> print(decide(Facts(is_first=True)).survives)
    nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast.saver.cgroups import Cgroup, cgroups, number, text
from holdfast.saver.units import kill_mode

_MACHINE = "pid:[4026531836]"
"""The pid namespace that a machine boots with has this number on every Linux (PROC_PID_INIT_INO)."""

_STAYS = frozenset({"systemd", "init", "s6-svscan", "runsvdir", "runit", "supervisord", "sshd"})
"""First processes of containers that do not end when something that they started does."""

_DEEPEST = 64
"""Generations that are looked at between the trainer and the first process."""


class Survives(StrEnum):
    """The value of ``survives`` in a record: whose end a staged and not yet committed checkpoint survives."""

    PROCESS = "process"
    """The trainer's own, however it ends, SIGKILL included: the saver finishes what was staged."""
    CONTAINER = "container"
    """That of everything around the trainer, too: only where the saver runs outside of it. Never probed."""
    NOTHING = "nothing"
    """The trainer's end may be the saver's, or the trainer itself saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What was found; `str` makes one sentence of it."""

    survives: Survives
    reasons: tuple[str, ...] = ()
    """Why it is not more; empty where nothing was found that would end the saver."""

    def __str__(self) -> str:
        said = {
            Survives.PROCESS: "a staged checkpoint survives a SIGKILL of the trainer, "
            "not the end of its container, job or machine",
            Survives.CONTAINER: "a staged checkpoint survives the end of the trainer's container or job",
            Survives.NOTHING: "a staged checkpoint may be lost with the trainer",
        }[self.survives]
        return f"{said}: {'; '.join(self.reasons)}" if self.reasons else said


INLINE = Survival(survives=Survives.NOTHING, reasons=("the trainer itself saves, and nobody finishes what it began",))
"""Of saving without a saver process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found about the trainer; by default, nothing that would end the saver."""

    linux: bool = True
    is_first: bool = False
    """It is process 1 of its pid namespace."""
    started_by_first: str | None = None
    """The name of process 1 of a container, where that is an ancestor of the trainer."""
    oom_groups: tuple[str, ...] = ()
    """Its cgroups, and those above, in which ``memory.oom.group`` is set."""
    slurm_job: str | None = None
    slurm_cgroup: str | None = None
    """Its cgroup, if Slurm made it."""
    service: str | None = None
    """The systemd service that it belongs to, if systemd ends what is left of that."""
    is_main: bool = False
    """Whether systemd itself started it."""


def probe(root: Path = Path("/"), *, environ: Mapping[str, str], pid: int | None = None) -> Survival:
    """What a checkpoint that this process stages would survive. Reads some small files, never raises ``OSError``.

    Args:
        root: where ``proc`` and ``sys`` lie.
        environ: the trainer's environment, which tells of Slurm and systemd.
        pid: the trainer's, as ``proc`` below ``root`` numbers it; this process itself by default.
    """
    return decide(gather(root, environ=environ, pid=pid))


def decide(facts: Facts) -> Survival:
    """What follows from the facts. Pure."""
    reasons = tuple(_reasons(facts))
    return Survival(survives=Survives.NOTHING if reasons else Survives.PROCESS, reasons=reasons)


def _reasons(facts: Facts) -> Iterator[str]:
    if not facts.linux:
        yield "only on Linux can the saver take over what the trainer staged"
    if facts.is_first:
        yield "the trainer is process 1 of its container, and the kernel ends the whole container with it"
    if facts.started_by_first:
        yield (
            f"the container ends when its process 1 ({facts.started_by_first}) does, "
            "which may be waiting for nothing but the trainer"
        )
    for cgroup in facts.oom_groups:
        yield (
            f"memory.oom.group is set in {cgroup}, so the kernel ends the saver as well when memory runs out there; "
            "a SIGKILL of the trainer alone would be survived"
        )
    yield from _slurm_reason(facts)
    if facts.service:
        whose = "the trainer ends" if facts.is_main else "its main process ends, which may be right after the trainer"
        yield f"systemd ends whatever is left of {facts.service} when {whose}"


def _slurm_reason(facts: Facts) -> Iterator[str]:
    if facts.slurm_cgroup:
        yield f"Slurm ends whatever is left in {facts.slurm_cgroup} when the tasks of the step have ended"
    elif facts.slurm_job:
        yield f"Slurm may end whatever is left of job {facts.slurm_job} when the tasks of the step have ended"


def gather(root: Path = Path("/"), *, environ: Mapping[str, str], pid: int | None = None) -> Facts:
    """The facts that `decide` needs; arguments as of `probe`."""
    me = _process(root, "self" if pid is None else str(pid))
    if me is None:
        return Facts(linux=False)
    mine = cgroups(root, me.folder)
    service, is_main = _service(root, me, mine, environ)
    return Facts(
        is_first=me.number == 1,
        started_by_first=_first_above(root, me),
        oom_groups=tuple(_oom_groups(mine)),
        slurm_job=environ.get("SLURM_JOB_ID"),
        slurm_cgroup=next((one.path for one in mine if _is_slurm(one.path)), None),
        service=service,
        is_main=is_main,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    folder: str
    """In ``proc``."""
    name: str
    number: int
    """Its pid in its own namespace, which ``proc`` may not be of."""
    depth: int
    """Of its namespace, seen from that of ``proc``."""
    parent: str


def _process(root: Path, folder: str) -> _Process | None:
    lines = (line.partition(":") for line in text(root / "proc" / folder / "status").splitlines())
    status = {key: value.strip() for key, _, value in lines}
    numbers = status.get("NSpid", status.get("Pid", "")).split()
    if not numbers or not numbers[-1].isdecimal():
        return None
    parent = status.get("PPid", "0")
    name = status.get("Name", "?")
    return _Process(folder=folder, name=name, number=int(numbers[-1]), depth=len(numbers), parent=parent)


def _first_above(root: Path, me: _Process) -> str | None:
    """The name of the container's first process if the trainer descends from it and it may end."""
    if _namespace(root, me.folder) == _MACHINE or me.number == 1:
        return None
    for one in _ancestors(root, me):
        if one.number == 1 and one.depth == me.depth:
            return None if one.name in _STAYS else one.name
    return None


def _ancestors(root: Path, me: _Process) -> Iterator[_Process]:
    for _ in range(_DEEPEST):
        above = _process(root, me.parent)
        if above is None:
            return
        yield above
        me = above


def _namespace(root: Path, process: str) -> str | None:
    try:
        return str((root / "proc" / process / "ns" / "pid").readlink())
    except OSError:
        return None


def _oom_groups(mine: tuple[Cgroup, ...]) -> Iterator[str]:
    """The kernel looks for the flag from the victim's cgroup upwards, so one above counts as much as its own."""
    for folder in (folder for one in mine if not one.controllers for folder in one.folders):
        if number(folder / "memory.oom.group") == 1:
            yield str(folder)


def _is_slurm(path: str) -> bool:
    """As its cgroup plugins name them: ``/slurm/uid_0/job_7/step_0`` and ``.../slurmstepd.scope/job_7/step_0``."""
    parts = path.split("/")
    return any("slurm" in part for part in parts) and any(part.startswith("job_") for part in parts)


def _service(root: Path, me: _Process, mine: tuple[Cgroup, ...], environ: Mapping[str, str]) -> tuple[str | None, bool]:
    """The service that would take the saver with it, and whether it ends with the trainer itself."""
    unit = next((name for one in mine if _is_systemd(one) and (name := _unit(one.path))), None)
    # With "process" and "none" systemd leaves alone what is left; a scope is not ended with any process.
    if unit is None or not unit.endswith(".service") or kill_mode(root, unit) in ("process", "none"):
        return None, False
    above = _process(root, me.parent)
    by_manager = above is not None and above.name == "systemd"
    return unit, by_manager or environ.get("SYSTEMD_EXEC_PID") == str(me.number)


def _is_systemd(cgroup: Cgroup) -> bool:
    return not cgroup.controllers or "name=systemd" in cgroup.controllers


def _unit(path: str) -> str | None:
    """The innermost unit of a path such as ``/user.slice/user@1.service/app.slice/train.service/more``."""
    units = [part for part in path.split("/") if part.endswith((".service", ".scope", ".slice"))]
    return units[-1] if units else None
