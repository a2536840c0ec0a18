"""Segments of floating-point numbers as OpenZL frames: bytes that are alike are put together and entropy-coded.

The exponents of trained numbers take few of their possible values, signs and fractions nearly all; so exponents
shrink and the rest does not. OpenZL's frames say how they were made, so decoding needs no graph. A segment is
cut into pieces that fit a processor's cache, each a frame of its own behind its length (4 bytes, little-endian).

Measured on the state of a trained AdamW model (benchmarks/codecs.py): OpenZL's own split of ``float32`` into
exponents and fractions is made half as fast again as its split into four lanes of bytes, but decoded at a sixth of
the rate, and it stores 1 % more. A graph that codes only the highest lane would be made a quarter faster; it needs a
Python function inside of OpenZL, which is not worth the risk.

OpenZL holds the GIL in both directions, for a piece at a time. Its module is optional: there are platforms without it.
"""

from __future__ import annotations

import atexit
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from holdfast.errors import CodecUnavailable, Corrupt
from holdfast.ids import Buffer
from holdfast.packs.buffers import copy

PIECE_BYTES = 256 * 1024
"""Raw bytes of a frame: with larger ones decoding gets slower, as they leave the cache, and nothing gets smaller."""
FORMAT = 21
"""Version of OpenZL's format that is written: every release reads it, from 0.1 on."""
INSTALL = "pip install 'holdfast[openzl]'"

_PREFIX = 4
_DISABLE = 2  # ZL_TernaryParam: a pack has digests of its own


class Graph(StrEnum):
    """What is done to a piece before its parts are entropy-coded."""

    BYTES = "bytes"
    LANES_2 = "2 lanes"
    LANES_4 = "4 lanes"
    LANES_8 = "8 lanes"
    EXPONENTS = "bfloat16 exponents"
    EXPONENTS_AND_REST = "bfloat16 exponents, and the rest"

    @property
    def width(self) -> int:
        """Bytes of the elements that it takes."""
        return _WIDTHS.get(self, 2)


_WIDTHS = {Graph.BYTES: 1, Graph.LANES_2: 2, Graph.LANES_4: 4, Graph.LANES_8: 8}

GRAPHS: Mapping[str, tuple[Graph, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("float64", "complex128"), (Graph.LANES_8,)),
        **dict.fromkeys(("float32", "complex64"), (Graph.LANES_4,)),
        **dict.fromkeys(("float16", "complex32"), (Graph.LANES_2,)),
        # Second moments have no sign, so that the rest of them shrinks too; elsewhere trying costs for nothing.
        "bfloat16": (Graph.EXPONENTS, Graph.EXPONENTS_AND_REST),
        **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), (Graph.BYTES,)),
    }
)
"""By torch's name of a dtype, what is worth trying, the quickest first."""


def available() -> bool:
    """Whether OpenZL can be imported."""
    try:
        _contexts.ext()
    except CodecUnavailable:
        return False
    return True


def compress(graph: Graph, data: Buffer) -> bytes:
    """The frames of ``data``, a whole number of elements. Thread-safe; holds the GIL.

    Raises:
        CodecUnavailable: OpenZL is not installed.
    """
    view, parts = memoryview(data), []
    with _contexts.compressor(graph) as compressed:
        for at in range(0, view.nbytes, PIECE_BYTES):
            frame = compressed(view[at : at + PIECE_BYTES])
            parts += [len(frame).to_bytes(_PREFIX, "little"), frame]
    return b"".join(parts)


def decompress(stored: Buffer, into: memoryview) -> None:
    """Fill ``into`` with the content of frames. Thread-safe; holds the GIL.

    Raises:
        Corrupt: malformed, or of another length; found before more is allocated for content.
        CodecUnavailable: OpenZL is not installed.
    """
    done = 0
    with _contexts.decompressor() as decompressed:
        for frame in _frames(memoryview(stored)):
            piece = decompressed(frame, into.nbytes - done)
            copy(into[done : done + len(piece)], memoryview(piece))
            done += len(piece)
    if done != into.nbytes:
        raise Corrupt(f"its OpenZL frames have {done} bytes where {into.nbytes} are declared")


def _frames(stored: memoryview) -> Iterator[bytes]:
    at = 0
    while at < stored.nbytes:
        start = at + _PREFIX
        at = start + int.from_bytes(stored[at:start], "little")
        if at > stored.nbytes or at == start:
            raise Corrupt("its OpenZL frames do not end where they say")
        yield bytes(stored[start:at])


