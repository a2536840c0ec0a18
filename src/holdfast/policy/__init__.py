"""When to save and what to keep: pure objects over facts.

``save=every(steps=500) | best("val_loss")`` and ``keep=latest(3) | best("val_loss", 2)``.

Example:
    >>> policy = every(steps=500) | best("val_loss")
    >>> policy.due(SaveFacts(step=500, steps_since_save=120))
    'every(steps=500)'
    >>> parse(str(policy)) == policy
    True
"""

from __future__ import annotations

from holdfast.catalog.naming.metrics import Mode, measured
from holdfast.policy.at import At, at
from holdfast.policy.at_most import AtMost, at_most
from holdfast.policy.auto import Auto, auto
from holdfast.policy.base import AnyOf, Policy, Worth, any_of, for_keeping, for_saving
from holdfast.policy.best import Best, best, kind_of
from holdfast.policy.every import Every, Unit, every
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.latest import Latest, latest
from holdfast.policy.never import Never, never
from holdfast.policy.newer import Newer, newer
from holdfast.policy.text import parse
from holdfast.policy.tolerance import Tolerance, tolerance_of, tolerate

__all__ = [
    "AnyOf",
    "At",
    "AtMost",
    "Auto",
    "Best",
    "CheckpointFacts",
    "Every",
    "Latest",
    "Mode",
    "Never",
    "Newer",
    "Policy",
    "SaveFacts",
    "Tolerance",
    "Unit",
    "Worth",
    "any_of",
    "at",
    "at_most",
    "auto",
    "best",
    "every",
    "for_keeping",
    "for_saving",
    "kind_of",
    "latest",
    "measured",
    "never",
    "newer",
    "parse",
    "tolerance_of",
    "tolerate",
]
