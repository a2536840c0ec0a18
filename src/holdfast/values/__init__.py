"""Plain values as tagged JSON, and back, without loss and without pickle.

``None``, ``bool``, ``str``, finite ``float``, ``int``, ``list`` and ``dict`` with
text keys are themselves in JSON. Everything else is an object whose key ``$``
is a tag, such as ``{"$": "tuple", "v": [1, 2]}``; docs/format.md, "Values", has
the table. JSON alone would not do: it has no NaN, no tuple and no integer key
(``MultiStepLR.milestones`` is a Counter with integer keys), and msgpack refuses
the 128-bit integers in NumPy's generators.

Dispatch is by exact type: a subclass may carry what the codec does not see, so
it is refused with its path unless it was registered. An object that is reached
twice is written twice. Reading never imports a module and never calls anything
that the stored text names, except enum classes that the program has imported.

Example:
    >>> import json
    >>> text = json.dumps(encode({"betas": (0.9, 0.999), 7: {1, 2}, "best": float("nan")}))
    >>> decode(json.loads(text))
    {'betas': (0.9, 0.999), 7: {1, 2}, 'best': nan}
"""

from holdfast.values.reading import Reader, decode
from holdfast.values.registry import register
from holdfast.values.showing import decode_or_show, display
from holdfast.values.writing import DEPTH, Json, Leaf, encode, join, part

__all__ = [
    "DEPTH",
    "Json",
    "Leaf",
    "Reader",
    "decode",
    "decode_or_show",
    "display",
    "encode",
    "join",
    "part",
    "register",
]
