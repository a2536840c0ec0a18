"""What a `Checkpointer` was asked for, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.catalog.config import plain_config
from holdfast.errors import InvalidInput
from holdfast.policy import Policy, every, for_keeping, for_saving, latest
from holdfast.recovery.choice import NewRun, wanted
from holdfast.recovery.config_changes import change_rules
from holdfast.recovery.session import MODES


def checked(
    store: str | Path,
    run: str | int | NewRun | None,
    resume: str,
    config: object,
    save: Policy | None,
    keep: Policy | None,
    stage: Policy | None,
    peer_timeout: float,
    on_config_change: object = None,
    not_restored: Iterable[str] = (),
) -> dict[str, Any]:
    """Fields of a `holdfast.recovery.session.Plan`; the arguments are those of `Checkpointer`.

    Raises:
        InvalidInput: one that cannot be right.
    """
    if not 0 < peer_timeout < float("inf"):
        raise InvalidInput(f"peer_timeout={peer_timeout}: a number of seconds above 0")
    return {
        "url": store,
        "want": wanted(run),
        "resume": resume if resume in MODES else str(resume),
        "config": plain_config(config),
        "save": for_saving(save if save is not None else every(minutes=15)),
        "keep": for_keeping(keep if keep is not None else latest(3)),
        "stage": None if stage is None else for_saving(stage),
        "patience": float(peer_timeout),
        "on_config_change": change_rules(on_config_change),
        "not_restored": tuple(not_restored),
    }
