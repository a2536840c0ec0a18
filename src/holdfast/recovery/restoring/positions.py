"""Where a checkpoint lies in the data, read from the checkpoint alone."""

from __future__ import annotations

import json
import logging
from typing import Any

from holdfast.catalog.manifests import OpenManifest
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.records import Record
from holdfast.recovery.restoring.left_out import Spot

logger = logging.getLogger(__name__)


def spot_of(store: Store, record: Record, unit: int) -> Spot | None:
    """The next batch after a checkpoint; None: it does not say, or in batches of another size, or cannot be read.

    Args:
        store: where it lies.
        record: of the checkpoint.
        unit: samples of all ranks in a batch of today, as in `LeftOut`.

    Raises:
        BeingDeleted, StorageError: it cannot be read now.
    """
    try:
        with reading(store, [record.address]):
            data = _data(OpenManifest(Run.by_number(store, record.run), record.manifest_digest).own(0))
        then = record.world * (data["facts"].get("batch_size") or 0)
        return Spot(int(data["epoch"]), int(data["batch"])) if then == unit else None
    except Damaged as error:
        logger.warning("%s does not say where it lies in the data: %s", record.address, error)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # no position, or one of a kind that is not known here
    return None


def _data(own: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(own)["data"]
    return found
