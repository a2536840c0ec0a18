"""How much time a request to stop leaves before the process is killed, and whether a save still fits in.

What can be read is read; what cannot is the launcher's documented default:

- torchrun: its agent sends SIGTERM and, after ``--shutdown-timeout``, SIGKILL. Workers see the two environment
  variables for it, but not the option; without them 30 s (torch.distributed.elastic, launcher/api.py).
- Slurm: SIGTERM is followed by SIGKILL after KillWait, which no job can read: 30 s, its default (man slurm.conf). Any
  other signal is taken for that of ``--signal``, and SLURM_JOB_END_TIME says until when the job may run.
- Kubernetes: terminationGracePeriodSeconds is not shown to the container: 30 s, its default, less what a preStop hook
  takes.
- A cloud's notice names its time (`holdfast.recovery.environment.notices`).
"""

from __future__ import annotations

from dataclasses import dataclass

KILL_WAIT = 30.0
"""Seconds: the default of Slurm, of torchrun and of Kubernetes alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillFacts:
    """Who may kill this process after a signal, as far as the environment tells."""

    torchrun: float | None = None
    """Seconds that its agent waits; None: it is not there."""
    slurm: bool = False
    slurm_end: float | None = None
    """When the job has to end, as Unix time."""
    kubernetes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """How long the process may go on after a request to stop."""

    seconds: float | None
    """None: nobody says that it is killed at all."""
    why: str


def grace_after(name: str, given: float | None, facts: KillFacts, now: float) -> Grace:
    """How much time there is after a signal.

    Args:
        name: of the signal.
        given: what the user says, which counts.
        facts: what the environment says; of several launchers the most impatient one counts.
        now: Unix time at which it came.

    Example:
        >>> grace_after("SIGTERM", None, KillFacts(slurm=True), now=0.0).seconds
        30.0
        >>> grace_after("SIGUSR1", None, KillFacts(slurm=True, slurm_end=90.0), now=0.0).seconds
        90.0
        >>> grace_after("SIGTERM", None, KillFacts(), now=0.0).seconds is None
        True
    """
    if given is not None:
        return Grace(seconds=given, why="grace=")
    found = []
    if facts.torchrun is not None:
        found.append((facts.torchrun, "torchrun kills its workers then"))
    if facts.slurm and name == "SIGTERM":
        found.append((KILL_WAIT, "the default KillWait of Slurm; if it is another one, give grace="))
    elif facts.slurm_end is not None and facts.slurm_end > now:
        found.append((facts.slurm_end - now, "SLURM_JOB_END_TIME"))
    if facts.kubernetes and name == "SIGTERM":
        found.append((KILL_WAIT, "the default terminationGracePeriodSeconds of Kubernetes; else give grace="))
    if not found:
        return Grace(seconds=None, why="nobody says when the process is killed; if somebody does, give grace=")
    seconds, why = min(found)
    return Grace(seconds=seconds, why=why)


def lacking(left: float | None, expected: float | None) -> float:
    """By how many seconds a save that begins now would miss the end; below 0 it fits. What nobody knows is tried.

    Args:
        left: seconds until the process is killed.
        expected: seconds that the save takes.

    Example:
        >>> lacking(30.0, 12.5), lacking(30.0, 31.0), lacking(None, 900.0), lacking(5.0, None)
        (-17.5, 1.0, -inf, -5.0)
    """
    return float("-inf") if left is None else (expected or 0.0) - left


def expected_seconds(typical: float | None, flying: float | None, *, same: bool) -> float | None:
    """How long it takes until the state at hand is durable.

    Args:
        typical: seconds that saves took so far.
        flying: seconds for which a save has been under way; None: there is none.
        same: whether that is the very state at hand.

    Example:
        >>> expected_seconds(10.0, None, same=False), expected_seconds(10.0, 4.0, same=False)
        (10.0, 16.0)
        >>> expected_seconds(10.0, 4.0, same=True), expected_seconds(None, 4.0, same=False) is None
        (6.0, True)
    """
    if typical is None:
        return None
    rest = 0.0 if flying is None else max(0.0, typical - flying)
    return rest if same else rest + typical
