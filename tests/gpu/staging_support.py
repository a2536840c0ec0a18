"""A slot and its seal on a real device, filled as a save does."""

import time
from functools import partial

import torch

from holdfast.saver.arena import Layout
from holdfast.saver.control import LENGTH, Control, Intent
from holdfast.saver.memory import Slab
from holdfast.state import capture, tensors
from holdfast.state.comparing import staged
from holdfast.state.staging import Destination
from holdfast.state.staging_cuda import CudaStaging
from holdfast.state.streams import CudaStreams

LONG = 2_000_000_000
"""Cycles for which a stream is held up: about a second, so that whatever does not wait for it comes first."""


class HeldStreams(CudaStreams):
    """Late copies begin late: the stream sleeps before them, and not before what the save waits for."""

    def __init__(self):
        super().__init__()
        self.held, self.staging = None, None

    def run(self, stream, work):
        late = isinstance(work, partial) and set(work.args[0]) & set(self.staging._flight.lazy)
        if late and self.held == stream.device.index:
            super().run(stream, lambda: torch.cuda._sleep(LONG))
        super().run(stream, work)


class Slot:
    """States of some objects, copied into one slot. ``step`` is counted by whoever trains."""

    def __init__(self, objects, *, check=False):
        self.objects, self.step, self.generation = objects, 0, 0
        self.control = Control(Slab.make(LENGTH))
        self.streams = HeldStreams()
        self.staging = self.streams.staging = CudaStaging(self.control, self.streams, check)
        self.destination = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.staging.close(60)

    def save(self, *, late=True):
        """Copies the state as it is now."""
        large = capture(self.objects, rng=False).tensors
        specs, sources = tuple(spec for spec, _ in large), [tensor for _, tensor in large]
        if self.destination is None or self.destination.layout.specs != specs:
            layout = Layout(specs)
            slab = Slab.make(layout.slab_bytes())
            slab.reserve(0, layout.length)
            self.destination = Destination(slab, layout)
        assert self.staging.settle(60)
        self.control.unseal(0)
        self.under_way = self.staging.copy(self.destination, range(len(specs)), sources, step=self.step, late=late)
        layout = self.destination.layout
        self.control.describe(0, Intent.SAVE, self.destination.slab.serial, layout.length, b"document")
        self.generation += 1
        self.staging.seal(0, self.generation)
        self.streams.held = None

    @property
    def names_under_way(self):
        return {self.destination.layout.specs[place].name for place in self.under_way}

    @property
    def sealed(self):
        row = self.control.row(0)
        return row is not None and row.generation == self.generation

    def await_seal(self):
        """Without asking CUDA for anything, as the saver does."""
        end = time.monotonic() + 60
        while not self.sealed:
            assert time.monotonic() < end, "the stream never wrote the seal"
            time.sleep(0.001)

    def content(self):
        """What was staged, by name."""
        specs = self.destination.layout.specs
        return {spec.name: staged(self.destination, place) for place, spec in enumerate(specs)}

    def hold_up(self, device=0):
        """The next late copies of a device come a second late."""
        self.streams.held = device


def truth(objects):
    """The large tensors as they are, by name, on the host; waits for the device."""
    torch.cuda.synchronize()
    return {
        spec.name: tensors.plain(tensor).resolve_conj().resolve_neg().cpu().contiguous().clone()
        for spec, tensor in capture(objects, rng=False).tensors
    }


def differing(found, expected):
    """Names of tensors whose bytes are others."""
    assert found.keys() == expected.keys()
    return [
        name for name in found if not torch.equal(tensors.flat_bytes(found[name]), tensors.flat_bytes(expected[name]))
    ]
