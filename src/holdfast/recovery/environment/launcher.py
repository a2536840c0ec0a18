"""What the launcher says about this process: the only module that reads the environment.

Sources: torchrun's worker environment (torch.distributed.elastic), Slurm's output
environment variables (man srun, man sbatch), what the kubelet gives every
container, and what the firmware tables of cloud machines say of their maker.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.catalog.owners import process_named
from holdfast.recovery.environment.grace import KILL_WAIT, KillFacts

if TYPE_CHECKING:
    from holdfast.saver.survival import Survival

NAMELESS = "torchrun:none"
"""How the job begins that a torchrun runs to which nobody gave an id."""

_TOLD = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_NNODES", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES")
"""Environment variables that a record may repeat; nothing else is ever copied, so no secret can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherFacts:
    """Where this process stands in its job."""

    job: str | None
    """Equal for every restart of one job, different for other jobs; None where nobody says."""
    restarts: int
    """How often the launcher has restarted the job: evidence of earlier work."""
    rank: int
    world: int


def staged_survival() -> Survival:
    """What a state that is staged in memory survives here, as far as the launcher and the kernel tell."""
    from holdfast.saver.survival import probe  # with all that savers need, which the command line does without

    return probe(environ=os.environ)


def launcher_facts(environ: Mapping[str, str] | None = None) -> LauncherFacts:
    """The facts of torchrun and Slurm, or those of a plain process.

    Example:
        >>> launcher_facts({"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"}).restarts
        2
    """
    env = os.environ if environ is None else environ
    restarts = max(_number(env, "TORCHELASTIC_RESTART_COUNT"), _number(env, "SLURM_RESTART_COUNT"))
    return LauncherFacts(
        job=_job(env),
        restarts=restarts,
        rank=_number(env, "RANK"),
        world=max(1, _number(env, "WORLD_SIZE")),
    )


def kill_facts(environ: Mapping[str, str] | None = None) -> KillFacts:
    """Who may kill this process after a signal, and when.

    Example:
        >>> kill_facts({"TORCHELASTIC_RUN_ID": "a", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90"}).torchrun
        90.0
    """
    env = os.environ if environ is None else environ
    agent = _number(env, "PET_SHUTDOWN_TIMEOUT") or _number(env, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or KILL_WAIT
    return KillFacts(
        torchrun=float(agent) if "TORCHELASTIC_RUN_ID" in env else None,
        slurm="SLURM_JOB_ID" in env,
        slurm_end=float(_number(env, "SLURM_JOB_END_TIME")) or None,
        kubernetes="KUBERNETES_SERVICE_HOST" in env,
    )


def local_rank(environ: Mapping[str, str] | None = None) -> int:
    """Which process of this machine it is, from 0."""
    env = os.environ if environ is None else environ
    return _number(env, "LOCAL_RANK") or _number(env, "SLURM_LOCALID")


_MAKERS = {
    ("sys_vendor", "Amazon EC2"): "aws",
    ("product_name", "Google Compute Engine"): "gce",
    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"): "azure",
}


def cloud_here(tables: Path = Path("/sys/class/dmi/id")) -> str | None:
    """The cloud whose machine this is, as its firmware tables say: aws, gce, azure, or None."""
    for (table, text), name in _MAKERS.items():
        try:
            if (tables / table).read_text().strip() == text:
                return name
        except OSError:  # not there, or not for us to read
            continue
    return None


def environment_facts(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a record says about where it was made: an allow-list, so no secret can slip in."""
    env = os.environ if environ is None else environ
    told = {key.lower(): env[key] for key in _TOLD if key in env}
    return {"python": platform.python_version(), "system": platform.platform(), **told}


def command_line() -> list[str]:
    """The command of this process, with the values of options that look like secrets removed."""
    shown: list[str] = []
    hide = False
    for word in sys.argv:
        secret = any(key in word.lower() for key in ("token", "secret", "password", "api-key", "api_key"))
        shown.append(
            "<redacted>" if hide else word.partition("=")[0] + "=<redacted>" if secret and "=" in word else word
        )
        hide = secret and "=" not in word and word.startswith("-")
    return shown


def _job(env: Mapping[str, str]) -> str | None:
    if "SLURM_JOB_ID" in env:
        array = env.get("SLURM_ARRAY_TASK_ID")
        return f"slurm:{env['SLURM_JOB_ID']}" + (f":{array}" if array else "")
    name = env.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{NAMELESS}@{_agent()}" if name == "none" else f"torchrun:{name}"


def _agent() -> str:
    """The process that has started this one, which starts it again: who else says "none" is another job."""
    agent = process_named(os.getppid())
    return f"{agent.boot}/{agent.pid}/{agent.started}"


def _number(env: Mapping[str, str], key: str) -> int:
    text = env.get(key, "")
    return int(text) if text.isdecimal() else 0
