"""A storage that is a dictionary, so that tests reach every stored byte and can fail at every call."""

from __future__ import annotations

import mmap
import threading

import numpy as np

from holdfast.errors import Corrupt, ObjectExists, ObjectMissing, StorageFull
from holdfast.packs import floats
from holdfast.packs.codec import Codec
from holdfast.packs.index import SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.segment import Segment
from holdfast.packs.writer import write_segments
from holdfast.storage.protocol import Listed

FOLDER = "data/runs/001/"
CODECS = [codec for codec in Codec if codec is not Codec.OPENZL or floats.available()]


class HeapSink:
    def __init__(self, heap, name, reserve, alignment):
        self.heap, self.name, self.alignment = heap, name, alignment
        self.data = bytearray(reserve)
        self.ended = False

    def write(self, offset, data):
        self.heap.event(f"write {offset}")
        self.heap.pieces.append((offset, len(data)))
        if offset:
            self.heap.written.append(data)
        data = bytes(data)
        with self.heap.lock:
            self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
            self.data[offset : offset + len(data)] = data

    def commit(self, length):
        self.heap.event("commit")
        if self.name in self.heap.objects:
            raise ObjectExists(self.name)
        assert len(self.data) >= length
        self.heap.objects[self.name] = self.data[:length]
        self.ended = True
        self.heap.committed(self)

    def abort(self):
        self.heap.aborted += not self.ended
        self.ended = True


class HeapSource:
    def __init__(self, heap, data, alignment):
        self.heap, self.data, self.alignment, self.size = heap, data, alignment, len(data)
        heap.opened += 1

    def at_hand(self, offset, length):
        return False

    def read_into(self, offset, into):
        self.heap.reads.append((offset, len(into)))
        if offset + len(into) > self.size:
            raise Corrupt("the object ends early")
        into[:] = self.data[offset : offset + len(into)]

    def close(self):
        self.heap.opened -= 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Heap:
    url = "heap://"

    def __init__(self, alignment=1, room=1 << 40):
        self.lock = threading.Lock()
        self.objects, self.alignment, self.room = {}, alignment, room
        self.reserved, self.pieces, self.reads, self.events = [], [], [], []
        self.written = []  # the memory itself, headers left out
        self.aborted = self.opened = 0
        self.fail_at, self.error = None, None
        self.committed = lambda sink: None

    def event(self, what):
        with self.lock:
            self.events.append(what)
            if self.fail_at is not None and len(self.events) > self.fail_at:
                raise self.error

    def sink(self, name, reserve):
        self.event("sink")
        if reserve > self.room:
            raise StorageFull(f"no room for {reserve} bytes")
        self.reserved.append(reserve)
        return HeapSink(self, name, reserve, self.alignment)

    def source(self, name):
        if name not in self.objects:
            raise ObjectMissing(f"{name} is not there")
        return HeapSource(self, self.objects[name], self.alignment)

    def delete(self, names):
        for name in names:
            self.objects.pop(name, None)

    def list(self, prefix):
        return iter([Listed(n, len(d)) for n, d in sorted(self.objects.items()) if n.startswith(prefix)])


def nothing(_):
    return False


def write(storage, segments, *, known=nothing, codec=Codec.RAW, **options):
    """Write byte strings, or whole segments."""
    return write_segments(storage, FOLDER, map(segment, segments), known=known, codec=codec, **options)


def segment(data):
    return data if isinstance(data, Segment) else Segment(memoryview(data))


def padded(data, dtype="uint8"):
    """A segment in memory of its own that begins on a page and is padded to whole blocks."""
    memory = memoryview(mmap.mmap(-1, -(-len(data) // 4096) * 4096))
    memory[: len(data)] = data
    return Segment(memory[: len(data)], dtype, memory)


def read_back(storage, written, lengths, **options):
    """The raw bytes of the segments that `write` wrote, in its order."""
    index = SegmentIndex.of(storage, [pack.name for pack in written.packs])
    targets = [bytearray(length) for length in lengths]
    wanted = zip(written.digests, map(memoryview, targets), strict=True)
    read_segments(storage, index.get, wanted, **options)
    return [bytes(target) for target in targets]


def weights(rng, count, dtype="float32"):
    """The bytes of so many numbers as training makes them."""
    drawn = np.random.default_rng(rng.randrange(1 << 32)).normal(0, 0.02, count)
    if dtype == "bfloat16":
        return drawn.astype(np.float32).view(np.uint16)[1::2].tobytes()
    return drawn.astype(dtype).tobytes()