class _Contexts:
    """OpenZL's objects, kept for the next call, and let go of in an order that it survives.

    In openzl 0.3, if the garbage collector finds a compression context and its compressor together in a cycle, it
    frees one of them twice and the process aborts. So compressors belong to this object alone, contexts are never
    left in a frame that an exception may carry away, and both go, contexts first, before the interpreter
    takes modules apart.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ext: Any = None
        self._compressors: dict[Graph, Any] = {}
        self._idle: dict[Graph | None, list[Any]] = {}

    def ext(self) -> Any:
        """The module of OpenZL, imported when it is first needed."""
        with self._lock:
            if self._ext is None:
                try:
                    self._ext = importlib.import_module("openzl.ext")
                except ImportError as error:
                    raise CodecUnavailable(f"the codec openzl is not installed here ({error}): {INSTALL}") from error
                atexit.register(self.clear)
            return self._ext

    def clear(self) -> None:
        """Let go of everything that is idle."""
        with self._lock:
            self._idle.clear()
            self._compressors.clear()

    @contextmanager
    def compressor(self, graph: Graph) -> Iterator[Callable[[memoryview], bytes]]:
        """A function that makes frames."""
        ext = self.ext()
        idle = self._taken(graph, lambda: _context(ext, self._compressor(ext, graph)))
        try:
            yield lambda data: idle[0].compress([ext.Input(ext.Type.Serial, data)])
        finally:
            self._give_back(graph, idle)

    @contextmanager
    def decompressor(self) -> Iterator[Callable[[bytes, int], bytes]]:
        """A function that takes a frame of at most so many bytes of content apart."""
        ext = self.ext()
        idle = self._taken(None, ext.DCtx)
        try:
            yield lambda frame, most: _content(ext, idle[0], frame, most)
        finally:
            self._give_back(None, idle)

    def _taken(self, key: Graph | None, make: Callable[[], Any]) -> list[Any]:
        """A list of one context, so that no frame has the context itself."""
        with self._lock:
            found = self._idle.setdefault(key, [])
            return [found.pop() if found else make()]

    def _give_back(self, key: Graph | None, taken: list[Any]) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(taken.pop())

    def _compressor(self, ext: Any, graph: Graph) -> Any:
        if graph not in self._compressors:
            self._compressors[graph] = _built(ext, graph)
        return self._compressors[graph]


_contexts = _Contexts()


def _built(ext: Any, graph: Graph) -> Any:
    compressor = ext.Compressor()
    compressor.set_parameter(ext.CParam.FormatVersion, FORMAT)
    compressor.set_parameter(ext.CParam.ContentChecksum, _DISABLE)
    compressor.set_parameter(ext.CParam.CompressedChecksum, _DISABLE)
    compressor.select_starting_graph(_graph(ext, compressor, graph))
    return compressor


def _graph(ext: Any, compressor: Any, graph: Graph) -> Any:
    nodes, store, huffman = ext.nodes, ext.graphs.Store(), ext.graphs.Huffman()
    if graph is Graph.BYTES:
        return huffman(compressor)
    if graph in _WIDTHS:
        lanes = nodes.TransposeSplit()(compressor, huffman)
        return nodes.ConvertSerialToStruct(graph.width)(compressor, lanes)
    rest = store if graph is Graph.EXPONENTS else huffman
    parts = nodes.BFloat16Deconstruct()(compressor, rest, huffman)
    return nodes.ConvertSerialToNumLE16()(compressor, parts)


def _context(ext: Any, compressor: Any) -> Any:
    context = ext.CCtx()
    context.ref_compressor(compressor)
    context.set_parameter(ext.CParam.StickyParameters, 1)
    return context


def _content(ext: Any, context: Any, frame: bytes, most: int) -> bytes:
    try:
        info = ext.FrameInfo(frame)
        declared = info.output_content_size(0) if info.num_outputs == 1 else -1
        if not 0 < declared <= most:
            raise Corrupt(f"an OpenZL frame of it claims {declared} bytes where at most {most} are declared")
        (output,) = context.decompress(frame)
        content: bytes = output.content.as_bytes()
    except (RuntimeError, ValueError, TypeError) as error:  # the first one is what all of OpenZL's own errors are
        if "Allocation" in str(error):
            _ = bytearray(4 * most)  # where that raises MemoryError there is none; else the frame asks for the absurd
        raise Corrupt(f"an OpenZL frame of it is malformed: {_first_line(error)}") from error
    if len(content) != declared:
        raise Corrupt(f"an OpenZL frame of it has {len(content)} bytes where it claims {declared}")
    return content


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.startswith("OpenZL error string:")]
    return lines[0].removeprefix("OpenZL error string:").strip() if lines else "unknown reason"
