"""Observations with few words."""

from __future__ import annotations

from holdfast.health import Fact, Machine, Observation, Probed

NAN, INF = float("nan"), float("inf")


def seen(step, seconds=None, *, machine=None, probes=(), took=None, rank=0, oom=None, **metrics):
    return Observation(
        step=step,
        seconds=float(step) if seconds is None else seconds,
        step_seconds=took,
        metrics=metrics,
        probes=tuple(probes),
        machine=machine or Machine(),
        out_of_memory=oom,
        rank=rank,
    )


def probed(step, what="parameters", *, bad=(), sampled=10, norm=None):
    return Probed(step=step, what=Fact(what), sampled=sampled, nonfinite=tuple(bad), norm=norm)


def looks(check, observations):
    """The findings of one check over a series, None where there is none."""
    state, found = None, []
    for observation in observations:
        look = check.look(observation, state)
        state = look.state
        found.append(look.finding)
    return found


def judged_steps(check, observations):
    """The steps at which a check judged."""
    observations = list(observations)
    return [one.step for one, finding in zip(observations, looks(check, observations), strict=True) if finding]


def losses(values, first=1, metric="loss"):
    return [seen(step, **{metric: value}) for step, value in enumerate(values, first)]
