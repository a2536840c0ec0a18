"""Live training state, to a tree of values and tensors and back.

`capture` gives a `Snapshot` of registered objects; `restore` brings objects
into a `Stored` state, in place, and proves it by digests. Importing this
package registers the codecs of torch and NumPy values.
"""

from holdfast.state import values_torch as _values_torch  # registers its codecs
from holdfast.state.audit import Finding, audit
from holdfast.state.capture import Snapshot, capture
from holdfast.state.reading import Stored, TensorReader, Wanted
from holdfast.state.restore import Comparison, Plan, Restored, restore

__all__ = [
    "Comparison",
    "Finding",
    "Plan",
    "Restored",
    "Snapshot",
    "Stored",
    "TensorReader",
    "Wanted",
    "audit",
    "capture",
    "restore",
]

del _values_torch
