"""Saves that were handed over to a saver, and errors that come back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast import errors
from holdfast.errors import SaveFailed
from holdfast.records import Record, Target
from holdfast.saver.control import Intent


@dataclass(slots=True)
class InFlight:
    """A save that was handed over."""

    intent: Intent
    target: Target
    frozen: Mapping[int, bytes]
    """Fingerprints of the frozen tensors, by place in the layout."""
    names: Mapping[int, str]
    committed: Record | None = None


def error_of(kind: str, text: str) -> errors.HoldfastError:
    """An error of the saver process, as if it had been raised here."""
    found = next((one for one in vars(errors).values() if getattr(one, "kind", None) == kind), errors.SaveFailed)
    return found(text) if isinstance(found, type) and issubclass(found, errors.HoldfastError) else SaveFailed(text)
