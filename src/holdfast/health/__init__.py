"""Whether a training is well, and what is done when it is not: pure checks over observations, actions with budgets.

``health=[when(nonfinite("loss"), rollback(to="good", scale_lr=0.5)), when(disk_low(), free_space(), stop())]``.

Example:
    >>> watch = Watch([when(spike("loss"), notify("https://hooks.example.com/x"), rollback())])
    >>> steps = [(step, 2.0) for step in range(1, 50)] + [(50, 9.0)]
    >>> judged = [watch.judge(Observation(step=s, seconds=float(s), metrics={"loss": loss})) for s, loss in steps]
    >>> [due.action.verb for due in judged[-1].actions], any(one.verdicts for one in judged[:-1])
    (['notify', 'rollback'], False)
"""

from __future__ import annotations

from holdfast.health.actions import Action, Weight
from holdfast.health.base import Check, Finding, Look
from holdfast.health.beside import Notify, SaveNow, notify, save_now
from holdfast.health.budgets import SAME_TARGET
from holdfast.health.deciding import Due
from holdfast.health.disk import disk_low
from holdfast.health.good import GOOD_AFTER, GoodMarks
from holdfast.health.gpu import gpu_errors, gpu_hot, gpu_throttled
from holdfast.health.memory import cgroup_memory, gpu_memory, host_memory, out_of_memory
from holdfast.health.nonfinite import nonfinite
from holdfast.health.observation import (
    SAMPLED,
    CgroupMemory,
    Disk,
    Fact,
    Gpu,
    GpuMemory,
    HostMemory,
    Machine,
    Observation,
    Probed,
)
from holdfast.health.own import own
from holdfast.health.remedies import FreeSpace, Rollback, ShrinkBatch, Stop, free_space, rollback, shrink_batch, stop
from holdfast.health.rules import DEFAULTS, GUARDS, Rule, Rules, rules_of, when
from holdfast.health.skipping import Skip, skipped, suspects
from holdfast.health.slow import slow_steps
from holdfast.health.spike import spike
from holdfast.health.text import action_of, check_of, parse, watchdog_of
from holdfast.health.verdict import Severity, Verdict, verdict_of
from holdfast.health.watch import Judgement, Looked, Noted, Watch, of_lacking_memory, of_machine
from holdfast.health.watchdog import Then, Watchdog, watchdog

__all__ = [
    "DEFAULTS",
    "GOOD_AFTER",
    "GUARDS",
    "SAME_TARGET",
    "SAMPLED",
    "Action",
    "CgroupMemory",
    "Check",
    "Disk",
    "Due",
    "Fact",
    "Finding",
    "FreeSpace",
    "GoodMarks",
    "Gpu",
    "GpuMemory",
    "HostMemory",
    "Judgement",
    "Look",
    "Looked",
    "Machine",
    "Noted",
    "Notify",
    "Observation",
    "Probed",
    "Rollback",
    "Rule",
    "Rules",
    "SaveNow",
    "Severity",
    "ShrinkBatch",
    "Skip",
    "Stop",
    "Then",
    "Verdict",
    "Watch",
    "Watchdog",
    "Weight",
    "action_of",
    "cgroup_memory",
    "check_of",
    "disk_low",
    "free_space",
    "gpu_errors",
    "gpu_hot",
    "gpu_memory",
    "gpu_throttled",
    "host_memory",
    "nonfinite",
    "notify",
    "of_lacking_memory",
    "of_machine",
    "out_of_memory",
    "own",
    "parse",
    "rollback",
    "rules_of",
    "save_now",
    "shrink_batch",
    "skipped",
    "slow_steps",
    "spike",
    "stop",
    "suspects",
    "verdict_of",
    "watchdog",
    "watchdog_of",
    "when",
]
