"""Small things for records, where saves are made in the training loop: they are done at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.catalog.marks import add_metrics
from holdfast.catalog.naming.tags import create_tag
from holdfast.catalog.store import Store
from holdfast.errors import BeingDeleted, Damaged, StorageError
from holdfast.ids import RecordId, TagName
from holdfast.records import MarkKind, Target
from holdfast.saver.asides import add_mark_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InlineAsides:
    """See `holdfast.recovery.handover.outcomes.Asides`. What could not be done is said: no reason to end a training."""

    store: Store
    note: Callable[[str, str], None]
    """Takes kind and text of a line of the journal."""
    retain: Callable[[], Sequence[RecordId]]
    """Removes what the policy does not keep."""
    deleted: Callable[[Sequence[RecordId]], None]

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Adds them now."""
        with self._said(f"metrics of {target.address} were not stored"):
            add_metrics(self.store, target.address, metrics, by="log")

    def add_tag(self, target: Target, tag: str) -> None:
        """Names it now.

        Raises:
            NameTaken: another record has the name.
        """
        with self._said(f"{target.address} was not tagged {tag}"):
            create_tag(self.store, TagName(tag), target.address)

    def add_mark(self, target: Target, kind: MarkKind) -> None:
        """Adds it now."""
        with self._said(f"{target.address} was not marked {kind}"):
            add_mark_of(self.store, target, kind)

    def free_space(self) -> None:
        """Removes it now."""
        with self._said("no space was freed"):
            self.deleted(self.retain())

    @contextlib.contextmanager
    def _said(self, text: str) -> Iterator[None]:
        try:
            yield
        except (BeingDeleted, Damaged, StorageError) as error:
            logger.error("%s: %s", text, error)
            self.note("not noted", f"{text}: {error}")
