"""Devices that are none: streams as queues that run in any order that their events allow, memory that is the host's.

Every operation may be put off until something waits for it, and runs at the latest then, so what is copied too late,
or too early, is found in the copy. Two kinds: a device whose main stream is as lazy as the others, and (`prompt`) one
whose main stream runs at once, which real optimizers on the CPU can be trained with.
"""

import random
from collections import deque

from holdfast.packs.buffers import address

_LOOKS = 8
"""How often somebody may ask for an event without waiting for it."""


class Failed(RuntimeError):
    """An error that a device does not recover from."""


class SimStream:
    def __init__(self, device, prompt=False):
        self.device, self.prompt = device, prompt
        self.queue, self.put, self.done = deque(), 0, 0


class SimEvent:
    asked = 0

    def __init__(self, stream):
        self.stream, self.index = stream, stream.put

    @property
    def happened(self):
        return self.stream.done >= self.index


class SimStreams:
    """See `holdfast.state.streams.Streams`."""

    def __init__(self, seed=0, *, prompt=False, eager=False, everywhere=None):
        self.random, self.prompt = random.Random(seed), prompt
        self.eager = eager
        """Whether other operations run, too, when somebody asks for one."""
        self.everywhere = everywhere
        """The device of tensors that were not placed."""
        self.homes, self.registered, self.registrations = {}, {}, 0
        self.streams = {}
        self.recording = self.broken = self.stuck = False
        self.refuses = lambda length: False
        self.after = lambda: None
        """Called after each operation."""
        self.asked = 0

    # What a test does

    def place(self, tensor, device):
        self.homes[tensor.untyped_storage().data_ptr()] = device
        return tensor

    def compute(self, device, work):
        """The training puts work on its stream."""
        self._put(self._stream(device, "main"), work)

    def advance(self):
        """Runs one operation that may run; False: there is none."""
        free = [stream for stream in self.streams.values() if self._runnable(stream)]
        if free:
            self._run_one(self.random.choice(free))
        return bool(free)

    def finish(self):
        while self.advance():
            pass

    # What staging does

    def capturing(self):
        return self.recording

    def device_of(self, tensor):
        home = self.homes.get(tensor.untyped_storage().data_ptr(), self.everywhere)
        return None if home == "pinned" else home

    def pinned(self, tensor):
        return self.homes.get(tensor.untyped_storage().data_ptr()) == "pinned"

    def current(self, device):
        return self._stream(device, "main")

    def side(self, device):
        return self._stream(device, "side")

    def record(self, stream):
        self._allowed()
        return SimEvent(stream)

    def wait(self, stream, event):
        self._allowed()
        if stream.prompt:
            self._run_until(event)
        else:
            self._put(stream, event)

    def finished(self, event):
        self._allowed()
        self.asked += 1
        event.asked += 1
        if not self.stuck and event.asked > _LOOKS:
            if self.eager:
                for _ in range(self.random.randrange(3)):
                    self.advance()
            self._run_until(event)
        return event.happened

    def run(self, stream, work):
        self._allowed()
        self._put(stream, work)

    def write(self, stream, place, number):
        self._allowed()
        assert self._is_registered(place.data_ptr(), 8), "the host would be made to wait"
        assert place.data_ptr() % 8 == 0
        self._put(stream, lambda: place.fill_(number))

    def register(self, device, start, length):
        self._allowed()
        if self.refuses(length):
            raise Failed("cudaErrorNotSupported")
        assert not any(a < start + length and start < a + b for a, b in self.registered.items()), "registered twice"
        self.registrations += 1
        self.registered[start] = length

    def unregister(self, device, start):
        self._allowed()
        writing = [stream for (_, name), stream in self.streams.items() if name == "side" and stream.queue]
        assert not writing, "something is still being written"
        del self.registered[start]

    # Within

    def _is_registered(self, start, length):
        return any(a <= start and start + length <= a + b for a, b in self.registered.items())

    def _allowed(self):
        assert not self.recording, "CUDA was asked for something while a graph is recorded"
        if self.broken:
            raise Failed("an illegal memory access was encountered")

    def _stream(self, device, name):
        if (device, name) not in self.streams:
            self.streams[device, name] = SimStream(device, prompt=self.prompt and name == "main")
        return self.streams[device, name]

    def _put(self, stream, work):
        stream.queue.append(work)
        stream.put += 1
        if stream.prompt:
            self._run_one(stream)

    def _runnable(self, stream):
        return bool(stream.queue) and (not isinstance(stream.queue[0], SimEvent) or stream.queue[0].happened)

    def _run_one(self, stream):
        work = stream.queue.popleft()
        if not isinstance(work, SimEvent):
            work()
        stream.done += 1
        self.after()

    def _run_until(self, event):
        while not event.happened:
            first = event.stream.queue[0]
            if isinstance(first, SimEvent) and not first.happened:
                self._run_until(first)
            self._run_one(event.stream)


def covered(sim, slab, start, length):
    """Whether a range of a slab is pinned in one piece."""
    return sim._is_registered(address(slab.memory) + start, length)


def touched(sim, slab, start, length):
    """Whether any byte of a range of a slab is pinned."""
    start += address(slab.memory)
    return any(a < start + length and start < a + b for a, b in sim.registered.items())
