"""What retention would keep in a run: by the policy of its newest launch, or by one that is typed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from holdfast.catalog import layout
from holdfast.catalog.deleting.protections import read_retention_facts
from holdfast.catalog.deleting.retention import RetentionFacts, RetentionPlan, Room, plan_retention
from holdfast.catalog.objects import load
from holdfast.catalog.runs import Run
from holdfast.cli.output import size
from holdfast.errors import Damaged, InvalidPolicy, ObjectMissing
from holdfast.policy import for_keeping, parse
from holdfast.records import LaunchInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """A policy, where it comes from, and what it decides now."""

    policy: str
    source: str
    plan: RetentionPlan | None
    """None: there is no policy, so everything stays."""
    unreadable: bool = False
    """Whether there may be a policy, in a launch that cannot be read."""


def retention(run: Run, typed: str | None = None) -> Retention:
    """The plan as of now; nothing is changed.

    Raises:
        InvalidPolicy: what was typed is no policy, or the one on record cannot be read.
    """
    if typed is not None:
        return _planned(run, typed, "--keep")
    newest = run.newest_launch()
    if newest == 0:
        return Retention(policy="", source="no launch yet", plan=None)
    try:
        launch = load(run.store.storage, layout.launch(run.number, newest), LaunchInfo)
    except (Damaged, ObjectMissing) as error:
        # An older launch's policy may keep less than the one that is wanted now.
        why = f"launch {newest} has it and cannot be read: {error}"
        return Retention(policy="", source=why, plan=None, unreadable=True)
    return _recorded(run, launch.policies.get("keep", ""), f"launch {newest}")


def retention_if_readable(run: Run) -> Retention:
    """As `retention`; a policy on record that cannot be read keeps everything of this run, and blocks no other."""
    try:
        return retention(run)
    except InvalidPolicy as error:
        return Retention(policy="", source=str(error), plan=None, unreadable=True)


def _recorded(run: Run, text: str, source: str) -> Retention:
    if not text:
        return Retention(policy="", source=source, plan=None)
    try:
        return _planned(run, text, source)
    except InvalidPolicy as error:
        raise InvalidPolicy(
            f"the keep policy of {run.number}, {source}, cannot be read ({error}); give one with --keep"
        ) from error


def _planned(run: Run, text: str, source: str) -> Retention:
    policy = for_keeping(parse(text))
    plan = plan_retention(policy.kept, _facts(run), policy.limit)
    return Retention(policy=text, source=source, plan=plan)


def _facts(run: Run) -> RetentionFacts:
    packs = {str(one.name): one.size for one in run.store.storage.list(layout.private_packs(run.number))}
    return replace(read_retention_facts(run), packs=packs)


def room_text(room: Room) -> str:
    """What a limit has come to, for people."""
    stays = f"{room.text}: {size(room.kept)} of {size(room.wanted)} stay"
    return stays if room.kept <= room.limit else f"{stays}; the limit is not reached, for protected ones need them"


def room_document(room: Room) -> dict[str, object]:
    """The same as JSON."""
    return {"policy": room.text, "limit": room.limit, "wanted": room.wanted, "kept": room.kept}
