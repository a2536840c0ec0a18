"""A store of one checkpoint in a dictionary: what tests of capture and restore need of one."""

import json
from dataclasses import dataclass

import torch

from holdfast.ids import Digest
from holdfast.state import Stored, capture, restore
from holdfast.trees import Manifest, decode_skeleton, segments


class DictReader:
    """Serves segments from a dictionary by digest, and verifies them as a real reader does."""

    def __init__(self, blobs, skeleton, digests):
        self.blobs = blobs
        self.skeleton = skeleton
        self.largest = 0
        self.calls = 0
        starts = iter(digests)
        self.where = {
            (entry, span.start): (span.length, next(starts))
            for entry, spec in enumerate(skeleton.tensors)
            for span in segments(spec)
        }

    def need(self, parts):
        assert set(parts) <= {0}

    def read(self, wanted):
        self.calls += 1
        self.largest = max([self.largest, *(len(w.into) for w in wanted)])
        for entry, box, start, into in wanted:
            assert box == 0
            assert into.format == "B"
            at = 0
            while at < len(into):
                length, digest = self.where[entry, start + at]
                into[at : at + length] = self.blobs[digest]
                at += length
            assert at == len(into), "a request must end at a segment boundary"


def store(snapshot):
    """``snapshot`` with every byte copied, through the real encodings."""
    blobs, digests = {}, []
    for segment in snapshot.segments():
        digests.append(Digest.of(segment.data))
        blobs[digests[-1]] = bytes(segment.data)
    encoded = snapshot.skeleton.encode()
    skeleton = decode_skeleton("skeleton", encoded, Digest.of(encoded))
    manifest = Manifest(
        skeleton, Digest.of(encoded), snapshot.values_bytes, snapshot.inline, b"".join(digests), (snapshot.own,)
    )
    return Stored.of(manifest, DictReader(blobs, skeleton, digests))


def save(objects, values=None):
    return store(capture(objects, values))


def digest(objects, values=None):
    """Everything that a checkpoint of ``objects`` would hold, as one comparable value."""
    snapshot = capture(objects, values, own={})
    return (
        snapshot.skeleton.encode(),
        json.loads(snapshot.values_bytes),
        snapshot.inline,
        [Digest.of(segment.data) for segment in snapshot.segments()],
    )


@dataclass
class Trained:
    """A model with its optimizer, and one deterministic step of both."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    shape: tuple = (4, 8)

    @property
    def objects(self):
        return {"model": self.model, "optimizer": self.optimizer}

    def steps(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            x = torch.randn(self.shape, generator=generator).to(next(self.model.parameters()).dtype)

            def closure(x=x):
                self.optimizer.zero_grad()
                loss = (self.model(x) ** 2).mean()
                loss.backward()
                return loss

            self.optimizer.step(closure)
        return self


def assert_resumes(make, *, steps=3, restore_into=None):
    """Trains, saves, trains on; a new instance that is restored must train on to the very same bytes."""
    first = make(0).steps(steps)
    stored = save(first.objects)
    second = restore_into or make(1)
    restore(second.objects, stored)
    assert digest(second.objects) == digest(first.objects)
    first.steps(2, seed=9)
    second.steps(2, seed=9)
    assert digest(second.objects) == digest(first.objects)
    return first, second
