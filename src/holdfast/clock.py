"""The wall clock, for people to read; nothing is ordered or decided by it.

Example:
    >>> utc_now().endswith("Z")
    True
"""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """Now, in UTC, as ISO 8601 with whole seconds and a ``Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
