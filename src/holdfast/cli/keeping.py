"""What retention would keep in a run: by the policy of its newest launch, or by one that is typed."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.catalog.protections import read_retention_facts
from holdfast.catalog.retention import RetentionPlan, plan_retention
from holdfast.catalog.runs import Run
from holdfast.policy import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """A policy, where it comes from, and what it decides now."""

    policy: str
    source: str
    plan: RetentionPlan | None
    """None: there is no policy, so everything stays."""


def retention(run: Run, typed: str | None = None) -> Retention:
    """The plan as of now; nothing is changed.

    Raises:
        InvalidPolicy: what was typed is no policy.
    """
    launches = run.launches()
    text = typed or (launches[-1].policies.get("keep", "") if launches else "")
    source = "--keep" if typed else f"launch {launches[-1].number}" if launches else "no launch yet"
    if not text:
        return Retention(policy="", source=source, plan=None)
    policy = parse(text)
    return Retention(policy=text, source=source, plan=plan_retention(policy.kept, read_retention_facts(run)))
