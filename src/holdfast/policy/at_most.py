"""``at_most``: a limit for the bytes of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import InvalidInput, InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain
from holdfast.policy.sizes import parse_size


@dataclass(frozen=True, slots=True)
class AtMost(Policy):
    """See `at_most`."""

    size: str
    """As it was written."""

    def __post_init__(self) -> None:
        try:
            parse_size(self.size)
        except InvalidInput as error:
            raise InvalidPolicy(f"at_most(size): {error}") from None

    @property
    def limit_bytes(self) -> int | None:
        """How many."""
        return parse_size(self.size)

    def _due(self, facts: SaveFacts) -> str | None:
        raise InvalidPolicy(f"{self} says what to keep, not when to save; use it in keep=, and every(...) in save=")

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        return dict.fromkeys((one.id for one in line), str(self))

    def __str__(self) -> str:
        return f"at_most({json.dumps(self.size, ensure_ascii=False)})"


def at_most(size: str | int) -> AtMost:
    """No more bytes than that for the run's own packs; serves ``keep=`` only.

    It keeps nothing by itself: what other policies want is cut down until the sum fits. What only `newer` wants goes
    first, then milestones (`every`, `at`), then `latest`, then `best`; of equals the oldest goes first. Alone it keeps
    as many of the newest as fit.

    What retention protects (the head, the newest verified and the newest good one, tagged and pinned ones, fork points,
    ...) is never deleted for a limit; if that alone is more, the plan says so. Frozen tensors in packs that all runs
    share are not counted: no retention of one run could free them. How bytes are counted:
    `holdfast.catalog.deleting.retention`.

    Args:
        size: as in `parse_size`, such as ``"500GB"``; an integer counts bytes.

    Raises:
        InvalidPolicy: no size, or less than one byte.

    Example:
        >>> print(at_most("500GB"))
        at_most("500GB")
    """
    size = plain(size)
    if isinstance(size, bool) or not isinstance(size, str | int):
        raise InvalidPolicy(f"at_most(size) wants one such as '500GB', not {size!r}")
    return AtMost(str(size).strip())
