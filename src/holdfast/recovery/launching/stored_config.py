"""The training configuration that a checkpoint was made with: that of the launch which made it."""

from __future__ import annotations

from typing import Any, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.config import plain_config
from holdfast.catalog.objects import load
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, ObjectMissing
from holdfast.ids import RunNumber
from holdfast.records import LaunchInfo, Target


class StoredConfig(NamedTuple):
    """A configuration, and whose it is."""

    config: dict[str, Any]
    what: str
    """For messages."""


def stored_config(store: Store, target: Target | None) -> StoredConfig | None:
    """The configuration behind the checkpoint that a launch goes on from; None: there is none, or nobody can tell.

    Not that of the newest launch: it may have ended before it made anything.

    Args:
        store: where it lies.
        target: the checkpoint.
    """
    if target is None:
        return None
    try:
        info = load(store.storage, layout.launch(RunNumber(target.run), target.launch), LaunchInfo)
    except (ObjectMissing, Damaged):
        return None
    # Earlier versions have stored secrets in lists and tables: they are not shown, either.
    return StoredConfig(plain_config(info.config), str(target.address))
